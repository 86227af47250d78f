package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/controlplane/fleet"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// These tests run the router on a real home, as controlplane wires them, over a fake agent.

type localHome struct{ fleet *fleet.Fleet }

func (h localHome) Acquire(ctx context.Context, spec *agentv1.SandboxSpec) (Lease, *agentv1.CreateSandboxResponse, error) {
	l, resp, err := h.fleet.Acquire(ctx, spec)
	if l == nil {
		return nil, resp, err
	}
	return l, resp, err
}

// fakeAgent keeps account of what it was asked: broken rules end up in faults.
type fakeAgent struct {
	memory int64
	start  time.Duration
	work   func(spec *agentv1.SandboxSpec) time.Duration
	began  func(spec *agentv1.SandboxSpec)

	mu        sync.Mutex
	sandboxes map[string]*fakeSandbox
	used      int64
	created   int
	running   map[string]int
	maxRun    map[string]int
	faults    []string
	lost      chan struct{}
}

type fakeSandbox struct {
	spec  *agentv1.SandboxSpec
	grant *agentv1.Grant
	busy  bool
}

func newFakeAgent(memoryMB int64) *fakeAgent {
	return &fakeAgent{memory: memoryMB << 20, sandboxes: map[string]*fakeSandbox{}, running: map[string]int{}, maxRun: map[string]int{}, lost: make(chan struct{})}
}

func (a *fakeAgent) faultLocked(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

func (a *fakeAgent) CreateSandbox(_ context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	a.mu.Lock()
	a.created++
	if a.used += r.GetSpec().GetMemoryBytes(); a.used > a.memory {
		a.faultLocked("%d of %d bytes used", a.used, a.memory)
	}
	a.sandboxes[r.GetSandboxId()] = &fakeSandbox{spec: r.GetSpec(), grant: r.GetGrant()}
	a.mu.Unlock()
	time.Sleep(a.start)
	return &agentv1.CreateSandboxResponse{}, nil
}

func (a *fakeAgent) DestroySandbox(_ context.Context, r *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if sb := a.sandboxes[r.GetSandboxId()]; sb != nil {
		if sb.busy {
			a.faultLocked("sandbox %s was destroyed while it was busy", r.GetSandboxId())
		}
		a.used -= sb.spec.GetMemoryBytes()
		delete(a.sandboxes, r.GetSandboxId())
	}
	return &agentv1.DestroySandboxResponse{}, nil
}

func (a *fakeAgent) enter(r *agentv1.InvokeRequest) (*fakeSandbox, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sb := a.sandboxes[r.GetSandboxId()]
	if sb == nil {
		return nil, fault.Unavailable(sandboxLost, "no such sandbox")
	}
	if sb.busy {
		a.faultLocked("sandbox %s got two invocations at once", r.GetSandboxId())
	}
	if g := r.GetGrant(); g.GetSequence() < sb.grant.GetSequence() {
		a.faultLocked("grant %v after %v", g, sb.grant)
	}
	sb.busy, sb.grant = true, r.GetGrant()
	name := sb.spec.GetFunction()
	a.running[name]++
	a.maxRun[name] = max(a.maxRun[name], a.running[name])
	return sb, nil
}

func (a *fakeAgent) Invoke(_ context.Context, r *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
	sb, err := a.enter(r)
	if err != nil {
		return nil, err
	}
	if a.began != nil {
		a.began(sb.spec)
	}
	var lost bool
	select {
	case <-a.lost:
		lost = true
	case <-time.After(a.work(sb.spec)):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sb.busy = false
	a.running[sb.spec.GetFunction()]--
	if lost {
		return nil, fault.Unavailable(nodeLost, "the agent is going down")
	}
	return &agentv1.InvokeResponse{Payload: []byte(sb.spec.GetFunction()), LogTail: fmt.Append(nil, sb.spec.GetCodeRevision())}, nil
}

func (a *fakeAgent) Prepare(context.Context, *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error) {
	return &agentv1.PrepareResponse{}, nil
}

func (a *fakeAgent) ReadLogs(context.Context, *agentv1.ReadLogsRequest, func(*mayflyv1.ReadLogsResponse) error) error {
	return nil
}

// cluster is a router, its home and one agent.
type cluster struct {
	*Router
	t     *testing.T
	fleet *fleet.Fleet
	state *fakeState
	agent *fakeAgent
}

func newCluster(t *testing.T, memoryMB int64) *cluster {
	t.Helper()
	c := &cluster{t: t, state: newFakeState(), agent: newFakeAgent(memoryMB)}
	c.agent.work = func(*agentv1.SandboxSpec) time.Duration { return time.Millisecond }
	log := slog.New(slog.DiscardHandler)
	var err error
	c.fleet, err = fleet.New(fleet.Config{
		Logger: log, View: func() fleet.View { return c.state.View().(fakeView) },
		Propose: func(context.Context, *statev1.Command) (*statev1.Result, error) { return nil, errors.New("not now") },
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Router, err = New(Config{Logger: log, View: c.state.View, Home: localHome{c.fleet}, Starts: c.fleet.ScaleOut}); err != nil {
		t.Fatal(err)
	}
	c.fleet.AddHolder(c.Router)
	c.run()
	c.attach(c.agent)
	return c
}

func (c *cluster) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	for _, run := range []func(context.Context) error{c.fleet.Run, c.Run} {
		loops.Go(func() { _ = run(ctx) })
	}
	c.t.Cleanup(func() {
		cancel()
		loops.Wait()
		for _, f := range c.agent.faults {
			c.t.Error(f)
		}
	})
}

func (c *cluster) attach(a *fakeAgent) fleet.Session {
	c.t.Helper()
	s, err := c.fleet.Attach(context.Background(), &agentv1.Hello{
		NodeId: "id", NodeName: "a", Capacity: &mayflyv1.NodeResources{MemoryBytes: a.memory, MilliCpus: 64000},
		Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "python3.11"}},
	}, a)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// call invokes n times at once and counts the outcomes by reason; success has none.
func (c *cluster) call(n int, function func(i int) string) map[mayflyv1.ErrorReason]int {
	counts := map[mayflyv1.ErrorReason]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			resp, err := c.Invoke(context.Background(), &Request{Function: function(i)}, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				counts[fault.From(err).Reason]++
				return
			}
			if counts[0]++; string(resp.GetPayload()) != function(i) {
				c.t.Errorf("function %s answered for %s", resp.GetPayload(), function(i))
			}
		})
	}
	all.Wait()
	return counts
}

