package router

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestInvokeColdThenWarm(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	var seen []*agentv1.InvokeRequest
	g.home.invoke = func(_ *fakeLease, r *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		seen = append(seen, r)
		return &agentv1.InvokeResponse{Payload: r.GetPayload(), LogTail: []byte("log"), Report: &mayflyv1.InvocationReport{Duration: durationpb.New(5)}}, nil
	}
	cold := g.mustInvoke("f:$LATEST")
	warm, err := g.Invoke(t.Context(), &Request{
		Namespace: "default", Function: "f", RequestID: "id", TraceID: "trace", ClientContext: "{}", LogTail: true,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cold.GetReport().GetInitDuration().AsDuration() != 77 || warm.GetReport().GetInitDuration() != nil || warm.GetReport().GetDuration().AsDuration() != 5 {
		t.Errorf("reports %v, %v", cold.GetReport(), warm.GetReport())
	}
	if cold.GetExecutedVersion() != "$LATEST" || cold.GetRequestId() == "" || warm.GetRequestId() != "id" || string(warm.GetLogTail()) != "log" {
		t.Errorf("responses %v, %v", cold, warm)
	}
	if first := seen[0]; first.GetInitDuration().AsDuration() != 77 || !strings.HasPrefix(first.GetTraceId(), "Root=1-") || !strings.HasSuffix(first.GetInvokedArn(), ":$LATEST") {
		t.Errorf("first request %v", first)
	}
	if second := seen[1]; second.GetTraceId() != "trace" || string(second.GetPayload()) != "{}" || !second.GetLogTail() || second.GetClientContext() != "{}" || second.GetInitDuration() != nil {
		t.Errorf("second request %v", second)
	}
	if n, _, _, _ := g.home.counts(); n != 1 {
		t.Errorf("%d sandboxes for two calls in turn", n)
	}
}

func TestThousandCallsOfOneFunction(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
		time.Sleep(time.Millisecond)
		return nil, nil
	}
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			want := fmt.Sprint(i)
			if got, err := g.invoke("f", want); err != nil || got != want {
				t.Errorf("%q, %v, want %s", got, err, want)
			}
		})
	}
	all.Wait()
}

func TestThousandFunctions(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	functions := make([]*mayflyv1.Function, 1000)
	for i := range functions {
		functions[i] = active(fmt.Sprintf("f%d", i), 1)
	}
	g.state.put(functions...)
	g.home.invoke = func(l *fakeLease, r *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		return &agentv1.InvokeResponse{Payload: []byte(l.spec.GetFunction())}, nil
	}
	var all sync.WaitGroup
	for _, fn := range functions {
		for range 2 {
			all.Go(func() {
				if got, err := g.invoke(fn.GetName(), "1"); err != nil || got != fn.GetName() {
					t.Errorf("%q, %v, want %s", got, err, fn.GetName())
				}
			})
		}
	}
	all.Wait()
}

// A sandbox that comes free serves who waits longest, and starts that nobody needs any more are called off.

// The first's start is overtaken by the second's, which the first then uses; the second gets what is left.

