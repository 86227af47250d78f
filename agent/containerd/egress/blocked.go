package egress

import (
	"net/netip"
	"slices"
)

// private4 and private6 are what the policy internet refuses: addresses that the public Internet doesn't route (the registries
// of RFC 6890), but for those reserved for documentation.
func private4() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
		"198.18.0.0/15", "224.0.0.0/3",
	)
}

func private6() []netip.Prefix {
	all := prefixes(
		"::/16",     // loopback, unspecified, IPv4-mapped
		"100::/64",  // discard
		"2001::/32", // Teredo
		"64:ff9b:1::/48", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	)
	for _, p := range private4() {
		// Translators lead to IPv4: NAT64 and 6to4 have its address in theirs.
		all = append(all, embed(netip.MustParseAddr("64:ff9b::"), 12, p), embed(netip.MustParseAddr("2002::"), 2, p))
	}
	return all
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// embed is the IPv6 network whose addresses have one of p at byte offset.
func embed(base netip.Addr, offset int, p netip.Prefix) netip.Prefix {
	b, v4 := base.As16(), p.Addr().As4()
	copy(b[offset:], v4[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 8*offset+p.Bits())
}

// span is the addresses from first to before end; an invalid end is after the last address that there is.
type span struct{ first, end netip.Addr }

// spans merges networks, since intervals of a set may not overlap.
func spans(networks []netip.Prefix) []span {
	networks = slices.Clone(networks)
	slices.SortFunc(networks, netip.Prefix.Compare)
	var all []span
	for _, p := range networks {
		s := span{p.Masked().Addr(), last(p).Next()}
		n := len(all)
		switch {
		case n == 0 || all[n-1].end.IsValid() && all[n-1].end.Less(s.first):
			all = append(all, s)
		case all[n-1].end.IsValid() && (!s.end.IsValid() || all[n-1].end.Less(s.end)):
			all[n-1].end = s.end
		}
	}
	return all
}

func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return addr
}
