package fleet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// fakeState is a replicated state in memory. Its views never change.
type fakeState struct {
	mu   sync.Mutex
	view fakeView
	// commands are those proposed; proposeErr refuses them.
	commands   []*statev1.SetFunctionState
	proposeErr error
}

type fakeView struct {
	functions map[string]*mayflyv1.Function
	versions  map[string]*mayflyv1.Version
	secrets   map[string]*statev1.SecretRecord
	quota     int32
	changed   chan struct{}
}

func newFakeState() *fakeState {
	return &fakeState{view: fakeView{functions: map[string]*mayflyv1.Function{}, versions: map[string]*mayflyv1.Version{}, secrets: map[string]*statev1.SecretRecord{}, changed: make(chan struct{})}}
}

func (s *fakeState) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

func (s *fakeState) change(f func(v *fakeView)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changeLocked(f)
}

func (s *fakeState) changeLocked(f func(v *fakeView)) {
	next := s.view
	next.functions, next.versions, next.secrets = maps.Clone(next.functions), maps.Clone(next.versions), maps.Clone(next.secrets)
	next.changed = make(chan struct{})
	f(&next)
	old := s.view.changed
	s.view = next
	close(old)
}

func (s *fakeState) put(fn *mayflyv1.Function) {
	s.change(func(v *fakeView) { v.functions[fn.GetNamespace()+"/"+fn.GetName()] = fn })
}

func (s *fakeState) propose(_ context.Context, c *statev1.Command) (*statev1.Result, error) {
	set := c.GetSetFunctionState()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proposeErr != nil {
		return nil, s.proposeErr
	}
	s.commands = append(s.commands, set)
	s.changeLocked(func(v *fakeView) {
		fn := proto.CloneOf(v.functions[set.GetNamespace()+"/"+set.GetName()])
		fn.State, fn.StateReason = set.GetState(), set.GetStateReason()
		v.functions[set.GetNamespace()+"/"+set.GetName()] = fn
	})
	return &statev1.Result{}, nil
}

func (s *fakeState) function(name string) *mayflyv1.Function {
	fn, _ := s.View().Function("default", name)
	return fn
}

func (v fakeView) Namespace(name string) (*mayflyv1.Namespace, bool) {
	return &mayflyv1.Namespace{Name: name, AccountId: "123456789012", Quotas: &mayflyv1.Quotas{Concurrency: v.quota}}, true
}

func (v fakeView) Function(ns, name string) (*mayflyv1.Function, bool) {
	fn, ok := v.functions[ns+"/"+name]
	return fn, ok
}

func (v fakeView) Version(ns, name string, number int64) (*mayflyv1.Version, bool) {
	version, ok := v.versions[fmt.Sprintf("%s/%s/%d", ns, name, number)]
	return version, ok
}

func (v fakeView) Functions(ns, _ string) iter.Seq[*mayflyv1.Function] {
	return func(yield func(*mayflyv1.Function) bool) {
		for _, key := range slices.Sorted(maps.Keys(v.functions)) {
			fn := v.functions[key]
			if (ns == "" || fn.GetNamespace() == ns) && !yield(fn) {
				return
			}
		}
	}
}

func (v fakeView) Changed() <-chan struct{} { return v.changed }

