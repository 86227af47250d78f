package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses in the networks of the tests; none of them is anywhere else.
const (
	hostAddress   = "203.0.113.2"
	publicAddress = "203.0.113.80"
	cloudMetadata = "169.254.169.254"
	privateServer = "10.9.0.1"
	publicName    = "public.test"
)

// inOwnNetwork is set in the environment of the process that runs the tests.
const inOwnNetwork = "MAYFLY_E2E_IN_OWN_NETWORK"

// runApart runs the tests in network and mount namespaces of their own, which play the host: Mayfly changes nothing of the
// machine's network, and no packet of a function leaves the machine.
func runApart() (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inOwnNetwork+"=1", "MAYFLY_BIN="+binary, "MAYFLY_RUNTIMES_DIR="+runtimesDir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// networks are what is beyond the host: another network namespace with servers.
type networks struct{ ns netns.NsHandle }

func makeOutside() (*networks, error) {
	home, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	n := &networks{}
	runtime.LockOSThread()
	n.ns, err = netns.New()
	if err = errors.Join(err, netns.Set(home)); err != nil {
		return nil, err // with the thread
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "up"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "up", PeerNamespace: netlink.NsFd(n.ns)}); err != nil {
		return nil, err
	}
	if err := netns.Set(n.ns); err != nil {
		return nil, err
	}
	err = errors.Join(
		configure("lo", cloudMetadata+"/32", privateServer+"/32", "10.9.0.53/32"), configure("up", "203.0.113.1/24", publicAddress+"/24"),
		serve("tcp", ":80"), serveDNS("10.9.0.53:53"),
	)
	if err = errors.Join(err, netns.Set(home)); err != nil {
		return nil, err
	}
	runtime.UnlockOSThread()
	if err := errors.Join(configure("lo"), configure("up", hostAddress+"/24")); err != nil {
		return nil, err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("203.0.113.1")}); err != nil {
		return nil, err
	}
	return n, useResolver("10.9.0.53")
}

func configure(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give %s to %s: %w", text, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// useResolver gives the host of the tests a resolver. Only processes with this one's mount namespace see it.
func useResolver(ip string) error {
	f, err := os.CreateTemp("", "resolv-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the mount keeps it
	_, err = io.WriteString(f, "nameserver "+ip+"\n")
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return unix.Mount(f.Name(), "/etc/resolv.conf", "", unix.MS_BIND, "")
}

// serve greets whoever connects, until the process ends.
func serve(network, address string) error {
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "reached")
			_ = conn.Close()
		}
	}()
	return nil
}

// serveDNS says that any name is publicAddress, and has no IPv6.
func serveDNS(address string) error {
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 1024)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(answer(b[:n]), from)
		}
	}()
	return nil
}

// nothingLeft is an error if `mayfly down` has left something of a network on the host.
func (n *networks) nothingLeft() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var left []string
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != "up" {
			left = append(left, "interface "+name)
		}
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		left = append(left, "table "+t.Name)
	}
	forwarding, err := os.ReadFile("/proc/sys/net/ipv4/conf/up/forwarding")
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(forwarding)) != "0" {
		left = append(left, "forwarding")
	}
	if len(left) > 0 {
		return fmt.Errorf("mayfly down has left %q", left)
	}
	return n.ns.Close()
}
