// Package egress connects sandboxes to the network as far as their egress policy lets them.
//
// What belongs here: the pool of addresses, the veth of a sandbox, the nf_tables table and the routes of this instance,
// forwarding, the DNS relay; and their removal. What does not: network namespaces themselves and when they are made
// (agent/containerd), and who may have which policy (controlplane).
//
// Nothing of the host's own is changed but forwarding, which is put back. What is made can be told from what others made:
// the table is mayfly-<instance>, interfaces begin with a prefix and routes have a metric that the instance's name gives.
package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// lookEvery is how long what is known of the host's interfaces is good for.
const lookEvery = 10 * time.Second

// Config is what Open works with.
type Config struct {
	// InstanceID tells this node's interfaces, routes and rules from those of another Mayfly on the machine.
	InstanceID string
	// CIDR is the sandboxes' addresses, as ParseCIDR takes it; empty: a /20 of 100.64.0.0/10 that the host doesn't use.
	CIDR   string
	Logger *slog.Logger
}

// Network is the sandboxes' way out of a host.
type Network struct {
	log   *slog.Logger
	host  *host
	table *table
	pool  *addresses
	relay *relay
	v6    bool

	mu      sync.Mutex
	links   map[int]link // by slot, those that this process has made
	waiting *removal

	looked time.Time // at the host
	mtu    int

	removing sync.Mutex // held while interfaces are removed; guards a removal's done and err
}

// link is the host's end of a veth.
type link struct {
	index  int
	policy sandbox.Egress
}

// Open makes the rules and routes, and removes what an earlier process of this instance has left but the interfaces of the
// slots in kept. Errors wrap ErrConfig if another CIDR mends them.
func Open(cfg Config, kept []int) (*Network, error) {
	asked, err := ParseCIDR(cfg.CIDR)
	if err != nil {
		return nil, err
	}
	n := &Network{log: cfg.Logger, links: map[int]link{}}
	if err := n.open(asked, cfg.InstanceID, kept); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Network) open(asked netip.Prefix, instance string, kept []int) (err error) {
	if n.host, err = openHost(instance); err != nil {
		return err
	}
	if n.table, err = openTable(instance); err != nil {
		return err
	}
	u, err := n.host.look()
	if err != nil {
		return err
	}
	v4, err := choose(asked, u.before, u.taken, instance)
	if err != nil {
		return err
	}
	v6 := netip.Prefix{}
	if n.v6 = u.v6; n.v6 {
		v6 = uniqueLocal(instance)
	}
	n.pool = newAddresses(v4, v6)
	return n.build(u, kept)
}

func (n *Network) build(u *use, kept []int) error {
	if err := n.sweep(kept); err != nil {
		return err
	}
	if err := n.host.removeRoutes(u.ours); err != nil {
		return err
	}
	if err := n.host.hold(n.pool); err != nil {
		return err
	}
	gateway4, gateway6 := n.pool.of(gatewaySlot)
	var err error
	if n.relay, err = listen(gateway4, gateway6); err != nil {
		return err
	}
	records, _, err := n.table.readRecords()
	if err != nil {
		return err
	}
	rules := ruleset{prefix: n.host.prefix, pool: n.pool, relay: n.relay.port}
	if err := n.table.replace(rules, records); err != nil {
		return err
	}
	_, err = n.follow()
	return err
}

// sweep removes the interfaces that nobody owns. A kept one may be gone, with its sandbox's processes; its slot stays taken
// until it is disconnected.
func (n *Network) sweep(kept []int) error {
	slots, err := n.host.slots()
	if err != nil {
		return err
	}
	for _, slot := range kept {
		n.pool.claim(slot)
	}
	lost := slices.DeleteFunc(slots, func(slot int) bool { return slices.Contains(kept, slot) })
	return n.host.removeLinks(lost)
}

// Pool is the sandboxes' addresses.
func (n *Network) Pool() netip.Prefix { return n.pool.v4 }

