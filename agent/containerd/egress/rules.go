package egress

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// Names in the table. A chain named as a policy is what that policy allows.
const (
	tablePrefix = "mayfly-"

	chainFromSandbox = "from-sandbox"
	chainResolver    = "resolver"
	chainRefuse      = "refuse"
	chainInternet    = string(sandbox.EgressInternet)
	chainAll         = string(sandbox.EgressAll)

	setPrivate4 = "private4"
	setPrivate6 = "private6"
)

// Of linux/netfilter/nf_tables.h.
const (
	rejectReset     = 1
	rejectICMPX     = 2
	adminProhibited = 3
	routeLocal      = 2 // RTN_LOCAL of linux/rtnetlink.h
	dnsPort         = 53
	ifNameSize      = unix.IFNAMSIZ
)

type rule []expr.Any

// chain is one of ours; hook is nil for one that is only jumped to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

// Groups of interfaces (`ip link show group NUMBER`), by which the rules tell the policies. An interface of ours in no such group
// is refused everything. The upper byte keeps them apart from each other and, most likely, from groups of the host's.
const (
	groupInternet  = 0x6e000001
	groupAll       = 0x6e000002
	groupCondemned = 0x6d000000 // and 24 bits that tell the instance: interfaces that are removed together
)

func groupOf(policy sandbox.Egress) int {
	switch policy {
	case sandbox.EgressInternet:
		return groupInternet
	case sandbox.EgressAll:
		return groupAll
	}
	return 0
}

// ruleset is all that the table does. It is the same from the start to the end of the agent.
type ruleset struct {
	prefix string // of our interfaces' names
	pool   *addresses
	relay  uint16 // port of the DNS relay
}

func (r ruleset) chains() []chain {
	// Packets are judged after connection tracking (-200) and before another's rules may change where they go (-100).
	judged := nftables.ChainPriorityMangle
	return []chain{
		{name: chainRefuse, rules: refuse()},
		{name: chainResolver, rules: r.resolver()},
		{name: chainInternet, rules: r.internet()},
		{name: chainAll, rules: r.all()},
		{name: chainFromSandbox, rules: fromSandbox()},
		{
			name: "prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: judged,
			rules: []rule{join(r.from(), verdict(expr.VerdictGoto, chainFromSandbox))},
		},
		{
			name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: judged,
			// Nobody begins a connection to a sandbox, least of all another sandbox.
			rules: []rule{join(r.to(), unlessState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictDrop, ""))},
		},
		{
			name: "nat-prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest,
			rules: r.relayed(),
		},
		{
			name: "nat-postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource,
			rules: []rule{join(r.from(), rule{&expr.Masq{}})},
		},
	}
}

// fromSandbox lets go on what is part of a connection; new ones are for the policy of the interface.
func fromSandbox() []rule {
	return []rule{
		join(ifState(expr.CtStateBitINVALID), verdict(expr.VerdictDrop, "")),
		// A source that is not the interface's own: IPv6 lets any program choose one.
		{
			&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}, &expr.Verdict{Kind: expr.VerdictDrop},
		},
		join(ifState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, "")),
		join(inGroup(groupInternet), verdict(expr.VerdictGoto, chainInternet)),
		join(inGroup(groupAll), verdict(expr.VerdictGoto, chainAll)),
		refused(),
	}
}

func inGroup(group uint32) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(group)},
	}
}

// refuse answers, so that programs needn't wait until they give up. The kernel sends only a few ICMP messages per second to
// an address, but any number of resets.
func refuse() []rule {
	return []rule{
		{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: rejectReset},
		},
		{&expr.Reject{Type: rejectICMPX, Code: adminProhibited}},
	}
}

// resolver accepts questions to the DNS relay.
func (r ruleset) resolver() []rule {
	var rules []rule
	for _, gateway := range r.gateways() {
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rules = append(rules, join(isTo(gateway), toPort(protocol, dnsPort), verdict(expr.VerdictAccept, "")))
		}
	}
	return rules
}

func (r ruleset) internet() []rule {
	return []rule{
		verdict(expr.VerdictJump, chainResolver),
		join(rule{
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(routeLocal)},
		}, refused()),
		join(destination4(), rule{&expr.Lookup{SourceRegister: 1, SetName: setPrivate4}}, refused()),
		join(destination6(), rule{&expr.Lookup{SourceRegister: 1, SetName: setPrivate6}}, refused()),
		verdict(expr.VerdictAccept, ""),
	}
}