func (c *cluster) maxRunning(function string) int {
	c.agent.mu.Lock()
	defer c.agent.mu.Unlock()
	return c.agent.maxRun[function]
}

func TestReservedConcurrencyHoldsUnderLoad(t *testing.T) {
	c := newCluster(t, 100_000)
	limit := int32(5)
	fn := active("f", 1)
	fn.ReservedConcurrency = &limit
	c.state.put(fn)
	counts := c.call(300, func(int) string { return "f" })
	if counts[0] < 5 || counts[0]+counts[throttled] != 300 || c.maxRunning("f") > 5 {
		t.Fatalf("outcomes %v, %d at once", counts, c.maxRunning("f"))
	}
}

func TestThousandCallsWithRoomForSixteen(t *testing.T) {
	c := newCluster(t, 16*256)
	c.state.put(active("f", 1))
	c.agent.start = 5 * time.Millisecond
	counts := c.call(1000, func(int) string { return "f" })
	if counts[0] != 1000 || c.maxRunning("f") > 16 {
		t.Fatalf("outcomes %v, %d at once", counts, c.maxRunning("f"))
	}
	if c.agent.created > 16 {
		t.Errorf("%d sandboxes were started where 16 have room", c.agent.created)
	}
}

func TestThousandFunctionsWithRoomForForty(t *testing.T) {
	c := newCluster(t, 40*256)
	functions := make([]*mayflyv1.Function, 1000)
	for i := range functions {
		functions[i] = active(fmt.Sprintf("f%d", i), 1)
	}
	c.state.put(functions...)
	counts := c.call(1000, func(i int) string { return fmt.Sprintf("f%d", i) })
	if counts[0] != 1000 {
		t.Fatalf("outcomes %v", counts)
	}
}

func TestUpdatesUnderLoad(t *testing.T) {
	c := newCluster(t, 30*256)
	var visible atomic.Uint64
	visible.Store(1)
	c.state.put(active("f", 1), active("g", 1))
	c.agent.work = func(*agentv1.SandboxSpec) time.Duration { return time.Duration(rand.IntN(300)) * time.Microsecond }
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := visible.Load()
				resp, err := c.Invoke(context.Background(), &Request{Function: "f"}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := revisionOf(resp); got < least {
					t.Errorf("revision %d ran when %d was visible", got, least)
				}
			}
		})
	}
	for revision := uint64(2); revision < 30; revision++ {
		c.state.put(active("f", revision))
		visible.Store(revision)
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	all.Wait()
	// what is left runs the last revision only
	deadline := time.Now().Add(10 * time.Second)
	for !c.onlyRevision(29) {
		if time.Now().After(deadline) {
			t.Fatal("old sandboxes are left")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func revisionOf(resp *mayflyv1.InvokeResponse) uint64 {
	revision, _ := strconv.ParseUint(string(resp.GetLogTail()), 10, 64)
	return revision
}

func (c *cluster) onlyRevision(revision uint64) bool {
	c.agent.mu.Lock()
	defer c.agent.mu.Unlock()
	for _, sb := range c.agent.sandboxes {
		if sb.spec.GetFunction() == "f" && sb.spec.GetCodeRevision() != revision {
			return false
		}
	}
	return true
}

func TestAgentLostInMidCall(t *testing.T) {
	c := newCluster(t, 10_000)
	c.state.put(active("f", 1))
	running := make(chan struct{}, 10)
	c.agent.began = func(*agentv1.SandboxSpec) { running <- struct{}{} }
	c.agent.work = func(*agentv1.SandboxSpec) time.Duration { return time.Hour }
	done := make(chan map[mayflyv1.ErrorReason]int)
	go func() { done <- c.call(10, func(int) string { return "f" }) }()
	for range 10 {
		<-running
	}
	close(c.agent.lost)
	if counts := <-done; counts[nodeLost] != 10 {
		t.Fatalf("outcomes %v", counts)
	}
	next := newFakeAgent(10_000)
	next.work = func(*agentv1.SandboxSpec) time.Duration { return 0 }
	c.attach(next)
	if counts := c.call(10, func(int) string { return "f" }); counts[0] != 10 {
		t.Fatalf("after the agent came back: %v", counts)
	}
}
