package fleet

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	noCapacity        = mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY
	functionThrottle  = mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED
	namespaceThrottle = mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_CONCURRENCY_EXCEEDED
	sandboxGone       = mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE
	nodeLost          = mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST
)

func TestAcquireStartsThenReuses(t *testing.T) {
	h := newHome(t, nil)
	w, _ := h.attach("a", 1000)
	fn := active("f", 128)
	h.state.put(fn)
	first, resp, err := h.Acquire(t.Context(), specOf(fn))
	if err != nil || resp.GetInitDuration().AsDuration() != 42 {
		t.Fatalf("Acquire = %v, %v", resp, err)
	}
	if _, err := first.Invoke(t.Context(), &agentv1.InvokeRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	first.Release()
	second, resp, err := h.Acquire(t.Context(), specOf(fn))
	if err != nil || resp != nil || second.SandboxID() != first.SandboxID() {
		t.Fatalf("second Acquire = %v, %v, %v", second, resp, err)
	}
	if second.Grant().GetSequence() <= first.Grant().GetSequence() {
		t.Fatalf("grant %v after %v", second.Grant(), first.Grant())
	}
	if first.Usable() || !second.Usable() {
		t.Fatal("a released lease is usable, or a new one is not")
	}
	first.Release() // the old lease has no say any more
	if third := h.acquire(fn); third.SandboxID() == second.SandboxID() || w.created != 2 {
		t.Fatal("a leased sandbox was granted again")
	}
}

func TestGrantsStayAboveThoseOfEarlierHomes(t *testing.T) {
	h := newHome(t, nil)
	fn := active("f", 128)
	h.state.put(fn)
	h.attach("a", 1000, &agentv1.SandboxStatus{
		SandboxId: "old", State: agentv1.SandboxState_SANDBOX_STATE_IDLE, Namespace: "default", Function: "f", Version: latest, CodeRevision: 1,
		MemoryBytes: 128 * mib, Grant: &agentv1.Grant{Term: 7, Sequence: 99},
	})
	l := h.acquire(fn)
	if g := l.Grant(); l.SandboxID() != "old" || g.GetTerm() != 7 || g.GetSequence() <= 99 {
		t.Fatalf("granted %s with %v", l.SandboxID(), g)
	}
}

func TestBusySandboxIsAdoptedWhenItIsFree(t *testing.T) {
	h := newHome(t, nil)
	fn := active("f", 128)
	h.state.put(fn)
	busy := &agentv1.SandboxStatus{
		SandboxId: "old", State: agentv1.SandboxState_SANDBOX_STATE_BUSY, Namespace: "default", Function: "f", Version: latest, CodeRevision: 1, MemoryBytes: 128 * mib,
	}
	w, s := h.attach("a", 1000, busy)
	l := h.acquire(fn)
	if l.SandboxID() == "old" || w.created != 1 {
		t.Fatal("a busy sandbox was granted")
	}
	busy.State = agentv1.SandboxState_SANDBOX_STATE_IDLE
	s.Report(&agentv1.Report{Sandboxes: []*agentv1.SandboxStatus{busy}})
	if l := h.acquire(fn); l.SandboxID() != "old" {
		t.Fatal("the sandbox was not adopted")
	}
}

func TestReservedConcurrencyIsTheLimit(t *testing.T) {
	h := newHome(t, nil)
	h.attach("a", 10000)
	fn := reserved(active("f", 128), 2)
	h.state.put(fn)
	first := h.acquire(fn)
	h.acquire(fn)
	err := h.refused(fn, functionThrottle)
	if !strings.HasPrefix(fault.From(err).Message, "Rate Exceeded.") || fault.HTTPStatus(err) != 429 {
		t.Fatalf("error %v", err)
	}
	first.Release()
	h.acquire(fn)
	h.refused(fn, functionThrottle)
}

func TestReservationsAreTakenFromTheNamespace(t *testing.T) {
	h := newHome(t, nil)
	h.attach("a", 10000)
	kept, f, g := reserved(active("kept", 128), 3), active("f", 128), active("g", 128)
	for _, fn := range []*mayflyv1.Function{kept, f, g} {
		h.state.put(fn)
	}
	h.state.change(func(v *fakeView) { v.quota = 5 })
	h.acquire(f)
	h.acquire(g)
	h.refused(f, namespaceThrottle)
	for range 3 {
		h.acquire(kept)
	}
	h.refused(kept, functionThrottle)
	h.refused(g, namespaceThrottle)
}

// idleHolder holds leases that it doesn't use.

type idleHolder struct {
	mu     sync.Mutex
	leases []*Lease
}

func (i *idleHolder) RecallIdle(match func(namespace, function string) bool, n int) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	got := 0
	i.leases = slices.DeleteFunc(i.leases, func(l *Lease) bool {
		out := got < n && match(l.sandbox.key.Namespace, l.sandbox.key.Name)
		if out {
			got++
			l.Release()
		}
		return out
	})
	return got
}