func TestInitErrorIsTheAnswer(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
		return &agentv1.CreateSandboxResponse{
			InitError: []byte(`{"errorType":"Runtime.ImportModuleError","errorMessage":"no module m"}`), LogTail: []byte("trace"), InitDuration: durationpb.New(9),
		}, nil
	}
	resp, err := g.Invoke(t.Context(), &Request{Function: "f", RequestID: "id", LogTail: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"errorMessage":"no module m","errorType":"Runtime.ImportModuleError","requestId":"id"}`; string(resp.GetPayload()) != want ||
		resp.GetFunctionError() != "Unhandled" || string(resp.GetLogTail()) != "trace" || resp.GetReport().GetInitDuration().AsDuration() != 9 {
		t.Errorf("response %v", resp)
	}
}

func TestCallerGoesAwayWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		var busy atomic.Int64
		g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
			busy.Add(1)
			defer busy.Add(-1)
			time.Sleep(time.Second)
			return &agentv1.InvokeResponse{}, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := g.Invoke(ctx, &Request{Function: "f"}, nil)
			done <- err
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if busy.Load() != 1 {
			t.Error("the function was ended")
		}
		g.mustInvoke("f") // on another sandbox, or the fake finds fault
		<-done
	})
}

func TestGoneSandboxIsReplaced(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	var n atomic.Int64
	g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		if n.Add(1) <= 3 {
			return nil, errGone
		}
		return &agentv1.InvokeResponse{Payload: []byte("1")}, nil
	}
	g.mustInvoke("f")
	if _, _, discarded, _ := g.home.counts(); discarded != 3 {
		t.Errorf("%d discarded", discarded)
	}
	n.Store(-1000)
	if _, err := g.invoke("f", "1"); !fault.Is(err, sandboxLost) || n.Load() != -1000+maxAttempts {
		t.Errorf("%v after %d attempts", err, n.Load()+1000)
	}
}

func TestLostNodeIsNotRetried(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	var n atomic.Int64
	g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		n.Add(1)
		return nil, fault.Unavailable(nodeLost, "lost")
	}
	if _, err := g.invoke("f", "1"); !fault.Is(err, nodeLost) || n.Load() != 1 {
		t.Errorf("%v after %d attempts", err, n.Load())
	}
	if _, _, discarded, _ := g.home.counts(); discarded != 1 {
		t.Errorf("%d discarded", discarded)
	}
}

func TestSandboxGoneAfterItsAnswer(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		return &agentv1.InvokeResponse{FunctionError: "Unhandled", SandboxGone: true}, nil
	}
	for range 2 {
		if resp := g.mustInvoke("f"); resp.GetFunctionError() != "Unhandled" || resp.GetReport().GetInitDuration() == nil {
			t.Errorf("response %v", resp)
		}
	}
}

func TestPendingFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		pending := active("f", 1)
		pending.State = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
		failed := active("bad", 1)
		failed.State, failed.StateReason = mayflyv1.FunctionState_FUNCTION_STATE_FAILED, "no node has the runtime"
		g.state.put(pending, failed)
		if _, err := g.invoke("bad", "1"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_ACTIVE) || !strings.Contains(err.Error(), "no node has the runtime") {
			t.Error(err)
		}
		began := time.Now()
		if _, err := g.invoke("f", "1"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_ACTIVE) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		go func() {
			time.Sleep(5 * time.Second)
			g.state.put(active("f", 1))
		}()
		g.mustInvoke("f")
	})
}

func TestStoppedFunctionAndLargePayload(t *testing.T) {
	g := newRig(t, nil)
	stopped := active("f", 1)
	stopped.ReservedConcurrency = new(int32)
	g.state.put(stopped, active("g", 1))
	if _, err := g.invoke("f", "1"); !fault.Is(err, throttled) {
		t.Error(err)
	}
	large := strings.Repeat("x", MaxPayloadBytes)
	if _, err := g.invoke("g", large+"x"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE) || fault.HTTPStatus(err) != 413 {
		t.Error(err)
	}
	defer g.run()()
	if got, err := g.invoke("g", large); err != nil || len(got) != MaxPayloadBytes {
		t.Error(err)
	}
}

func TestStreamedAnswer(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	sent := 0
	g.home.invoke = func(_ *fakeLease, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
		if !r.GetStream() {
			t.Error("the agent was not told to stream")
		}
		sent = 0
		for _, chunk := range []string{"a", "b", "c"} {
			if err := emit([]byte(chunk)); err != nil {
				return nil, err
			}
			sent++
		}
		return &agentv1.InvokeResponse{Streamed: true}, nil
	}
	var got []byte
	if _, err := g.Invoke(t.Context(), &Request{Function: "f", Stream: true}, func(c []byte) error { got = append(got, c...); return nil }); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	broken := errors.New("the client hung up")
	_, err := g.Invoke(t.Context(), &Request{Function: "f", Stream: true}, func([]byte) error { return broken })
	if !errors.Is(err, broken) || sent != 3 {
		t.Errorf("%v after %d chunks", err, sent)
	}
	if n, _, _, _ := g.home.counts(); n != 1 {
		t.Error("a client that hung up cost a sandbox")
	}
}

func TestNoOldRevisionStartsAfterAnUpdate(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	var visible atomic.Uint64 // the revision that is visible for sure
	visible.Store(1)
	g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
		time.Sleep(100 * time.Microsecond)
		return nil, nil
	}
	g.home.invoke = func(l *fakeLease, _ *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		return &agentv1.InvokeResponse{Payload: fmt.Appendf(nil, "%06d", l.spec.GetCodeRevision())}, nil
	}
	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := visible.Load()
				resp, err := g.Invoke(t.Context(), &Request{Function: "f"}, nil)
				if err != nil && !fault.Is(err, sandboxLost) {
					t.Error(err)
					return
				}
				if err == nil && string(resp.GetPayload()) < fmt.Sprintf("%06d", least) {
					t.Errorf("revision %s ran when %d was visible", resp.GetPayload(), least)
					return
				}
			}
		})
	}
	for revision := uint64(2); revision < 50; revision++ {
		g.state.put(active("f", revision))
		visible.Store(revision)
		time.Sleep(time.Millisecond)
	}
	close(stop)
	all.Wait()
}

// One that waited while its version was replaced runs the new one.
