package agent

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// containers makes a function that answers the id of its container; "wait" waits for the gate, "die" ends the process.
func containers(gate chan struct{}) *runtimetest.Fake {
	return &runtimetest.Fake{Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, event []byte) runtimetest.FakeAnswer {
		switch string(event) {
		case "wait":
			<-gate
		case "die":
			p.Exit(1, false)
		}
		return runtimetest.FakeAnswer{Result: []byte(p.Config.ID)}
	}}
}

// ranIn is the container in which an invocation of a sandbox by that name ran.
func (n *node) ranIn(name, payload string) string {
	n.t.Helper()
	resp, err := n.call(name, payload)
	if err != nil {
		n.t.Fatalf("%s of %s: %v", payload, name, err)
	}
	return string(resp.GetPayload())
}

func TestAnInvocationGetsTheSandboxUsedLast(t *testing.T) {
	gate := make(chan struct{})
	n := newNode(t, containers(gate), nil)
	a, b := n.create(nil), n.create(nil)
	hot := n.ranIn(a, "") // the youngest is the one used last, at first
	for _, name := range []string{b, a, b, a, a} {
		if got := n.ranIn(name, ""); got != hot {
			t.Errorf("%s ran in %s, used last was %s", name, got, hot)
		}
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if got := n.ranIn(b, "wait"); got != hot {
			t.Errorf("%s waited in %s, used last was %s", b, got, hot)
		}
	})
	for n.running.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if got := n.ranIn(a, ""); got == hot {
		t.Errorf("two ran in %s at once", hot)
	}
	close(gate)
	waiting.Wait()
}

func TestVersionsDoNotShareSandboxes(t *testing.T) {
	n := newNode(t, containers(nil), nil)
	one := n.create(nil)
	for i, change := range []func(*agentv1.SandboxSpec){
		func(s *agentv1.SandboxSpec) { s.Version = "2" },
		func(s *agentv1.SandboxSpec) { s.CodeRevision = 9 },
		func(s *agentv1.SandboxSpec) { s.SecretsRevision = 9 },
		func(s *agentv1.SandboxSpec) { s.Function = "g" },
		func(s *agentv1.SandboxSpec) { s.Namespace = "other" },
	} {
		other := n.create(change)
		if n.ranIn(other, "") != other || n.ranIn(one, "") != one {
			t.Errorf("change %d: a sandbox served another version", i)
		}
	}
}

// The name is what the control plane destroys, loses, and orders by grants, whichever container has it.
func TestNamesMoveWithGrants(t *testing.T) {
	n := newNode(t, containers(nil), nil)
	a, b := n.create(nil), n.create(nil)
	if got := n.ranIn(a, ""); got != b {
		t.Fatalf("%s ran in %s, not in the youngest", a, got)
	}
	r := request(a, "")
	r.Grant = &agentv1.Grant{Term: 2, Sequence: 1}
	if _, err := n.Invoke(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	n.ranIn(b, "") // takes the hot container back
	if _, err := n.call(a, ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE) {
		t.Errorf("an older grant was served: %v", err)
	}
	h := n.hello()
	var names []string
	for _, s := range h.GetSandboxes() {
		names = append(names, s.GetSandboxId())
	}
	slices.Sort(names)
	if want := []string{min(a, b), max(a, b)}; !slices.Equal(names, want) {
		t.Errorf("hello names %v, want %v", names, want)
	}
	if _, err := n.call(b, "die"); err != nil {
		t.Fatal(err)
	}
	n.plane.reported(t, b, agentv1.SandboxState_SANDBOX_STATE_GONE)
	n.gone(b)
	r.Payload = nil
	if resp, err := n.Invoke(t.Context(), r, nil); err != nil || string(resp.GetPayload()) == "" {
		t.Errorf("the other one: %v, %v", resp, err)
	}
	n.gone(b)
	_, err := n.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: a, Grant: r.GetGrant()})
	if err != nil || n.named(a) != nil || n.count() != 0 {
		t.Errorf("destroyed: %v, %d are left", err, n.count())
	}
}

// Whatever dies or is destroyed: a name is served by one container at a time and nothing is left.
func TestNamesUnderFire(t *testing.T) {
	n := newNode(t, containers(nil), nil)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			id := n.create(nil)
			for i := range 200 {
				payload := ""
				if (i+worker)%50 == 49 {
					payload = "die"
				}
				resp, err := n.call(id, payload)
				switch {
				case err != nil:
					t.Errorf("call: %v", err)
				case payload == "die" != resp.GetSandboxGone():
					t.Errorf("%q: gone %v", payload, resp.GetSandboxGone())
				case i%70 == 69:
					if _, err := n.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: &agentv1.Grant{Term: 1, Sequence: 1}}); err != nil {
						t.Errorf("destroy: %v", err)
					}
					id = n.create(nil)
				case payload == "die":
					id = n.create(nil)
				}
			}
		})
	}
	all.Wait()
	for start := time.Now(); n.count() != 8; time.Sleep(time.Millisecond) { // some are on their way out
		if time.Since(start) > 20*time.Second {
			t.Fatalf("%d sandboxes, want 8", n.count())
		}
	}
}