func TestIdleLeasesAreRecalledBeforeThrottling(t *testing.T) {
	h := newHome(t, nil)
	h.attach("a", 10000)
	kept, f, g := reserved(active("kept", 128), 1), active("f", 128), active("g", 128)
	for _, fn := range []*mayflyv1.Function{kept, f, g} {
		h.state.put(fn)
	}
	h.state.change(func(v *fakeView) { v.quota = 2 })
	holder := &idleHolder{leases: []*Lease{h.acquire(kept), h.acquire(f)}}
	h.AddHolder(holder)
	h.acquire(g) // instead of f's
	if len(holder.leases) != 1 || holder.leases[0].sandbox.key.Name != "kept" {
		t.Fatalf("held: %v", holder.leases)
	}
	h.refused(g, namespaceThrottle)
	h.acquire(kept)
	h.refused(kept, functionThrottle)
}

func TestIdleSandboxesOfOthersMakeRoom(t *testing.T) {
	h := newHome(t, nil)
	w, _ := h.attach("a", 300)
	f, g := active("f", 128), active("g", 256)
	h.state.put(f)
	h.state.put(g)
	a, b := h.acquire(f), h.acquire(f)
	a.Release()
	h.refused(g, noCapacity) // b is in use
	b.Release()
	h.acquire(g)
	if live, destroyed := w.count(); live != 1 || destroyed != 2 {
		t.Fatalf("%d live, %d destroyed", live, destroyed)
	}
	w.check(t)
	h.refused(f, noCapacity)
}

func TestAcquireWaitsForRoomInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 128)
		f, g := active("f", 128), active("g", 128)
		h.state.put(f)
		h.state.put(g)
		l := h.acquire(f)
		order := make(chan string, 2)
		for _, fn := range []*mayflyv1.Function{g, f} {
			go func() {
				next := h.acquire(fn)
				order <- fn.GetName()
				next.Release()
			}()
			synctest.Wait()
		}
		if l.Keep() {
			t.Error("a lease may be kept while others wait for memory")
		}
		l.Release()
		if got := <-order + <-order; got != "fg" && got != "gf" {
			t.Errorf("served %q", got)
		}
		w.check(t)
	})
}

func TestNoCapacitySaysWhy(t *testing.T) {
	h := newHome(t, nil)
	fn, big, node := active("f", 128), active("big", 2048), active("n", 128)
	node.Configuration.Runtime = "nodejs18"
	for _, fn := range []*mayflyv1.Function{fn, big, node} {
		h.state.put(fn)
	}
	if err := h.refused(fn, noCapacity); !strings.Contains(err.Error(), "no node is connected") {
		t.Error(err)
	}
	h.attach("a", 1000)
	for fn, want := range map[*mayflyv1.Function]string{big: "smaller than", node: "mayfly runtime build nodejs18"} {
		// not even with all the time in the world
		if _, _, err := h.Acquire(context.Background(), specOf(fn)); !fault.Is(err, noCapacity) || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	}
	if len(h.limits.functions) != 0 {
		t.Errorf("leases counted: %v", h.limits.functions)
	}
}

func TestNodeWithoutEgress(t *testing.T) {
	h := newHome(t, nil)
	fn := active("f", 128)
	h.state.put(fn)
	greeting := hello("a", 1000)
	greeting.EgressError = "no nf_tables"
	if _, err := h.Attach(context.Background(), greeting, newFakeWorker(1000*mib)); err != nil {
		t.Fatal(err)
	}
	if nodes := h.Nodes(); nodes[0].GetEgressError() != "no nf_tables" {
		t.Errorf("the node is shown as %v", nodes[0])
	}
	spec := specOf(fn)
	spec.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET
	_, _, err := h.Acquire(context.Background(), spec)
	if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_EGRESS_UNAVAILABLE) || !strings.Contains(err.Error(), "--egress none") {
		t.Errorf("with the policy internet: %v", err)
	}
	spec.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_NONE
	if l, _, err := h.Acquire(context.Background(), spec); l == nil {
		t.Errorf("with the policy none: %v", err)
	}
}

func TestStartsInParallelUpToTheNodesLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		w, _ := h.attach("a", 100000)
		w.create = func(*agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(100 * time.Millisecond)
			return &agentv1.CreateSandboxResponse{}, nil
		}
		fn := active("f", 128)
		h.state.put(fn)
		began := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { h.acquire(fn) })
		}
		all.Wait()
		if took := time.Since(began); took != 1300*time.Millisecond || w.maxStart != 8 {
			t.Errorf("100 starts took %v, up to %d at once", took, w.maxStart)
		}
	})
}

func TestRefusalOfAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		fn := active("f", 128)
		h.state.put(fn)
		full, _ := h.attach("full", 100000)
		refusals := 0
		full.create = func(*agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
			if refusals++; refusals > 3 {
				return &agentv1.CreateSandboxResponse{}, nil
			}
			return nil, errNoRoom
		}
		h.acquire(fn) // alone, it is asked again after a while
		if refusals != 4 {
			t.Errorf("asked %d times", refusals)
		}
		refusals = 0
		h.attach("other", 1000) // has less room, is asked second
		if l := h.acquire(fn); l.sandbox.node.Name != "other" || refusals != 1 {
			t.Errorf("placed on %s after %d refusals", l.sandbox.node.Name, refusals)
		}
	})
}

