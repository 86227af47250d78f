package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	// insideName is the sandbox's end of its veth.
	insideName = "eth0"
	defaultMTU = 1500
	// routeProtocol marks the routes that Mayfly makes (`ip route show proto 109 table all`); their metric tells the instance.
	routeProtocol  = 109
	genModeNone    = 1 // IN6_ADDR_GEN_MODE_NONE
	maxRouteMetric = 1<<31 - 1
)

// Both ends know each other's addresses, which are the same for all: nobody has to ask. They are locally administered.
func hostMAC() net.HardwareAddr    { return net.HardwareAddr{0x02, 'm', 'a', 'y', 'f', 0x01} }
func sandboxMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 'm', 'a', 'y', 'f', 0x02} }

// host changes the interfaces and routes of the network namespace in which it was made.
type host struct {
	*netlink.Handle
	prefix    string
	metric    int
	condemned int // a group
}

func openHost(instance string) (*host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel about interfaces: %w", err)
	}
	return &host{
		Handle: h, prefix: LinkPrefix(instance), metric: int(hash(instance) & maxRouteMetric), condemned: int(groupCondemned | hash(instance)>>8),
	}, nil
}

// LinkPrefix begins the names of an instance's interfaces.
func LinkPrefix(instance string) string { return fmt.Sprintf("mf%06x", hash(instance)>>8) }

// use is what the host's addresses and routes say.
type use struct {
	taken  []netip.Prefix // by others
	before netip.Prefix   // the pool of an earlier process of this instance
	ours   []netlink.Route
	// uplinks are interfaces with routes of others.
	uplinks []string
	mtu     int  // of the way to the Internet
	v6      bool // there is an address beyond the link
}

func (h *host) look() (*use, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addresses, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	u := &use{mtu: defaultMTU}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	for _, r := range routes {
		u.addRoute(h, r, byIndex[r.LinkIndex])
	}
	for _, a := range addresses {
		ip, _ := netip.AddrFromSlice(a.IP)
		u.v6 = u.v6 || ip.Unmap().Is6() && ip.IsGlobalUnicast()
		u.taken = append(u.taken, prefixOf(a.IPNet))
	}
	slices.Sort(u.uplinks)
	u.uplinks = slices.Compact(u.uplinks)
	return u, nil
}

func (u *use) addRoute(h *host, r netlink.Route, link netlink.Link) {
	to := prefixOf(r.Dst)
	if r.Protocol == routeProtocol && r.Priority == h.metric {
		u.ours = append(u.ours, r)
		if r.Type == unix.RTN_UNREACHABLE && to.Addr().Is4() {
			u.before = to
		}
		return
	}
	if link != nil && strings.HasPrefix(link.Attrs().Name, h.prefix) {
		return
	}
	if to.IsValid() && to.Bits() > 0 {
		u.taken = append(u.taken, to)
	}
	if link == nil || r.Table != unix.RT_TABLE_MAIN || r.Protocol == routeProtocol || link.Attrs().Flags&net.FlagLoopback != 0 {
		return
	}
	u.uplinks = append(u.uplinks, link.Attrs().Name)
	if to.Bits() <= 0 {
		u.mtu = link.Attrs().MTU
	}
}

// prefixOf is invalid for nil, which stands for everything.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones).Masked()
}

