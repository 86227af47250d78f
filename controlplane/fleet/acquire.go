package fleet

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

const (
	// startPause is how long a node that had no room for a sandbox, or was unavailable, gets no other.
	startPause = 200 * time.Millisecond
	// startAttempts is how often a start is tried when agents are unavailable.
	startAttempts = 3
	// recallAttempts is how often idle leases are recalled before an Acquire is throttled.
	recallAttempts = 3
	// initLimit is how long a function's init may take at first, by Lambda's rule; it is then retried under the
	// function's time-out. startSlack is for fetching code and making the sandbox.
	initLimit  = 10 * time.Second
	startSlack = 2 * time.Minute
)

// pending is an Acquire on its way to a sandbox. Fleet.mu guards it until ready is closed.
type pending struct {
	spec    *agentv1.SandboxSpec
	key     versionKey
	request scheduler.Request
	ready   chan struct{} // closed when one of the following is set
	lease   *Lease        // an idle sandbox was granted
	sandbox *sandbox      // one is to be started, once evict are destroyed
	evict   []*sandbox
	err     error
	refused scheduler.Refusals
}

// Acquire leases a sandbox for the version that spec describes: an idle one, or a new one, for which the response tells
// how its init went. When the init failed there is a response and no lease.
//
// Errors: FUNCTION_CONCURRENCY_EXCEEDED and NAMESPACE_CONCURRENCY_EXCEEDED at once, after idle leases were recalled;
// SANDBOX_GONE if the state has no such version (any more): resolve again; NO_CAPACITY at once if no node can ever take
// it, or when ctx ends before there was room. Once an agent was told to start the sandbox, Acquire sees it through
// whatever becomes of ctx.
func (f *Fleet) Acquire(ctx context.Context, spec *agentv1.SandboxSpec) (*Lease, *agentv1.CreateSandboxResponse, error) {
	key := keyOf(spec)
	if err := f.admit(key); err != nil {
		return nil, nil, err
	}
	lease, resp, err := f.obtain(ctx, spec, key)
	if lease == nil {
		f.mu.Lock()
		f.limits.give(key.Function)
		f.mu.Unlock()
	}
	return lease, resp, err
}

// ScaleOut is how many sandboxes of a version a router asks for when so many invocations wait, are covered by starts,
// or by idle sandboxes. The limit is Acquire's to keep: it tells the one that is over it.
func (f *Fleet) ScaleOut(waiting, starting, idle int) int {
	return scheduler.Starts(scheduler.Demand{Waiting: waiting, Starting: starting, Idle: idle, Limit: -1})
}

// admit counts the lease, recalling idle ones if the limit is reached.
func (f *Fleet) admit(key versionKey) error {
	for attempt := 0; ; attempt++ {
		f.mu.Lock()
		match, err := f.takeLocked(key)
		holders := f.holders
		f.mu.Unlock()
		if err == nil || match == nil || attempt == recallAttempts || recall(holders, match, 1) == 0 {
			return err
		}
	}
}

func (f *Fleet) takeLocked(key versionKey) (func(namespace, function string) bool, error) {
	view := f.cfg.View()
	fn, ok := view.Function(key.Namespace, key.Name)
	if !ok || !key.current(view) {
		return nil, replaced(key)
	}
	return f.limits.take(view, fn)
}

func replaced(key versionKey) error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE,
		"version %s of function %q in namespace %q was replaced or deleted, or a secret of it was: resolve it again", key.version, key.Name, key.Namespace)
}

func anyFunction(string, string) bool { return true }

func recall(holders []Holder, match func(namespace, function string) bool, n int) int {
	got := 0
	for _, h := range holders {
		if got < n {
			got += h.RecallIdle(match, n-got)
		}
	}
	return got
}

// obtain finds an idle sandbox or starts one. The lease is counted by the caller.
func (f *Fleet) obtain(ctx context.Context, spec *agentv1.SandboxSpec, key versionKey) (*Lease, *agentv1.CreateSandboxResponse, error) {
	spec, err := f.withSecrets(spec, key)
	if err != nil {
		return nil, nil, err
	}
	for attempt := 1; ; attempt++ {
		p := newPending(spec, key)
		if err := f.findPlace(ctx, p); err != nil {
			return nil, nil, err
		}
		if p.lease != nil {
			return p.lease, nil, nil
		}
		lease, resp, err := f.start(ctx, p)
		switch {
		case err == nil:
			return lease, resp, nil
		case noRoom(err): // any other node first; findPlace waits until it pays to ask this one again, or ctx ends
			attempt--
		case fault.From(err).Code != codes.Unavailable || attempt == startAttempts:
			return nil, nil, err
		}
	}
}

