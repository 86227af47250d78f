package egress

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAddressesAreNeverGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := newAddresses(netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), rapid.IntRange(24, 28).Draw(t, "bits")), uniqueLocal("x"))
		size := 1<<(32-pool.v4.Bits()) - 3 // without the network, the gateway and the broadcast address
		var mine []int
		seen := map[netip.Addr]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				slot, err := pool.take()
				if (err != nil) != (len(mine) == size) {
					t.Fatalf("%d of %d are taken: %v", len(mine), size, err)
				}
				if err != nil {
					return
				}
				v4, v6 := pool.of(slot)
				if seen[v4] || seen[v6] {
					t.Fatalf("%s or %s was given twice", v4, v6)
				}
				seen[v4], seen[v6] = true, true
				mine = append(mine, slot)
			},
			"claim": func(t *rapid.T) {
				slot := rapid.IntRange(firstSlot, firstSlot+size-1).Draw(t, "slot")
				if !slices.Contains(mine, slot) {
					pool.claim(slot)
					v4, v6 := pool.of(slot)
					seen[v4], seen[v6] = true, true
					mine = append(mine, slot)
				}
			},
			"release": func(t *rapid.T) {
				if len(mine) == 0 {
					return
				}
				i := rapid.IntRange(0, len(mine)-1).Draw(t, "i")
				pool.release(mine[i])
				v4, v6 := pool.of(mine[i])
				delete(seen, v4)
				delete(seen, v6)
				mine = slices.Delete(mine, i, i+1)
			},
			"": func(t *rapid.T) {
				gateway4, gateway6 := pool.of(gatewaySlot)
				if seen[gateway4] || seen[gateway6] || seen[pool.v4.Addr()] || seen[last(pool.v4)] {
					t.Fatal("a sandbox has the gateway's, the network's or the broadcast address")
				}
				for a := range seen {
					if !pool.v4.Contains(a) && !pool.v6.Contains(a) {
						t.Fatalf("%s is not in the pool", a)
					}
				}
			},
		})
	})
}

func TestSpansCoverWhatTheNetworksDo(t *testing.T) {
	network := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		return netip.PrefixFrom(a, rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		networks := rapid.SliceOfN(network, 0, 20).Draw(t, "networks")
		all := spans(networks)
		for i := 1; i < len(all); i++ {
			if !all[i-1].end.IsValid() || !all[i-1].end.Less(all[i].first) {
				t.Fatalf("%v and %v overlap or touch", all[i-1], all[i])
			}
		}
		for range 50 {
			a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "a")))
			want := slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
			got := slices.ContainsFunc(all, func(s span) bool {
				return !a.Less(s.first) && (!s.end.IsValid() || a.Less(s.end))
			})
			if got != want {
				t.Fatalf("%s: %v, want %v of %v", a, got, want, networks)
			}
		}
	})
}

func TestWhatIsPrivate(t *testing.T) {
	for text, want := range map[string]bool{
		"10.1.2.3": true, "172.31.255.255": true, "192.168.0.1": true, "169.254.169.254": true, "127.0.0.1": true, "100.127.255.255": true,
		"0.0.0.0": true, "224.0.0.1": true, "255.255.255.255": true, "172.32.0.1": false, "8.8.8.8": false, "100.128.0.1": false, "223.255.255.255": false,
		"::1": true, "::ffff:10.0.0.1": true, "fe80::1": true, "fc00::1": true, "fdff::1": true, "ff02::1": true, "64:ff9b::10.0.0.1": true,
		"64:ff9b::8.8.8.8": false, "2002:a00:1::1": true, "2002:808:808::1": false, "2600::1": false, "64:ff9b:1::1": true,
	} {
		a := netip.MustParseAddr(text)
		networks := private4()
		if a.Is6() {
			networks = private6()
		}
		got := slices.ContainsFunc(spans(networks), func(s span) bool { return !a.Less(s.first) && (!s.end.IsValid() || a.Less(s.end)) })
		if got != want {
			t.Errorf("%s: private is %v, want %v", text, got, want)
		}
	}
}

func TestParseCIDR(t *testing.T) {
	for text, good := range map[string]bool{
		"": true, "100.64.0.0/16": true, "10.0.0.0/12": true, "192.168.1.0/28": true,
		"100.64.0.1/16": false, "10.0.0.0/8": false, "10.0.0.0/29": false, "fd00::/64": false, "x": false,
	} {
		if _, err := ParseCIDR(text); (err == nil) != good || err != nil && !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestChoose(t *testing.T) {
	taken := prefixes("0.0.0.0/0", "192.0.2.0/24", "100.64.0.0/11")
	asked := netip.MustParsePrefix("192.0.2.128/25")
	if p, err := choose(asked, netip.Prefix{}, taken, "a"); !errors.Is(err, ErrConfig) {
		t.Errorf("%s collides: %v", p, err)
	}
	first, err := choose(netip.Prefix{}, netip.Prefix{}, taken, "a")
	if err != nil || !defaultRange().Contains(first.Addr()) || taken[2].Overlaps(first) || first.Bits() != defaultPrefix {
		t.Errorf("chose %s: %v", first, err)
	}
	// The one of an earlier process stays; what another uses by now doesn't.
	before := netip.MustParsePrefix("100.127.0.0/20")
	if p, err := choose(netip.Prefix{}, before, taken, "a"); p != before || err != nil {
		t.Errorf("chose %s: %v, want %s", p, err, before)
	}
	if p, err := choose(netip.Prefix{}, first, append(taken, first), "a"); p == first || err != nil {
		t.Errorf("chose %s: %v, which another uses", p, err)
	}
	if p, err := choose(netip.Prefix{}, netip.Prefix{}, prefixes("100.64.0.0/10"), "a"); !errors.Is(err, ErrConfig) {
		t.Errorf("chose %s of what is all taken: %v", p, err)
	}
}
