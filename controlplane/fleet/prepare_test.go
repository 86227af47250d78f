package fleet

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func pendingFunction(name, runtime string) *mayflyv1.Function {
	fn := active(name, 128)
	fn.State = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
	fn.Configuration.Runtime = runtime
	return fn
}

func (h *home) wantState(name string, want mayflyv1.FunctionState) {
	h.t.Helper()
	if fn := h.state.function(name); fn.GetState() != want {
		h.t.Errorf("%s is %v (%s), want %v", name, fn.GetState(), fn.GetStateReason(), want)
	}
}

const (
	isPending = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
	isActive  = mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE
	isFailed  = mayflyv1.FunctionState_FUNCTION_STATE_FAILED
)

func TestPendingFunctionBecomesActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		h.state.put(pendingFunction("f", "python3.11"))
		time.Sleep(time.Minute)
		h.wantState("f", isPending) // nobody could prepare it
		w, _ := h.attach("a", 1000)
		time.Sleep(time.Minute)
		h.wantState("f", isActive)
		if len(w.prepared) != 1 || w.prepared[0] != "sha256:f" {
			t.Errorf("prepared %v", w.prepared)
		}
	})
}

func TestMissingRuntimeFailsUntilANodeHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		_, s := h.attach("a", 1000)
		h.state.put(pendingFunction("f", "nodejs18"))
		time.Sleep(time.Minute)
		h.wantState("f", isFailed)
		if got, want := h.state.function("f").GetStateReason(), "no node has the runtime nodejs18: run `mayfly runtime build nodejs18` on a node with an agent"; got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
		s.Report(&agentv1.Report{Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "nodejs18"}}})
		time.Sleep(time.Minute)
		h.wantState("f", isActive)
	})
}

func TestPreparationIsRetriedOrFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		var mu sync.Mutex
		tries := 0
		w.prepare = func(r *agentv1.PrepareRequest) error {
			mu.Lock()
			defer mu.Unlock()
			if r.GetCodeDigest() == "sha256:bad" {
				return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "the zip is broken")
			}
			if tries++; tries < 4 {
				return errDown
			}
			return nil
		}
		h.state.put(pendingFunction("good", "python3.11"))
		h.state.put(pendingFunction("bad", "python3.11"))
		time.Sleep(time.Minute)
		h.wantState("good", isActive)
		h.wantState("bad", isFailed)
		if tries != 4 || h.state.function("bad").GetStateReason() != "the zip is broken" {
			t.Errorf("%d tries, reason %q", tries, h.state.function("bad").GetStateReason())
		}
	})
}

func TestRefusedProposalIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		h.attach("a", 1000)
		h.state.proposeErr = errTest
		h.state.put(pendingFunction("f", "python3.11"))
		time.Sleep(time.Minute)
		h.wantState("f", isPending)
		h.state.mu.Lock()
		h.state.proposeErr = nil
		h.state.mu.Unlock()
		time.Sleep(time.Minute)
		h.wantState("f", isActive)
	})
}

func TestOnlyTheLeaderPrepares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(c *Config) { c.IsLeader = func() bool { return false } })
		defer h.run()()
		w, _ := h.attach("a", 1000)
		h.state.put(pendingFunction("f", "python3.11"))
		time.Sleep(time.Minute)
		if h.wantState("f", isPending); len(w.prepared) > 0 {
			t.Error("prepared")
		}
	})
}

func TestManyFunctionsArePrepared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		w.prepare = func(*agentv1.PrepareRequest) error {
			time.Sleep(50 * time.Millisecond)
			return nil
		}
		for i := range 100 {
			h.state.put(pendingFunction(time.Duration(i).String(), "python3.11"))
		}
		time.Sleep(20 * time.Second)
		for i := range 100 {
			h.wantState(time.Duration(i).String(), isActive)
		}
		if len(w.prepared) != 100 {
			t.Errorf("prepared %d times", len(w.prepared))
		}
	})
}

func TestRunEndsWithPreparationsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		w, s := h.attach("a", 1000)
		w.prepare = func(*agentv1.PrepareRequest) error {
			<-ctx.Done()
			return ctx.Err()
		}
		h.state.put(pendingFunction("f", "python3.11"))
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		<-s.Done()
		h.wantState("f", isPending)
		if _, err := h.Attach(t.Context(), hello("b", 1000), w); fault.From(err).Code != codes.Unavailable {
			t.Errorf("attached after the end: %v", err)
		}
	})
}