func noRoom(err error) bool { return fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY) }

func newPending(spec *agentv1.SandboxSpec, key versionKey) *pending {
	return &pending{spec: spec, key: key, ready: make(chan struct{}), request: scheduler.Request{
		Function: key.Function, Runtime: spec.GetRuntime(), CodeDigest: spec.GetCodeDigest(),
		MemoryBytes: spec.GetMemoryBytes(), MilliCPUs: int64(spec.GetMilliCpus()),
		Egress: spec.GetEgress() != mayflyv1.EgressPolicy_EGRESS_POLICY_NONE,
	}}
}

// findPlace waits in line for an idle sandbox or for room.
func (f *Fleet) findPlace(ctx context.Context, p *pending) error {
	f.mu.Lock()
	f.placeLocked(p)
	var holders []Holder
	if !p.decided() {
		f.pending = append(f.pending, p)
		if p.refused.Crowded() {
			holders = f.holders
		}
	}
	f.mu.Unlock()
	recall(holders, anyFunction, 1)
	select {
	case <-p.ready:
		return p.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.decided() {
		return p.err
	}
	f.pending = slices.DeleteFunc(f.pending, func(q *pending) bool { return q == p })
	f.updateCrowdedLocked()
	err := p.noCapacity()
	err.Cause = context.Cause(ctx)
	return err
}

func (p *pending) decided() bool { return p.lease != nil || p.sandbox != nil || p.err != nil }

func (p *pending) noCapacity() *fault.Error {
	reason := mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY
	if p.refused[scheduler.WhyNoRuntime] > 0 && !p.refused.Passing() {
		return fault.Throttled(reason, "no connected node can run function %q in namespace %q (runtime %s, %d MB): %s; build the runtime with `mayfly runtime build %s`, or add a node",
			p.key.Name, p.key.Namespace, p.request.Runtime, p.request.MemoryBytes>>20, p.refused, p.request.Runtime)
	}
	if p.refused[scheduler.WhyNoEgress] > 0 && !p.refused.Passing() {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_EGRESS_UNAVAILABLE,
			"no connected node can give function %q in namespace %q network access: %s; `mayfly node get NODE` says why; the function can do without by `mayfly function update %s --egress none`",
			p.key.Name, p.key.Namespace, p.refused, p.key.Name)
	}
	return fault.Throttled(reason, "no node has room for a sandbox of function %q in namespace %q (runtime %s, %d MB): %s; retry later, or add a node",
		p.key.Name, p.key.Namespace, p.request.Runtime, p.request.MemoryBytes>>20, p.refused)
}

// placeLocked decides p if it can be decided now.
func (f *Fleet) placeLocked(p *pending) {
	if v := f.versions[p.key]; v != nil && len(v.idle) > 0 && !v.retired {
		p.lease = f.grantLocked(v.idle[len(v.idle)-1])
		close(p.ready)
		return
	}
	f.snapshot.Now = time.Now()
	plan, refused := scheduler.Place(&f.snapshot, &p.request)
	p.refused = refused
	switch {
	case plan.Node != nil:
		f.commitLocked(p, plan)
		close(p.ready)
	case !refused.Passing():
		p.err = p.noCapacity()
		close(p.ready)
	case refused.Crowded():
		f.crowded.Store(true)
	}
}

// commitLocked takes the room for a new sandbox. That of evicted ones counts as free from now on: they are destroyed
// before the new one is created.
func (f *Fleet) commitLocked(p *pending, plan scheduler.Plan) {
	for _, id := range plan.Evict {
		sb := f.sandboxes[id]
		f.leaveIdleLocked(sb)
		sb.state = removing
		f.uncountLocked(sb)
		p.evict = append(p.evict, sb)
	}
	n := f.nodes[plan.Node.ID]
	p.sandbox = &sandbox{
		id: uuid.NewString(), node: n, session: n.session, key: p.key, memory: p.request.MemoryBytes, cpus: p.request.MilliCPUs,
		state: starting, grant: f.nextGrantLocked(),
	}
	f.addLocked(p.sandbox)
	n.Starting++
	n.Code[p.request.CodeDigest]++
}

