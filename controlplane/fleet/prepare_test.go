package fleet

import (
	"context"
	"fmt"
	"strings"
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

// noImage is what an agent says that cannot build.
func noImage(*agentv1.PrepareRequest) error {
	return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "building needs mmdebstrap")
}

func TestMissingRuntimeFailsUntilANodeHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, s := h.attach("a", 1000)
		w.prepare = noImage
		h.state.put(pendingFunction("f", "nodejs18"))
		time.Sleep(time.Minute)
		h.wantState("f", isFailed)
		const want = "no node has the runtime nodejs18: building needs mmdebstrap; mend that and run `mayfly runtime build nodejs18` on a node with an agent"
		if got := h.state.function("f").GetStateReason(); got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
		w.mu.Lock()
		w.prepare = nil
		w.mu.Unlock()
		s.Report(&agentv1.Report{Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "nodejs18"}}})
		time.Sleep(time.Minute)
		h.wantState("f", isActive)
	})
}

func TestMissingRuntimeIsBuiltOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		slow, s := h.attach("a", 1000)
		other, _ := h.attach("b", 1000)
		slow.prepare = func(r *agentv1.PrepareRequest) error {
			if r.GetRuntime() == "ruby3.1" && len(h.Runtimes()) == 1 {
				time.Sleep(3 * time.Minute)
				s.Report(&agentv1.Report{Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "ruby3.1"}, {Runtime: "python3.11"}}})
			}
			return nil
		}
		other.prepare = func(r *agentv1.PrepareRequest) error {
			if r.GetRuntime() == "ruby3.1" {
				return noImage(r)
			}
			return nil
		}
		for i := range 20 {
			h.state.put(pendingFunction(fmt.Sprint("ruby-", i), "ruby3.1"))
		}
		time.Sleep(time.Minute)
		h.state.put(pendingFunction("python", "python3.11")) // does not wait for them
		time.Sleep(10 * time.Second)
		h.wantState("python", isActive)
		for i := range 20 {
			name := fmt.Sprint("ruby-", i)
			h.wantState(name, isPending)
			const want = "the runtime ruby3.1 is being built on a, b: the first time takes minutes"
			if got := h.state.function(name).GetStateReason(); got != want {
				t.Errorf("reason %q, want %q", got, want)
			}
		}
		time.Sleep(2 * time.Minute)
		for i := range 20 {
			h.wantState(fmt.Sprint("ruby-", i), isActive)
		}
		other.mu.Lock()
		defer other.mu.Unlock()
		builds := 0
		for _, r := range other.requests {
			if r.GetRuntime() == "ruby3.1" {
				builds++
			}
		}
		if builds != 1 {
			t.Errorf("the runtime was asked for %d times on b", builds)
		}
	})
}

func TestFailedBuildIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		w.prepare = func(*agentv1.PrepareRequest) error {
			return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME, "the mirror is away")
		}
		h.state.put(pendingFunction("f", "ruby3.1"))
		time.Sleep(2 * time.Second)
		h.wantState("f", isPending)
		time.Sleep(5 * time.Minute)
		h.wantState("f", isFailed)
		w.mu.Lock()
		defer w.mu.Unlock()
		if got := h.state.function("f").GetStateReason(); len(w.requests) != prepareMaxErrors+1 || !strings.Contains(got, "the mirror is away") {
			t.Errorf("%d tries, reason %q", len(w.requests), got)
		}
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
