package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/containerd/egress"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

func tcp(ip string) string { return "tcp/" + net.JoinHostPort(ip, worldPort) }

// reached runs the probe under a policy, and returns what it said of each target.
func reached(t *testing.T, policy sandbox.Egress, targets ...string) map[string]string {
	t.Helper()
	out := run(t, func(c *sandbox.Config) { c.Egress = policy }, append([]string{"reach"}, targets...)...)
	var found map[string]string
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != len(targets) {
		t.Fatalf("%v: %s", err, out)
	}
	return found
}

func public() map[string]string {
	return map[string]string{
		tcp(public4): "ok world sees " + host4, tcp(public6): "ok world sees " + host6,
		"lookup/" + publicName: "ok ", "lookup-tcp/" + publicName: "ok ",
	}
}

// private are addresses that answer the host, and that the policy internet refuses.
func private() []string {
	var all []string
	for _, ip := range []string{lan4, lan6, cloudData, "192.168.7.7", "10.1.2.3", "172.16.9.9", "198.18.0.9", "64:ff9b::a01:203"} {
		all = append(all, tcp(ip))
	}
	return append(all, "udp/"+net.JoinHostPort(resolver, "53"))
}

func ofHost() []string {
	gateway := shared.runtime.network.Pool().Addr().Next().String()
	var all []string
	for _, ip := range []string{host4, host6, hostLAN4, hostLAN6, gateway} {
		all = append(all, "tcp/"+net.JoinHostPort(ip, hostPort))
	}
	return all
}

func TestEgressInternet(t *testing.T) {
	expected := public()
	refused := slices.Concat(private(), ofHost(), []string{"tcp/127.0.0.1:" + hostPort, "lookup/unknown.test."})
	for target, said := range reached(t, sandbox.EgressInternet, append(refused, targets(expected)...)...) {
		if want, good := expected[target]; good {
			if !strings.HasPrefix(said, want) {
				t.Errorf("%s: %s, want %s", target, said, want)
			}
			continue
		}
		wantRefused(t, target, said)
	}
}

func TestEgressNone(t *testing.T) {
	all := slices.Concat(targets(public()), private(), ofHost())
	for target, said := range reached(t, sandbox.EgressNone, all...) {
		wantRefused(t, target, said)
	}
}

func TestEgressAll(t *testing.T) {
	good := slices.Concat(targets(public()), private()[:len(private())-1], ofHost()[:4])
	for target, said := range reached(t, sandbox.EgressAll, good...) {
		if !strings.HasPrefix(said, "ok ") {
			t.Errorf("%s: %s", target, said)
		}
	}
}

func targets(m map[string]string) []string {
	var all []string
	for t := range m {
		all = append(all, t)
	}
	return all
}

// wantRefused wants an answer that came at once, not silence: a function that waits for its time limit learns nothing.
func wantRefused(t *testing.T, target, said string) {
	t.Helper()
	if strings.HasPrefix(said, "ok ") {
		t.Errorf("%s was reached: %s", target, said)
	}
	if strings.Contains(said, "timeout") || strings.Contains(said, "deadline") {
		t.Errorf("%s was not refused, but not answered either: %s", target, said)
	}
}

// addresses are those that the host routes to a sandbox.
func addresses(t *testing.T, id string) (all []string) {
	t.Helper()
	for _, name := range interfaces(t, shared.runtime) {
		if !strings.HasSuffix(name, fmt.Sprintf("%05x", shared.runtime.boxes[id].slot)) {
			continue
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(link, family)
			if err != nil || len(routes) != 1 {
				t.Fatalf("routes of %s: %v, %v", name, routes, err)
			}
			all = append(all, routes[0].Dst.IP.String())
		}
	}
	if len(all) != 2 {
		t.Fatalf("sandbox %s has addresses %q", id, all)
	}
	return all
}

// interfaces are the names of those that an instance has on the host.
func interfaces(t *testing.T, r *Runtime) (all []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	prefix := egress.LinkPrefix(r.cfg.InstanceID)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			all = append(all, l.Attrs().Name)
		}
	}
	return all
}