// Connect gives a network namespace an interface with a policy, and returns its slot.
func (n *Network) Connect(inside *os.File, policy sandbox.Egress) (slot int, err error) {
	slot, err = n.pool.take()
	if err != nil {
		return 0, err
	}
	index, err := n.connect(slot, policy, inside)
	n.mu.Lock()
	n.links[slot] = link{index: index, policy: policy}
	n.mu.Unlock()
	if err != nil {
		return 0, errors.Join(err, n.Disconnect(slot))
	}
	return slot, nil
}

func (n *Network) connect(slot int, policy sandbox.Egress, inside *os.File) (index int, err error) {
	mtu, err := n.follow()
	if err != nil {
		return 0, err
	}
	return n.host.makeLink(slot, n.pool, policy, mtu, inside)
}

// follow looks at the host again, now and then: its way to the Internet may be another by now. It returns the MTU of that.
func (n *Network) follow() (mtu int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.looked) < lookEvery {
		return n.mtu, nil
	}
	u, err := n.host.look()
	if err != nil {
		return 0, err
	}
	if err := n.table.forward(u.uplinks, n.v6); err != nil {
		return 0, err
	}
	n.looked, n.mtu = time.Now(), u.mtu
	return n.mtu, nil
}

// SetPolicy changes what the interface of a slot may reach. It is in force when SetPolicy returns; connections that there are
// go on.
func (n *Network) SetPolicy(slot int, policy sandbox.Egress) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, ok := n.links[slot]
	if !ok {
		return fmt.Errorf("set egress policy %s: there is no interface %s", policy, linkName(n.host.prefix, slot))
	}
	if l.policy == policy {
		return nil
	}
	if err := n.host.setPolicy(l.index, policy); err != nil {
		return fmt.Errorf("set egress policy %s of interface %s: %w", policy, linkName(n.host.prefix, slot), err)
	}
	l.policy = policy
	n.links[slot] = l
	return nil
}

// removal is interfaces that go together.
type removal struct {
	slots []int
	done  bool
	err   error
}

// Disconnect removes the interface of a slot. It can be repeated after an error. Those that wait while others are removed are removed
// together.
func (n *Network) Disconnect(slot int) error {
	n.mu.Lock()
	if n.waiting == nil {
		n.waiting = &removal{}
	}
	r := n.waiting
	r.slots = append(r.slots, slot)
	n.mu.Unlock()

	n.removing.Lock()
	defer n.removing.Unlock()
	if !r.done {
		n.mu.Lock()
		n.waiting = nil
		n.mu.Unlock()
		r.err, r.done = n.disconnect(r.slots), true
	}
	return r.err
}

func (n *Network) disconnect(slots []int) error {
	if err := n.host.removeLinks(slots); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, slot := range slots {
		delete(n.links, slot)
		n.pool.release(slot)
	}
	return nil
}

// ResolvConf is /etc/resolv.conf of sandboxes.
func (n *Network) ResolvConf() string {
	gateway, _ := n.pool.of(gatewaySlot)
	return fmt.Sprintf("nameserver %s\noptions timeout:3 attempts:2\n", gateway)
}

// Run answers the sandboxes' DNS questions until ctx ends.
func (n *Network) Run(ctx context.Context) error { return n.relay.run(ctx, n.log) }

// Close releases what this process holds. Interfaces, rules and routes stay, for the sandboxes that live.
func (n *Network) Close() error {
	if n.host != nil {
		n.host.Close()
	}
	if n.relay != nil {
		return n.relay.close()
	}
	return nil
}

// Remove removes every trace of an instance from the host, and puts forwarding back unless another Mayfly needs it.
func Remove(instance string) error {
	h, err := openHost(instance)
	if err != nil {
		return err
	}
	defer h.Close()
	slots, err := h.slots()
	errs := []error{err, h.removeLinks(slots)}
	u, err := h.look()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, h.removeRoutes(u.ours), removeTable(instance))
	return errors.Join(errs...)
}

func removeTable(instance string) error {
	t, err := openTable(instance)
	if err != nil {
		return err
	}
	all, others, err := t.readRecords()
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !others {
		if err := kernel.putBack(all); err != nil {
			return err
		}
	}
	return t.remove()
}