// hold makes the routes of the pool: the node answers at the gateways, and what no sandbox has leads nowhere rather than
// to the host's router. They also tell other Mayflies that the pool is taken.
func (h *host) hold(pool *addresses) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	gateway4, gateway6 := pool.of(gatewaySlot)
	for _, p := range []struct {
		pool    netip.Prefix
		gateway netip.Addr
	}{{pool.v4, gateway4}, {pool.v6, gateway6}} {
		if !p.pool.IsValid() {
			continue
		}
		for _, r := range []netlink.Route{
			{Dst: ipNet(p.pool), Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN},
			{Dst: single(p.gateway), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST, LinkIndex: lo.Attrs().Index},
		} {
			r.Protocol, r.Priority = routeProtocol, h.metric
			if err := h.RouteReplace(&r); err != nil {
				return fmt.Errorf("make the route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func (h *host) removeRoutes(ours []netlink.Route) error {
	for _, r := range ours {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// slots are those whose interfaces are there.
func (h *host) slots() ([]int, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []int
	for _, l := range links {
		number, ours := strings.CutPrefix(l.Attrs().Name, h.prefix)
		if slot, err := strconv.ParseUint(number, 16, 31); ours && err == nil {
			all = append(all, int(slot))
		}
	}
	return all, nil
}

// removeLinks removes the interfaces of slots at once, by making them a group: removing one takes the kernel tens of milliseconds,
// in which nobody else may make an interface, and removing many takes as long.
func (h *host) removeLinks(slots []int) error {
	found := false
	for _, slot := range slots {
		name := linkName(h.prefix, slot)
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetGroup(link, h.condemned)
		}
		// The kernel removes it, too, once the sandbox's network namespace has ended.
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove interface %s: %w", name, err)
		}
		found = true
	}
	if !found {
		return nil
	}
	r := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(uint32(h.condemned))))
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %d interfaces: %w", len(slots), err)
	}
	return nil
}

// makeLink makes a veth from the host to a network namespace, with everything at both ends and a policy. It returns the index
// of the host's end.
func (h *host) makeLink(slot int, pool *addresses, policy sandbox.Egress, mtu int, inside *os.File) (index int, err error) {
	v4, v6 := pool.of(slot)
	name := linkName(h.prefix, slot)
	veth := netlink.NewLinkAttrs()
	veth.Name, veth.MTU, veth.HardwareAddr, veth.Group = name, mtu, hostMAC(), uint32(groupOf(policy))
	link := &netlink.Veth{
		LinkAttrs: veth, PeerName: insideName, PeerHardwareAddr: sandboxMAC(), PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(int(inside.Fd())),
	}
	if err := h.LinkAdd(link); err != nil {
		return 0, fmt.Errorf("make interface %s: %w", name, err)
	}
	if err := h.outerEnd(link, v4, v6); err != nil {
		return 0, fmt.Errorf("set up interface %s: %w", name, err)
	}
	gateway4, gateway6 := pool.of(gatewaySlot)
	if err := innerEnd(inside, [][2]netip.Addr{{v4, gateway4}, {v6, gateway6}}); err != nil {
		return 0, fmt.Errorf("set up the sandbox's end of interface %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// setPolicy changes the group of the interface with an index.
func (h *host) setPolicy(index int, policy sandbox.Egress) error {
	return h.LinkSetGroup(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: index}}, groupOf(policy))
}

func (h *host) outerEnd(link netlink.Link, v4, v6 netip.Addr) error {
	name := link.Attrs().Name
	if v6.IsValid() {
		// No address of its own: there is nothing to be reached at.
		if err := h.LinkSetIP6AddrGenMode(link, genModeNone); err != nil {
			return err
		}
		if force := kernel.v6(name, "force_forwarding"); exists(force) {
			if err := set(force, "1"); err != nil {
				return err
			}
		}
	}
	if err := set(kernel.v4(name, "forwarding"), "1"); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, ip := range []netip.Addr{v4, v6} {
		if !ip.IsValid() {
			continue
		}
		if err := h.NeighSet(neighbour(link, ip, sandboxMAC())); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(ip), Scope: unix.RT_SCOPE_LINK, Protocol: routeProtocol}
		if err := h.RouteAdd(route); err != nil {
			return err
		}
	}
	return nil
}

// innerEnd sets up the end inside: pairs of an address and the gateway of its family.
func innerEnd(inside *os.File, addresses [][2]netip.Addr) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(inside.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(insideName)
	if err != nil {
		return err
	}
	if err := h.LinkSetIP6AddrGenMode(link, genModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addresses {
		if !a[0].IsValid() {
			continue
		}
		if err := reach(h, link, a[0], a[1]); err != nil {
			return err
		}
	}
	return nil
}

func reach(h *netlink.Handle, link netlink.Link, ip, gateway netip.Addr) error {
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: single(ip), Flags: unix.IFA_F_NODAD}); err != nil {
		return err
	}
	if err := h.NeighSet(neighbour(link, gateway, hostMAC())); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: unix.RTNH_F_ONLINK})
}

func neighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
}

func single(ip netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(ip, ip.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
