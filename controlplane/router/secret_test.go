package router

import (
	"context"
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
	return &statev1.SecretRecord{Secret: &mayflyv1.Secret{Name: name, ValueRevision: r}}, ok
}

func (v fakeView) SecretsRevision(_ string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string) {
	for _, name := range c.GetSecretFiles() {
		r, ok := v.secrets[name]
		if !ok {
			return 0, name
		}
		revision = max(revision, r)
	}
	return revision, ""
}

func withSecret(fn *mayflyv1.Function) *mayflyv1.Function {
	fn.Configuration.SecretFiles = []string{"db"}
	return fn
}

func (s *fakeState) setSecret(revision uint64) {
	s.change(func(v *fakeView) { v.secrets["db"] = revision })
}

// secretsSeen makes invocations answer which revision of secrets their sandbox has.
func secretsSeen(l *fakeLease, _ *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
	return &agentv1.InvokeResponse{Payload: []byte(strings.Repeat("s", int(l.spec.GetSecretsRevision())))}, nil
}

// An invocation that begins after a change of a value never runs in a sandbox with the old one, warm as it may be.
func TestChangedSecretMeansAnotherSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.home.invoke = secretsSeen
		g.state.setSecret(3)
		g.state.put(withSecret(active("f", 1)))
		for _, want := range []string{"sss", "sss"} {
			if got := string(g.mustInvoke("f").GetPayload()); got != want {
				t.Errorf("before the change: %q", got)
			}
		}
		if acquired, _, _, _ := g.home.counts(); acquired != 1 {
			t.Errorf("%d sandboxes for an unchanged secret", acquired)
		}
		g.state.setSecret(5)
		if got := string(g.mustInvoke("f").GetPayload()); got != "sssss" {
			t.Errorf("after the change: %q", got)
		}
	})
}

// One that waited while a value changed runs with the new one.
func TestSecretChangesWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.home.invoke = secretsSeen
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Second)
			return nil, nil
		}
		g.state.setSecret(3)
		g.state.put(withSecret(active("f", 1)))
		answered := make(chan string, 1)
		go func() {
			got, err := g.invoke("f", "{}")
			if err != nil {
				t.Error(err)
			}
			answered <- got
		}()
		time.Sleep(time.Second / 2)
		g.state.setSecret(4)
		if got := <-answered; got != "ssss" {
			t.Errorf("got %q", got)
		}
	})
}

func TestMissingSecret(t *testing.T) {
	g := newRig(t, nil)
	g.state.setSecret(3)
	g.state.put(withSecret(active("f", 1)))
	g.state.publish("f", 1, 1)
	g.state.change(func(v *fakeView) { delete(v.secrets, "db") })
	_, err := g.invoke("f", "{}")
	if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND) || !strings.Contains(fault.From(err).Message, `secret "db"`) {
		t.Errorf("without its secret: %v", err)
	}
	if _, err := g.invoke("f:1", "{}"); err != nil {
		t.Errorf("a version without secrets: %v", err)
	}
	g.state.setSecret(9)
	if _, err := g.invoke("f", "{}"); err != nil {
		t.Errorf("with the secret again: %v", err)
	}
	for _, p := range g.allPools() {
		for _, l := range p.shut() {
			l.Release()
		}
	}
}