func TestUnavailableAgentIsTriedElsewhereThenGivenUp(t *testing.T) {
	h := newHome(t, nil)
	fn := active("f", 128)
	h.state.put(fn)
	for _, name := range []string{"a", "b", "c"} {
		w, _ := h.attach(name, 1000)
		w.create = func(*agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) { return nil, errDown }
	}
	if _, _, err := h.Acquire(context.Background(), specOf(fn)); fault.From(err).Message != errDown.Message {
		t.Fatal(err)
	}
	if w := h.nodes["a-id"].session.worker.(*fakeWorker); w.created != 1 {
		t.Errorf("a was tried %d times", w.created)
	}
	for _, n := range h.snapshot.Nodes {
		if n.UsedMemoryBytes != 0 || n.Sandboxes != 0 || n.Starting != 0 {
			t.Errorf("left on %s: %+v", n.Name, n)
		}
	}
}

func TestFailedInitLeavesNothing(t *testing.T) {
	h := newHome(t, nil)
	w, _ := h.attach("a", 1000)
	w.create = func(*agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
		return &agentv1.CreateSandboxResponse{InitError: []byte(`{}`)}, nil
	}
	fn := reserved(active("f", 128), 1)
	h.state.put(fn)
	for range 2 {
		l, resp, err := h.Acquire(t.Context(), specOf(fn))
		if l != nil || err != nil || string(resp.GetInitError()) != "{}" {
			t.Fatalf("Acquire = %v, %v, %v", l, resp, err)
		}
	}
	if n := h.Nodes()[0]; n.GetSandboxes() != 0 || h.snapshot.Nodes[0].UsedMemoryBytes != 0 {
		t.Fatalf("left: %v", n)
	}
}

func TestStartGoesOnWithoutItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		w, _ := h.attach("a", 1000)
		w.create = func(*agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Second)
			return &agentv1.CreateSandboxResponse{}, nil
		}
		fn := active("f", 128)
		h.state.put(fn)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if l, _, err := h.Acquire(ctx, specOf(fn)); l == nil || err != nil {
			t.Errorf("Acquire = %v, %v", l, err)
		}
	})
}

// Safety: whatever is asked in whatever order, no limit and no node's memory is exceeded. Liveness: when all is

// released, all is free again.

func TestLimitsHoldAlways(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHome(t, nil)
		w, _ := h.attach("a", 1024)
		functions := []*mayflyv1.Function{reserved(active("two", 128), 2), active("f", 128), active("g", 256)}
		for _, fn := range functions {
			h.state.put(fn)
		}
		quota := rapid.IntRange(3, 8).Draw(rt, "quota")
		h.state.change(func(v *fakeView) { v.quota = int32(quota) })
		held := map[string][]*Lease{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			fn := rapid.SampledFrom(functions).Draw(rt, "function")
			name := fn.GetName()
			if n := len(held[name]); n > 0 && rapid.Bool().Draw(rt, "release") {
				held[name][n-1].Release()
				held[name] = held[name][:n-1]
				continue
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if l, _, err := h.Acquire(ctx, specOf(fn)); err == nil {
				held[name] = append(held[name], l)
			}
			if len(held["two"]) > 2 || len(held["f"])+len(held["g"]) > quota-2 {
				rt.Fatalf("limits exceeded: %d of two, %d and %d of a quota of %d", len(held["two"]), len(held["f"]), len(held["g"]), quota)
			}
		}
		if len(w.faults) > 0 {
			rt.Fatal(w.faults)
		}
		for _, leases := range held {
			for _, l := range leases {
				l.Release()
			}
		}
		if len(h.limits.functions)+len(h.limits.namespaces) > 0 || h.snapshot.Nodes[0].UsedMemoryBytes != w.used {
			rt.Fatalf("left: %v, %d bytes counted, %d used", h.limits.functions, h.snapshot.Nodes[0].UsedMemoryBytes, w.used)
		}
	})
}

func BenchmarkAcquireIdle(b *testing.B) {
	h := newHome(b, nil)
	h.attach("a", 1000)
	fn := active("f", 128)
	h.state.put(fn)
	spec := specOf(fn)
	b.ReportAllocs()
	for b.Loop() {
		l, _, err := h.Acquire(context.Background(), spec)
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}

// A cold start's share of the control plane: 1,000 nodes, 500 functions, a sandbox started and destroyed each time.

func BenchmarkAcquireCold1000Nodes(b *testing.B) {
	h := newHome(b, nil)
	for i := range 1000 {
		h.attach("node-"+string(rune('a'+i%26))+time.Duration(i).String(), 16384)
	}
	specs := make([]*agentv1.SandboxSpec, 500)
	for i := range specs {
		fn := active("f"+time.Duration(i).String(), 128)
		h.state.put(fn)
		specs[i] = specOf(fn)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l, _, err := h.Acquire(context.Background(), specs[i%len(specs)])
		if err != nil {
			b.Fatal(err)
		}
		l.Discard(true)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "starts/s")
}
