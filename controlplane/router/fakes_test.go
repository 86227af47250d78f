package router

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	throttled   = mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED
	noCapacity  = mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY
	sandboxLost = mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE
	nodeLost    = mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST
)

// fakeState is a replicated state in memory. Its views never change.
type fakeState struct {
	mu   sync.Mutex
	view fakeView
}

type fakeView struct {
	functions map[string]*mayflyv1.Function
	versions  map[string]*mayflyv1.Version
	aliases   map[string]*mayflyv1.Alias
	secrets   map[string]uint64 // revisions of values
	changed   chan struct{}
}

func newFakeState() *fakeState {
	return &fakeState{view: fakeView{
		functions: map[string]*mayflyv1.Function{}, versions: map[string]*mayflyv1.Version{},
		aliases: map[string]*mayflyv1.Alias{}, secrets: map[string]uint64{}, changed: make(chan struct{}),
	}}
}

func (s *fakeState) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

func (s *fakeState) change(f func(v *fakeView)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.view
	next.functions, next.versions, next.aliases = maps.Clone(next.functions), maps.Clone(next.versions), maps.Clone(next.aliases)
	next.secrets = maps.Clone(next.secrets)
	next.changed = make(chan struct{})
	f(&next)
	old := s.view.changed
	s.view = next
	close(old)
}

// put makes or replaces functions of the namespace default.
func (s *fakeState) put(functions ...*mayflyv1.Function) {
	s.change(func(v *fakeView) {
		for _, fn := range functions {
			v.functions[fn.GetName()] = fn
		}
	})
}

func (s *fakeState) publish(function string, number int64, revision uint64) {
	s.change(func(v *fakeView) {
		v.versions[fmt.Sprintf("%s/%d", function, number)] = &mayflyv1.Version{
			Namespace: "default", Function: function, Number: number, CodeRevision: revision,
			Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11"}, Code: &mayflyv1.Code{Digest: fmt.Sprintf("d%d", revision)},
		}
	})
}

func (v fakeView) Namespace(name string) (*mayflyv1.Namespace, bool) {
	return &mayflyv1.Namespace{Name: name, AccountId: "123456789012"}, name == "default"
}

func (v fakeView) Function(ns, name string) (*mayflyv1.Function, bool) {
	fn, ok := v.functions[name]
	return fn, ok && ns == "default"
}

func (v fakeView) Version(_, function string, number int64) (*mayflyv1.Version, bool) {
	version, ok := v.versions[fmt.Sprintf("%s/%d", function, number)]
	return version, ok
}

func (v fakeView) Alias(_, function, name string) (*mayflyv1.Alias, bool) {
	alias, ok := v.aliases[function+"/"+name]
	return alias, ok
}

func (v fakeView) Settings() *mayflyv1.Settings { return &mayflyv1.Settings{Region: "eu-test-1"} }

func (v fakeView) Functions(ns, _ string) iter.Seq[*mayflyv1.Function] {
	return func(yield func(*mayflyv1.Function) bool) {
		for _, fn := range v.functions {
			if (ns == "" || ns == "default") && !yield(fn) {
				return
			}
		}
	}
}

func (v fakeView) Changed() <-chan struct{} { return v.changed }

func active(name string, revision uint64) *mayflyv1.Function {
	return &mayflyv1.Function{
		Namespace: "default", Name: name, Arn: "arn:aws:lambda:eu-test-1:123456789012:function:" + name,
		State: mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE, CodeRevision: revision,
		Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "m.h", MemoryMb: 256},
		Code:          &mayflyv1.Code{Digest: fmt.Sprintf("d%d", revision)},
	}
}

// fakeHome starts a sandbox for each Acquire. It keeps account: broken rules end up in faults.
type fakeHome struct {
	// acquire runs before a lease is made; its answer, if any, stands.
	acquire func(ctx context.Context, spec *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error)
	// invoke is what sandboxes do; nil: answer the payload.
	invoke func(l *fakeLease, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error)
	// useless leases are recalled as soon as they are made: so many.
	useless int
	// reuse gives released sandboxes out again.
	reuse bool

	mu        sync.Mutex
	acquired  int
	leased    int
	maxLeased int
	idle      []*fakeLease
	released  int
	discarded int
	faults    []string
}

type fakeLease struct {
	home     *fakeHome
	spec     *agentv1.SandboxSpec
	id       int
	busy     atomic.Bool
	ended    atomic.Bool
	unusable atomic.Bool
	unkept   atomic.Bool
}