// fakeWorker is an agent that keeps account: broken rules end up in faults.
type fakeWorker struct {
	memory int64

	mu        sync.Mutex
	live      map[string]*agentv1.SandboxSpec
	used      int64
	starting  int
	maxStart  int
	created   int
	destroyed []string
	prepared  []string
	requests  []*agentv1.PrepareRequest
	faults    []string

	// create runs while a sandbox starts, invoke while one runs.
	create  func(r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error)
	invoke  func(r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error)
	prepare func(r *agentv1.PrepareRequest) error
	logs    func(ctx context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error
}

func newFakeWorker(memoryMB int64) *fakeWorker {
	return &fakeWorker{memory: memoryMB * mib, live: map[string]*agentv1.SandboxSpec{}}
}

func (w *fakeWorker) begin(r *agentv1.CreateSandboxRequest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting++
	w.created++
	w.maxStart = max(w.maxStart, w.starting)
	if w.used += r.GetSpec().GetMemoryBytes(); w.used > w.memory {
		w.faults = append(w.faults, fmt.Sprintf("%d of %d bytes used", w.used, w.memory))
	}
	w.live[r.GetSandboxId()] = r.GetSpec()
}

func (w *fakeWorker) CreateSandbox(_ context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	w.begin(r)
	resp, err := &agentv1.CreateSandboxResponse{InitDuration: durationpb.New(42)}, error(nil)
	if w.create != nil {
		resp, err = w.create(r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting--
	if err != nil || len(resp.GetInitError()) > 0 {
		w.dropLocked(r.GetSandboxId())
	}
	return resp, err
}

func (w *fakeWorker) dropLocked(id string) {
	if spec := w.live[id]; spec != nil {
		w.used -= spec.GetMemoryBytes()
		delete(w.live, id)
	}
}

func (w *fakeWorker) DestroySandbox(_ context.Context, r *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropLocked(r.GetSandboxId())
	w.destroyed = append(w.destroyed, r.GetSandboxId())
	return &agentv1.DestroySandboxResponse{}, nil
}

func (w *fakeWorker) Invoke(_ context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	if w.invoke != nil {
		return w.invoke(r, emit)
	}
	return &agentv1.InvokeResponse{Payload: r.GetPayload()}, nil
}

func (w *fakeWorker) Prepare(_ context.Context, r *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error) {
	w.mu.Lock()
	w.prepared, w.requests = append(w.prepared, r.GetCodeDigest()), append(w.requests, r)
	prepare := w.prepare
	w.mu.Unlock()
	if prepare != nil {
		return &agentv1.PrepareResponse{}, prepare(r)
	}
	return &agentv1.PrepareResponse{}, nil
}

func (w *fakeWorker) ReadLogs(ctx context.Context, r *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	if w.logs != nil {
		return w.logs(ctx, r.GetQuery(), emit)
	}
	return nil
}

func (w *fakeWorker) count() (live, destroyed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.live), len(w.destroyed)
}

func (w *fakeWorker) check(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Error(f)
	}
}

func active(name string, memoryMB int32) *mayflyv1.Function {
	return &mayflyv1.Function{
		Namespace: "default", Name: name, State: mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE, CodeRevision: 1,
		Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", MemoryMb: memoryMB},
		Code:          &mayflyv1.Code{Digest: "sha256:" + name},
	}
}

func reserved(fn *mayflyv1.Function, n int32) *mayflyv1.Function {
	fn.ReservedConcurrency = &n
	return fn
}

func specOf(fn *mayflyv1.Function) *agentv1.SandboxSpec {
	return &agentv1.SandboxSpec{
		Namespace: fn.GetNamespace(), Function: fn.GetName(), Version: latest, CodeRevision: fn.GetCodeRevision(),
		Runtime: fn.GetConfiguration().GetRuntime(), CodeDigest: fn.GetCode().GetDigest(),
		MemoryBytes: int64(fn.GetConfiguration().GetMemoryMb()) * mib, Timeout: durationpb.New(3e9),
	}
}

func hello(name string, memoryMB int64, sandboxes ...*agentv1.SandboxStatus) *agentv1.Hello {
	return &agentv1.Hello{
		Lane: agentv1.Lane_LANE_CONTROL, NodeId: name + "-id", NodeName: name, InstanceId: name + "-1",
		Capacity:  &mayflyv1.NodeResources{MemoryBytes: memoryMB * mib, MilliCpus: 2000},
		Runtimes:  []*mayflyv1.RuntimeImage{{Runtime: "python3.11", Digest: "sha256:1"}},
		Sandboxes: sandboxes,
	}
}

// home is a fleet with what tests need around it.
type home struct {
	*Fleet
	t     testing.TB
	state *fakeState
}

func newHome(t testing.TB, change func(*Config)) *home {
	t.Helper()
	state := newFakeState()
	cfg := Config{Logger: slog.New(slog.DiscardHandler), View: state.View, Propose: state.propose}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &home{Fleet: f, t: t, state: state}
}

// run runs the fleet until the end of the test's body that calls the returned function.
func (h *home) run() func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	}
}

func (h *home) attach(name string, memoryMB int64, sandboxes ...*agentv1.SandboxStatus) (*fakeWorker, Session) {
	h.t.Helper()
	w := newFakeWorker(memoryMB)
	return w, h.attachWorker(name, w, sandboxes...)
}

func (h *home) attachWorker(name string, w *fakeWorker, sandboxes ...*agentv1.SandboxStatus) Session {
	h.t.Helper()
	s, err := h.Attach(context.Background(), hello(name, w.memory/mib, sandboxes...), w)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *home) acquire(fn *mayflyv1.Function) *Lease {
	h.t.Helper()
	l, _, err := h.Acquire(context.Background(), specOf(fn))
	if err != nil || l == nil {
		h.t.Fatalf("Acquire(%s) = %v, %v", fn.GetName(), l, err)
	}
	return l
}

func (h *home) refused(fn *mayflyv1.Function, want mayflyv1.ErrorReason) error {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l, _, err := h.Acquire(ctx, specOf(fn))
	if l != nil || !fault.Is(err, want) {
		h.t.Fatalf("Acquire(%s) = %v, %v, want %v", fn.GetName(), l, err, want)
	}
	return err
}

var errNoRoom = fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "full")

var errDown = fault.New(codes.Unavailable, mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "containerd is down")

var errTest = errors.New("test")