func TestNobodyReachesASandbox(t *testing.T) {
	const port = "9000"
	c := probe(t, "serve", port)
	c.Egress = sandbox.EgressAll
	server := start(t, shared.runtime, c)
	var theirs []string
	for _, ip := range addresses(t, server.ID) {
		at := net.JoinHostPort(ip, port)
		theirs = append(theirs, "tcp/"+at)
		// It does listen, and the host may know.
		eventually(t, "the sandbox listens at "+at, func() bool {
			conn, err := net.DialTimeout("tcp", at, time.Second)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	for _, policy := range []sandbox.Egress{sandbox.EgressInternet, sandbox.EgressAll, sandbox.EgressNone} {
		for target, said := range reached(t, policy, theirs...) {
			wantRefused(t, string(policy)+" "+target, said)
		}
	}
	if err := shared.world.in(func() error { return routeTo(shared.runtime.network.Pool(), host4) }); err != nil {
		t.Fatal(err)
	}
	err := shared.world.in(func() error {
		_, err := net.DialTimeout("tcp", strings.TrimPrefix(theirs[0], "tcp/"), time.Second)
		return err
	})
	if err == nil {
		t.Errorf("the world reached %s", theirs[0])
	}
}

func routeTo(p netip.Prefix, gateway string) error {
	to := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
	return netlink.RouteReplace(&netlink.Route{Dst: to, Gw: net.ParseIP(gateway)})
}

func TestForgedSourcesAreDropped(t *testing.T) {
	other := start(t, shared.runtime, probe(t, "sleep"))
	out := run(t, nil, "spoof", addresses(t, other.ID)[1], net.JoinHostPort(public6, "9"))
	if out != "<nil>" {
		t.Fatalf("the probe could not send: %s", out)
	}
	// Datagrams on one way keep their order: what comes first was not dropped.
	select {
	case got := <-shared.world.datagrams:
		if got != "honest from "+host6 {
			t.Errorf("the world got %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("the world got nothing, not even what was honest")
	}
}

func TestSandboxCIDR(t *testing.T) {
	for _, text := range []string{"10.9.0.0/16", "203.0.113.0/28", "fd00::/64", "x"} {
		cfg := shared.config("refused")
		cfg.SandboxCIDR = text
		r, err := New(cfg)
		if err == nil {
			r.Close()
		}
		if !errors.Is(err, egress.ErrConfig) {
			t.Errorf("%s: %v", text, err)
		}
		if err := Stop(t.Context(), cfg); err != nil {
			t.Error(err)
		}
	}
	cfg := ownHost(t, "chosen", "")
	cfg.SandboxCIDR = "10.200.1.0/28"
	r, end := agentProcess(t, cfg)
	t.Cleanup(end)
	if r.network.Pool() != netip.MustParsePrefix("10.200.1.0/28") {
		t.Errorf("the pool is %s", r.network.Pool())
	}
	c := probe(t, "reach", tcp(public4))
	if out := start(t, r, c).output(); !strings.Contains(out, "world sees "+host4) {
		t.Errorf("reached %s", out)
	}
}

// strayInterface is one that a process of the instance left when it died half-way.
func strayInterface(t *testing.T, r *Runtime) string {
	t.Helper()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = egress.LinkPrefix(r.cfg.InstanceID) + "00fff"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "stray"}); err != nil {
		t.Fatal(err)
	}
	return attributes.Name
}

// checkAdopted wants the interfaces of sandboxes that a later process found to be there, and no stray one.
func checkAdopted(t *testing.T, r *Runtime, stray string, ids ...string) {
	t.Helper()
	names := interfaces(t, r)
	if slices.Contains(names, stray) {
		t.Errorf("interface %s was not removed", stray)
	}
	for _, id := range ids {
		number := fmt.Sprintf("%05x", r.boxes[id].slot)
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, number) }) {
			t.Errorf("sandbox %s has lost its interface", id)
		}
	}
}

// withoutNetAdmin runs f on a thread that may not change networks.
func withoutNetAdmin(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, fewer [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	fewer = all
	fewer[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &fewer[0]); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.Capset(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutPermissionOnlyNoneRuns(t *testing.T) {
	cfg := ownHost(t, "no-network", "")
	var r *Runtime
	var err error
	withoutNetAdmin(t, func() { r, err = New(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.EgressError(); !errors.Is(err, unix.EPERM) {
		t.Fatalf("the reason is %v", err)
	}
	for _, policy := range []sandbox.Egress{sandbox.EgressInternet, sandbox.EgressAll} {
		c := probe(t, "sleep")
		c.Egress = policy
		if err := r.Create(t.Context(), c); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), string(policy)) {
			t.Errorf("%s: %v, want the reason", policy, err)
		}
	}
	c := probe(t, "reach", tcp(public4))
	c.Egress = sandbox.EgressNone
	b := launch(t, r, c)
	if out := b.output(); strings.Contains(out, "ok ") || !strings.Contains(out, "unreachable") {
		t.Errorf("none: %s", out)
	}
	if err := r.Destroy(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
}