func (h *fakeHome) Acquire(ctx context.Context, spec *agentv1.SandboxSpec) (Lease, *agentv1.CreateSandboxResponse, error) {
	h.mu.Lock()
	h.acquired++
	if n := len(h.idle); h.reuse && n > 0 && h.idle[n-1].spec.GetFunction() == spec.GetFunction() {
		l := &fakeLease{home: h, spec: spec, id: h.idle[n-1].id}
		h.idle = h.idle[:n-1]
		h.leased++
		h.mu.Unlock()
		return l, nil, nil
	}
	id := h.acquired
	h.mu.Unlock()
	if h.acquire != nil {
		resp, err := h.acquire(ctx, spec)
		if err != nil || len(resp.GetInitError()) > 0 {
			return nil, resp, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leased++
	h.maxLeased = max(h.maxLeased, h.leased)
	l := &fakeLease{home: h, spec: spec, id: id}
	l.unusable.Store(h.useless > 0)
	h.useless--
	return l, &agentv1.CreateSandboxResponse{InitDuration: durationpb.New(77)}, nil
}

func (l *fakeLease) fault(format string, args ...any) {
	l.home.mu.Lock()
	defer l.home.mu.Unlock()
	l.home.faults = append(l.home.faults, fmt.Sprintf(format, args...))
}

func (l *fakeLease) Invoke(_ context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	if !l.busy.CompareAndSwap(false, true) {
		l.fault("sandbox %d got two invocations at once", l.id)
	}
	defer l.busy.Store(false)
	if l.ended.Load() {
		l.fault("sandbox %d got an invocation after its lease ended", l.id)
	}
	if l.home.invoke != nil {
		return l.home.invoke(l, r, emit)
	}
	return &agentv1.InvokeResponse{Payload: r.GetPayload(), Report: &mayflyv1.InvocationReport{MemoryMb: 256}}, nil
}

func (l *fakeLease) Usable() bool { return !l.unusable.Load() }
func (l *fakeLease) Keep() bool   { return l.Usable() && !l.unkept.Load() }

func (l *fakeLease) end(count *int) {
	if l.busy.Load() {
		l.fault("the lease of sandbox %d ended while it was busy", l.id)
	}
	if !l.ended.CompareAndSwap(false, true) {
		l.fault("the lease of sandbox %d ended twice", l.id)
	}
	l.home.mu.Lock()
	defer l.home.mu.Unlock()
	l.home.leased--
	*count++
}

func (l *fakeLease) Release() {
	l.end(&l.home.released)
	l.home.mu.Lock()
	defer l.home.mu.Unlock()
	l.home.idle = append(l.home.idle, l)
}

func (l *fakeLease) Discard(bool) { l.end(&l.home.discarded) }

func (h *fakeHome) check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.faults {
		t.Error(f)
	}
}

func (h *fakeHome) counts() (acquired, released, discarded, leased int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acquired, h.released, h.discarded, h.leased
}

// rig is a router between a fake state and a fake home.
type rig struct {
	*Router
	t     testing.TB
	state *fakeState
	home  *fakeHome
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	g := &rig{t: t, state: newFakeState(), home: &fakeHome{}}
	cfg := Config{Logger: slog.New(slog.DiscardHandler), View: g.state.View, Home: g.home}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.Router = r
	return g
}

// run runs the router; the returned function stops it and checks that nothing is left.
func (g *rig) run() func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			g.t.Error(err)
		}
		g.home.check(g.t)
		if _, _, _, leased := g.home.counts(); leased != 0 {
			g.t.Errorf("%d leases are left", leased)
		}
		for key, fn := range g.functions {
			if n := fn.waiting.Load(); n != 0 {
				g.t.Errorf("%d invocations of %v are still counted as waiting", n, key)
			}
		}
	}
}

func (g *rig) invoke(function, payload string) (string, error) {
	resp, err := g.Invoke(context.Background(), &Request{Function: function, Payload: []byte(payload)}, nil)
	return string(resp.GetPayload()), err
}

func (g *rig) mustInvoke(function string) *mayflyv1.InvokeResponse {
	g.t.Helper()
	resp, err := g.Invoke(context.Background(), &Request{Function: function, Payload: []byte(`"x"`)}, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp
}

var errGone = fault.Unavailable(sandboxLost, "gone")
