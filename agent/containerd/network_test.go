package containerd

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"

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