// schedulePendingLocked decides, oldest first, those in line that can be decided now.
func (f *Fleet) schedulePendingLocked() {
	if len(f.pending) == 0 {
		return
	}
	tooMuch := map[string]int64{} // by runtime, the least memory (CPU is in proportion) refused in this pass
	f.pending = slices.DeleteFunc(f.pending, func(p *pending) bool {
		if m, full := tooMuch[p.request.Runtime]; full && p.request.MemoryBytes >= m && !f.hasIdleLocked(p.key) {
			return false
		}
		f.placeLocked(p)
		if !p.decided() {
			tooMuch[p.request.Runtime] = p.request.MemoryBytes
		}
		return p.decided()
	})
	f.updateCrowdedLocked()
}

func (f *Fleet) hasIdleLocked(key versionKey) bool {
	v := f.versions[key]
	return v != nil && len(v.idle) > 0 && !v.retired
}

func (f *Fleet) updateCrowdedLocked() {
	if f.crowded.Load() {
		f.crowded.Store(slices.ContainsFunc(f.pending, func(p *pending) bool { return p.refused.Crowded() }))
	}
}

// start carries out p's plan. A lease or a failed init is an answer; after an error nothing is left.
func (f *Fleet) start(ctx context.Context, p *pending) (*Lease, *agentv1.CreateSandboxResponse, error) {
	sb := p.sandbox
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), initLimit+p.spec.GetTimeout().AsDuration()+startSlack)
	defer cancel()
	for _, old := range p.evict {
		f.destroy(ctx, old, "its memory is needed")
	}
	began := time.Now()
	resp, err := sb.session.worker.CreateSandbox(ctx, &agentv1.CreateSandboxRequest{SandboxId: sb.id, Grant: sb.grant, Spec: p.spec})
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.schedulePendingLocked()
	sb.node.Starting--
	sb.init = time.Since(began)
	return f.startedLocked(sb, resp, err)
}

func (f *Fleet) startedLocked(sb *sandbox, resp *agentv1.CreateSandboxResponse, err error) (*Lease, *agentv1.CreateSandboxResponse, error) {
	switch {
	case err != nil:
		f.startFailedLocked(sb, err)
		return nil, nil, startError(err)
	case f.sandboxes[sb.id] != sb:
		return nil, nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE, "node %q was lost while it started a sandbox: retry", sb.node.Name)
	case len(resp.GetInitError()) > 0:
		f.removeLocked(sb)
		return nil, resp, nil
	}
	return f.grantNewLocked(sb), resp, nil
}

// grantNewLocked leases a new sandbox under the grant that it was created with.
func (f *Fleet) grantNewLocked(sb *sandbox) *Lease {
	sb.state = leased
	sb.lease = &Lease{fleet: f, sandbox: sb, worker: sb.session.worker, grant: sb.grant}
	return sb.lease
}

func (f *Fleet) startFailedLocked(sb *sandbox, err error) {
	code := fault.From(err).Code
	if noRoom(err) || code == codes.ResourceExhausted || code == codes.Unavailable {
		sb.node.NotBefore = time.Now().Add(startPause)
	}
	if f.sandboxes[sb.id] == sb && (code == codes.DeadlineExceeded || code == codes.Canceled) {
		f.destroyLocked(sb, "its start took too long") // the agent may still be at it
		return
	}
	f.removeLocked(sb)
}

// startError makes every refusal for want of room a NO_CAPACITY.
func startError(err error) error {
	e := fault.From(err)
	if e.Code == codes.ResourceExhausted && e.Reason != mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY {
		refusal := fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "the agent refused the sandbox: %s", e.Message)
		refusal.Cause = err
		return refusal
	}
	if errors.Is(err, context.DeadlineExceeded) {
		late := fault.New(codes.DeadlineExceeded, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the sandbox's start took too long")
		late.Cause = err
		return late
	}
	return err
}
