package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
)

const (
	// Bounds of a pool's prefix: at most a million addresses, at least thirteen sandboxes.
	minPrefix, maxPrefix = 12, 28
	// gatewaySlot is the address of the node itself, firstSlot that of the first sandbox.
	gatewaySlot, firstSlot = 1, 2
)

// addresses is the pool of a node. A slot stands for an address of each family and for the name of an interface.
type addresses struct {
	v4, v6 netip.Prefix // v6 is invalid where the host has no IPv6

	mu   sync.Mutex
	used map[int]bool
	next int
	end  int // the first slot that there is not
}

func newAddresses(v4, v6 netip.Prefix) *addresses {
	return &addresses{
		v4: v4, v6: v6, used: map[int]bool{}, next: firstSlot,
		end: 1<<(v4.Addr().BitLen()-v4.Bits()) - 1, // the last is for broadcasts
	}
}

// take finds a free slot, the one least recently begun.
func (a *addresses) take() (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range a.end - firstSlot {
		slot := a.next
		if a.next++; a.next == a.end {
			a.next = firstSlot
		}
		if !a.used[slot] {
			a.used[slot] = true
			return slot, nil
		}
	}
	return 0, fmt.Errorf("all %d addresses of %s are in use: give a larger --sandbox-cidr", a.end-firstSlot, a.v4)
}

// claim takes a slot that is known to be in use.
func (a *addresses) claim(slot int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used[slot] = true
}

func (a *addresses) release(slot int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, slot)
}

// of returns the addresses of a slot, the second invalid without IPv6.
func (a *addresses) of(slot int) (v4, v6 netip.Addr) {
	return nth(a.v4, slot), nth(a.v6, slot)
}

// nth is the address n after the first of p.
func nth(p netip.Prefix, n int) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
	b := p.Masked().Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+uint32(n))
	addr, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return addr
}
