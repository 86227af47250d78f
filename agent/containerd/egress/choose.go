package egress

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrConfig is wrapped by errors about what somebody has asked for: another choice mends them.
var ErrConfig = errors.New("the sandboxes' network is configured wrongly")

// defaultPrefix is the size of a pool that nobody has chosen: 4093 sandboxes.
const defaultPrefix = 20

// defaultRange is where such pools are: the addresses of carrier-grade NAT (RFC 6598), which local networks don't use.
func defaultRange() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// ParseCIDR reads the pool of addresses that somebody asks for; empty stands for the default.
func ParseCIDR(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p != p.Masked() || p.Bits() < minPrefix || p.Bits() > maxPrefix {
		return netip.Prefix{}, fmt.Errorf("%w: %q is not an IPv4 network of size /%d to /%d such as 100.64.0.0/16", ErrConfig, text, minPrefix, maxPrefix)
	}
	return p, nil
}

// choose finds the pool of an instance: the one asked for, else the one it had before, else one of the default range that the
// instance's name points to. None may overlap with taken, which the host's routes and interfaces use.
func choose(asked, before netip.Prefix, taken []netip.Prefix, instance string) (netip.Prefix, error) {
	if asked.IsValid() {
		if t, ok := overlap(asked, taken); ok {
			return netip.Prefix{}, fmt.Errorf("%w: %s overlaps with %s, which this host uses (`ip route show table all`): choose another --sandbox-cidr", ErrConfig, asked, t)
		}
		return asked, nil
	}
	if _, ok := overlap(before, taken); before.IsValid() && !ok {
		return before, nil
	}
	all := defaultRange()
	count := uint32(1) << (defaultPrefix - all.Bits())
	first := hash(instance) % count
	for i := range count {
		p := netip.PrefixFrom(nth(all, int((first+i)%count)<<(32-defaultPrefix)), defaultPrefix)
		if _, ok := overlap(p, taken); !ok {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w: this host uses all of %s (`ip route show table all`): choose a free network by --sandbox-cidr", ErrConfig, all)
}

func overlap(p netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	for _, t := range taken {
		// A route to everything is no use of it.
		if t.Bits() > 0 && p.Overlaps(t) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// uniqueLocal is the IPv6 network of an instance's sandboxes: a unique local one (RFC 4193), by the instance's name.
func uniqueLocal(instance string) netip.Prefix {
	sum := sha256.Sum256([]byte("mayfly " + instance))
	b := [16]byte{0xfd}
	copy(b[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// hash is a number for an instance, never 0.
func hash(instance string) uint32 {
	sum := sha256.Sum256([]byte(instance))
	return max(1, binary.BigEndian.Uint32(sum[:]))
}
