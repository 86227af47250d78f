package fleet

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (v fakeView) Secret(_, name string) (*statev1.SecretRecord, bool) {
	r, ok := v.secrets[name]
	return r, ok
}

func (v fakeView) SecretsRevision(_ string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string) {
	for _, name := range slices.Concat(slices.Collect(maps.Values(c.GetSecretEnvironment())), c.GetSecretFiles()) {
		r, ok := v.secrets[name]
		if !ok {
			return 0, name
		}
		revision = max(revision, r.GetSecret().GetValueRevision())
	}
	return revision, ""
}

// setSecret gives a secret a value; the fake's sealing turns it around.
func (s *fakeState) setSecret(name, value string, revision uint64) {
	sealed := []byte(value)
	slices.Reverse(sealed)
	s.change(func(v *fakeView) {
		v.secrets[name] = &statev1.SecretRecord{Secret: &mayflyv1.Secret{Name: name, ValueRevision: revision}, SealedValue: sealed}
	})
}

func openFake(r *statev1.SecretRecord) ([]byte, error) {
	value := slices.Clone(r.GetSealedValue())
	slices.Reverse(value)
	if string(value) == "broken" {
		return nil, errors.New("sealed by another key")
	}
	return value, nil
}

// secretive is a function with a secret as a variable and another as a file.
func secretive() *mayflyv1.Function {
	fn := active("f", 128)
	fn.Configuration.SecretEnvironment, fn.Configuration.SecretFiles = map[string]string{"DB": "db"}, []string{"cert"}
	return fn
}

// ask is what a router would ask for now.
func (h *home) ask(fn *mayflyv1.Function) *agentv1.SandboxSpec {
	spec := specOf(fn)
	spec.SecretsRevision, _ = h.state.View().SecretsRevision("default", fn.GetConfiguration())
	return spec
}

// spec is what a live sandbox was started with.
func (w *fakeWorker) spec(l *Lease) *agentv1.SandboxSpec {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live[l.SandboxID()]
}

func newSecretHome(t *testing.T) *home {
	h := newHome(t, func(c *Config) { c.OpenSecret = openFake })
	h.state.setSecret("db", "p4ss", 3)
	h.state.setSecret("cert", "c3rt", 4)
	h.state.put(secretive())
	return h
}

func TestSandboxesStartWithTheirSecrets(t *testing.T) {
	h := newSecretHome(t)
	w, _ := h.attach("a", 1000)
	asked := h.ask(secretive())
	l, _, err := h.Acquire(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	got := w.spec(l)
	if got.GetSecretEnvironment()["DB"] != "p4ss" || string(got.GetSecretFiles()["cert"]) != "c3rt" || got.GetSecretsRevision() != 4 {
		t.Errorf("the agent got %v", got)
	}
	if len(asked.GetSecretEnvironment())+len(asked.GetSecretFiles()) > 0 {
		t.Error("the router's spec was given the values")
	}
	h.state.put(active("plain", 128))
	plain := h.acquire(active("plain", 128))
	if spec := w.spec(plain); len(spec.GetSecretEnvironment())+len(spec.GetSecretFiles()) > 0 {
		t.Errorf("a function without secrets got %v", spec)
	}
}

// A changed value retires sandboxes as new code does: the idle ones at once, the leased ones when they are given back.
func TestChangedSecretRetiresSandboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newSecretHome(t)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		old := h.ask(secretive())
		used, _, err := h.Acquire(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		unused, _, err := h.Acquire(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		unused.Release()
		h.state.setSecret("db", "n3w", 9)
		if _, _, err := h.Acquire(t.Context(), old); !fault.Is(err, sandboxGone) {
			t.Errorf("a sandbox with the old value was granted: %v", err)
		}
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 1 || used.Usable() {
			t.Errorf("%d live after the change, the leased one usable: %v", live, used.Usable())
		}
		used.Release()
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d live after the release", live)
		}
		fresh, _, err := h.Acquire(t.Context(), h.ask(secretive()))
		if err != nil {
			t.Fatal(err)
		}
		if got := w.spec(fresh); got.GetSecretEnvironment()["DB"] != "n3w" {
			t.Errorf("after the change: %v", got)
		}
	})
}

func TestDeletedSecretRetiresSandboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newSecretHome(t)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		old := h.ask(secretive())
		l, _, err := h.Acquire(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
		// Not the one with the largest revision: that alone must not matter.
		h.state.change(func(v *fakeView) { delete(v.secrets, "db") })
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d live without the secret", live)
		}
		if _, _, err := h.Acquire(t.Context(), old); !fault.Is(err, sandboxGone) {
			t.Errorf("a sandbox without its secret was granted: %v", err)
		}
	})
}

// A sandbox that lived before the session goes on if its secrets are those of now.
func TestAdoptedSandboxKeepsItsSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newSecretHome(t)
		defer h.run()()
		status := func(id string, secrets uint64) *agentv1.SandboxStatus {
			return &agentv1.SandboxStatus{
				SandboxId: id, State: agentv1.SandboxState_SANDBOX_STATE_IDLE, Namespace: "default", Function: "f", Version: latest,
				CodeRevision: 1, SecretsRevision: secrets, MemoryBytes: 128 * mib,
			}
		}
		w, _ := h.attach("a", 1000, status("good", 4), status("stale", 3))
		h.state.put(active("other", 128)) // adopted ones are looked at after the next change
		time.Sleep(time.Second)
		w.mu.Lock()
		destroyed := slices.Clone(w.destroyed)
		w.mu.Unlock()
		if !slices.Equal(destroyed, []string{"stale"}) {
			t.Errorf("destroyed %v", destroyed)
		}
		l, _, err := h.Acquire(t.Context(), h.ask(secretive()))
		if err != nil || l.SandboxID() != "good" {
			t.Errorf("%v, %v", l, err)
		}
	})
}

// A value that can't be opened is this node's fault, and is in no error.
func TestUnreadableSecret(t *testing.T) {
	h := newSecretHome(t)
	w, _ := h.attach("a", 1000)
	h.state.setSecret("db", "broken", 9)
	_, _, err := h.Acquire(t.Context(), h.ask(secretive()))
	if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL) || !strings.Contains(fault.From(err).Message, `"db"`) {
		t.Errorf("%v", err)
	}
	if w.created != 0 || len(h.limits.functions) != 0 {
		t.Errorf("%d sandboxes were made, leases counted: %v", w.created, h.limits.functions)
	}
}
