package containerd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Addresses of the networks that tests make around their host. They are nowhere outside of them.
const (
	publicName = "public.test."
	public4    = "203.0.113.80"
	public6    = "2001:db8:7::80"
	lan4       = "10.9.0.1"
	lan6       = "fd00:9::1"
	resolver   = "10.9.0.53"
	cloudData  = "169.254.169.254"

	host4, host6       = "203.0.113.2", "2001:db8:1::2"
	hostLAN4, hostLAN6 = "10.9.0.2", "fd00:9::2"

	worldPort, hostPort = "80", "8080"
)

// world is a network namespace beyond the host: its Internet and its private network.
type world struct {
	ns      netns.NsHandle
	closers []io.Closer
	// datagrams are what its sink has got.
	datagrams chan string
	// before is what the host was like.
	before string
}

// makeWorld joins the network namespace of this process, which is new, to another one, and starts servers in both.
func makeWorld(dir string) (w *world, err error) {
	w = &world{datagrams: make(chan string, 16)}
	if err := w.join(); err != nil {
		return nil, err
	}
	if err := w.serveHost(); err != nil {
		return nil, err
	}
	if err := w.in(w.serve); err != nil {
		return nil, err
	}
	if err := awaitAll(public4, public6, lan4, lan6); err != nil {
		return nil, err
	}
	// Seen by this process and its children alone: they have a mount namespace of their own.
	path := filepath.Join(dir, "host-resolv.conf")
	if err := os.WriteFile(path, []byte("# of the host\nnameserver "+resolver+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := unix.Mount(path, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	// A rule of somebody else's, which must be there in the end.
	theirs := &nftables.Conn{}
	theirs.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
	if err := theirs.Flush(); err != nil {
		return nil, err
	}
	w.before, err = hostNetwork()
	return w, err
}

// asBefore is an error if something of the network was left on the host.
func (w *world) asBefore() error {
	after, err := hostNetwork()
	if err == nil && after != w.before {
		err = fmt.Errorf("the host's network was\n%s\nand is\n%s", w.before, after)
	}
	return err
}

// hostNetwork describes all that a Mayfly might change.
func hostNetwork() (string, error) {
	var all []string
	links, err := netlink.LinkList()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		all = append(all, "interface "+l.Attrs().Name)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		if r.Dst.IP.To4() == nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue // the kernel's own, which come when they like
		}
		all = append(all, fmt.Sprintf("route to %v by %v in %d", r.Dst, r.Gw, r.Table))
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		return "", err
	}
	for _, t := range tables {
		all = append(all, "table "+t.Name)
	}
	for _, pattern := range []string{"ipv4/conf/*/forwarding", "ipv6/conf/*/forwarding", "ipv6/conf/*/force_forwarding", "ipv6/conf/*/accept_ra"} {
		settings, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil {
			return "", err
		}
		for _, path := range settings {
			b, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			all = append(all, path+" "+strings.TrimSpace(string(b)))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n"), nil
}

func (w *world) close() {
	for _, c := range w.closers {
		_ = c.Close()
	}
	_ = unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH)
	_ = w.ns.Close()
}

// in runs f in the world's network namespace.
func (w *world) in(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(w.ns); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(home); back != nil {
		return errors.Join(err, back) // the thread ends with the goroutine
	}
	runtime.UnlockOSThread()
	return err
}

func (w *world) join() error {
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	runtime.LockOSThread()
	w.ns, err = netns.New()
	err = errors.Join(err, netns.Set(home))
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	for _, name := range []string{"up", "lan"} {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: name, PeerNamespace: netlink.NsFd(w.ns)}); err != nil {
			return err
		}
	}
	err = w.in(func() error {
		return configure(map[string][]string{
			"lo": {cloudData + "/32", "192.168.7.7/32", "10.1.2.3/32", "172.16.9.9/32", "198.18.0.9/32", "64:ff9b::a01:203/128", public6 + "/128"},
			"up": {"203.0.113.1/24", public4 + "/24", "2001:db8:1::1/64"}, "lan": {lan4 + "/24", resolver + "/24", lan6 + "/64"},
		}, host4, host6)
	})
	if err != nil {
		return err
	}
	return configure(map[string][]string{
		"lo": nil, "up": {host4 + "/24", host6 + "/64"}, "lan": {hostLAN4 + "/24", hostLAN6 + "/64"},
	}, "203.0.113.1", "2001:db8:1::1")
}

// configure gives interfaces their addresses, and default routes by two gateways.
func configure(interfaces map[string][]string, gateways ...string) error {
	for name, addresses := range interfaces {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("give %s to %s: %w", text, name, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	for _, g := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(g)}); err != nil {
			return fmt.Errorf("route by %s: %w", g, err)
		}
	}
	return nil
}

// awaitAll waits until the host reaches the world's addresses: IPv6 takes a moment.
func awaitAll(ips ...string) error {
	for _, ip := range ips {
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, worldPort), time.Second)
			if err == nil {
				conn.Close()
				break
			}
			if time.Now().After(end) {
				return err
			}
		}
	}
	return nil
}

// serveHost is a service of the host that only it should see.
func (w *world) serveHost() error { return w.greet(hostPort, "host") }

func (w *world) serve() error {
	if err := w.greet(worldPort, "world"); err != nil {
		return err
	}
	sink, err := net.ListenPacket("udp", ":9")
	if err != nil {
		return err
	}
	questions, err := net.ListenPacket("udp", net.JoinHostPort(resolver, "53"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(resolver, "53"))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, sink, questions, l)
	go w.swallow(sink)
	go answerPackets(questions)
	go answerStreams(l)
	return nil
}

// greet tells who asks from where.
func (w *world) greet(port, name string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, l)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			fmt.Fprintf(conn, "%s sees %s", name, from)
			_ = conn.Close()
		}
	}()
	return nil
}

func (w *world) swallow(p net.PacketConn) {
	b := make([]byte, 256)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(from.String())
		w.datagrams <- string(b[:n]) + " from " + host
	}
}

func answerPackets(p net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(answer(b[:n]), from)
	}
}

func answerStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 4096)
		n, _ := io.ReadAtLeast(conn, b, 14)
		reply := answer(b[2:max(2, n)])
		_, _ = conn.Write(append([]byte{byte(len(reply) >> 8), byte(len(reply))}, reply...))
		_ = conn.Close()
	}
}

// answer knows one name.
func answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) == 0 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	switch {
	case q.Name.String() != publicName:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte(net.ParseIP(public4).To4())}}}
	case q.Type == dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(net.ParseIP(public6))}}}
	}
	packed, _ := m.Pack()
	return packed
}