// all accepts all but other sandboxes.
func (r ruleset) all() []rule {
	rules := []rule{verdict(expr.VerdictJump, chainResolver)}
	for _, p := range []netip.Prefix{r.pool.v4, r.pool.v6} {
		if p.IsValid() {
			rules = append(rules, join(isIn(p), refused()))
		}
	}
	return append(rules, verdict(expr.VerdictAccept, ""))
}

// relayed turns questions to the gateway to the relay's port: another program may have port 53 of all addresses.
func (r ruleset) relayed() []rule {
	var rules []rule
	for _, gateway := range r.gateways() {
		family := uint32(unix.NFPROTO_IPV4)
		if gateway.Is6() {
			family = unix.NFPROTO_IPV6
		}
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rules = append(rules, join(r.from(), isTo(gateway), toPort(protocol, dnsPort), rule{
				&expr.Immediate{Register: 1, Data: gateway.AsSlice()},
				&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(r.relay)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
			}))
		}
	}
	return rules
}

// gateways are the node's own addresses in the pool.
func (r ruleset) gateways() []netip.Addr {
	v4, v6 := r.pool.of(gatewaySlot)
	if !v6.IsValid() {
		return []netip.Addr{v4}
	}
	return []netip.Addr{v4, v6}
}

func (r ruleset) from() rule { return named(expr.MetaKeyIIFNAME, r.prefix) }
func (r ruleset) to() rule   { return named(expr.MetaKeyOIFNAME, r.prefix) }

// sets returns the sets of the table and their elements.
func (r ruleset) sets(t *nftables.Table) map[*nftables.Set][]nftables.SetElement {
	networks4, networks6 := append(private4(), r.pool.v4), private6()
	if r.pool.v6.IsValid() {
		networks6 = append(networks6, r.pool.v6)
	}
	return map[*nftables.Set][]nftables.SetElement{
		{Table: t, Name: setPrivate4, KeyType: nftables.TypeIPAddr, Interval: true}:  intervals(networks4),
		{Table: t, Name: setPrivate6, KeyType: nftables.TypeIP6Addr, Interval: true}: intervals(networks6),
	}
}

func ifName(name string) []byte {
	key := make([]byte, ifNameSize)
	copy(key, name)
	return key
}

func intervals(networks []netip.Prefix) []nftables.SetElement {
	var all []nftables.SetElement
	for _, s := range spans(networks) {
		all = append(all, nftables.SetElement{Key: s.first.AsSlice()})
		if s.end.IsValid() {
			all = append(all, nftables.SetElement{Key: s.end.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// linkName is the host's end of a slot's veth.
func linkName(prefix string, slot int) string { return fmt.Sprintf("%s%05x", prefix, slot) }

func join(parts ...rule) rule {
	var all rule
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func verdict(kind expr.VerdictKind, chain string) rule {
	return rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

func refused() rule { return verdict(expr.VerdictGoto, chainRefuse) }

// named matches interfaces whose names begin with prefix: fewer bytes are compared than there are.
func named(key expr.MetaKey, prefix string) rule {
	return rule{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}}
}

func ifState(bits uint32) rule     { return state(bits, expr.CmpOpNeq) }
func unlessState(bits uint32) rule { return state(bits, expr.CmpOpEq) }

func state(bits uint32, op expr.CmpOp) rule {
	return rule{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

// destination4, destination6 load where a packet of the family goes.
func destination4() rule { return destination(unix.NFPROTO_IPV4, 16, 4) }
func destination6() rule { return destination(unix.NFPROTO_IPV6, 24, 16) }

func destination(family byte, offset, length uint32) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
	}
}

func destinationLike(a netip.Addr) rule {
	if a.Is4() {
		return destination4()
	}
	return destination6()
}

func isTo(a netip.Addr) rule {
	return join(destinationLike(a), rule{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}})
}

func isIn(p netip.Prefix) rule {
	size := len(p.Addr().AsSlice())
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return join(destinationLike(p.Addr()), rule{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	})
}

func toPort(protocol byte, port uint16) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}
