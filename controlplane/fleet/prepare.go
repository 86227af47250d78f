package fleet

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

const (
	prepareParallelism = 8
	prepareTimeout     = 5 * time.Minute
	// prepareEvery bounds how often a busy state is looked through, prepareRetry how long a retry may go unnoticed.
	prepareEvery     = 20 * time.Millisecond
	prepareRetry     = time.Second
	prepareBackoff   = 500 * time.Millisecond
	prepareMaxBack   = 30 * time.Second
	prepareMaxErrors = 5
)

// noRuntime begins the reason of functions that wait for an image: they are prepared when a node has it.
const noRuntime = "no node has the runtime "

// buildTimeout is for the first function of a runtime: packages are downloaded and an image is made of them.
const buildTimeout = 20 * time.Minute

// preparer turns functions from Pending to Active or Failed by having an agent fetch and verify their code.
type preparer struct {
	fleet *Fleet
	mu    sync.Mutex
	jobs  map[scheduler.Function]*preparation
	// building is the runtimes whose images are built now.
	building map[string]bool
}

// preparation is the work on one revision of a function.
type preparation struct {
	revision  uint64
	running   bool
	errors    int
	notBefore time.Time
}

func newPreparer(f *Fleet) *preparer {
	return &preparer{fleet: f, jobs: map[scheduler.Function]*preparation{}, building: map[string]bool{}}
}

func (p *preparer) run(ctx context.Context) error {
	var g errgroup.Group
	defer g.Wait() //nolint:errcheck // its functions return none
	g.SetLimit(prepareParallelism)
	retry := time.NewTicker(prepareRetry)
	defer retry.Stop()
	for {
		view, nodes := p.fleet.cfg.View(), p.fleet.watchNodes()
		changed := view.Changed()
		if p.fleet.cfg.IsLeader() {
			p.begin(ctx, &g, view)
		}
		if !pause(ctx, prepareEvery) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-nodes:
		case <-retry.C:
		}
	}
}

// begin starts what is due, as much as may run at once: the rest is due again soon.
func (p *preparer) begin(ctx context.Context, g *errgroup.Group, view View) {
	images := p.fleet.images()
	seen := map[scheduler.Function]bool{}
	for fn := range view.Functions("", "") {
		if !wanted(fn, images) {
			continue
		}
		key := scheduler.Function{Namespace: fn.GetNamespace(), Name: fn.GetName()}
		seen[key] = true
		job := p.claim(key, fn.GetCodeRevision())
		if job == nil {
			continue
		}
		if !g.TryGo(func() error { p.prepare(ctx, fn, job); return nil }) {
			p.finish(job, 0, false)
		}
	}
	p.forget(seen)
}

func wanted(fn *mayflyv1.Function, images map[string]bool) bool {
	switch fn.GetState() {
	case mayflyv1.FunctionState_FUNCTION_STATE_PENDING:
		return true
	case mayflyv1.FunctionState_FUNCTION_STATE_FAILED:
		return strings.HasPrefix(fn.GetStateReason(), noRuntime) && images[fn.GetConfiguration().GetRuntime()]
	default:
		return false
	}
}

// images is the runtimes of connected nodes.
func (f *Fleet) images() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	images := map[string]bool{}
	for _, n := range f.nodes {
		for _, runtime := range n.Runtimes {
			images[runtime] = images[runtime] || n.Up
		}
	}
	return images
}

func (p *preparer) claim(key scheduler.Function, revision uint64) *preparation {
	p.mu.Lock()
	defer p.mu.Unlock()
	job := p.jobs[key]
	if job == nil || job.revision != revision {
		job = &preparation{revision: revision}
		p.jobs[key] = job
	}
	if job.running || time.Now().Before(job.notBefore) {
		return nil
	}
	job.running = true
	return job
}

func (p *preparer) finish(job *preparation, wait time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	job.running, job.notBefore = false, time.Now().Add(wait)
	if failed {
		job.errors++
	}
}

func (p *preparer) forget(seen map[scheduler.Function]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, job := range p.jobs {
		if !seen[key] && !job.running {
			delete(p.jobs, key)
		}
	}
}

func (p *preparer) prepare(ctx context.Context, fn *mayflyv1.Function, job *preparation) {
	r := p.attempt(ctx, fn, job)
	pending := r.state == mayflyv1.FunctionState_FUNCTION_STATE_PENDING
	err := p.record(ctx, fn, r)
	wait := min(prepareBackoff<<min(job.errors, 10), prepareMaxBack)
	if r.waits {
		wait = prepareBackoff
	}
	p.finish(job, wait, err != nil || pending && !r.waits)
}

// result is what became of an attempt: a function that is still Pending is tried again.
type result struct {
	state  mayflyv1.FunctionState
	reason string
	// waits tells that nothing failed: it is somebody else's turn.
	waits bool
}

func stillPending(reason string) result {
	return result{state: mayflyv1.FunctionState_FUNCTION_STATE_PENDING, reason: reason}
}

// record proposes a state, unless the function has it, or is Pending without anything new to say.
func (p *preparer) record(ctx context.Context, fn *mayflyv1.Function, r result) error {
	if r.state == fn.GetState() && (r.reason == fn.GetStateReason() || r.reason == "") {
		return nil
	}
	_, err := p.fleet.cfg.Propose(ctx, &statev1.Command{Operation: &statev1.Command_SetFunctionState{SetFunctionState: &statev1.SetFunctionState{
		Namespace: fn.GetNamespace(), Name: fn.GetName(), CodeRevision: fn.GetCodeRevision(), State: r.state, StateReason: r.reason,
	}}})
	if err != nil && ctx.Err() == nil {
		p.fleet.log.Warn("the state of a function was not recorded", "namespace", fn.GetNamespace(), "function", fn.GetName(), "error", err)
	}
	return err
}

func (p *preparer) attempt(ctx context.Context, fn *mayflyv1.Function, job *preparation) result {
	runtime := fn.GetConfiguration().GetRuntime()
	if !p.fleet.images()[runtime] {
		return p.build(ctx, fn, job)
	}
	worker, up := p.fleet.workerFor(runtime)
	if !up || worker == nil {
		return stillPending("")
	}
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	_, err := worker.Prepare(ctx, prepareRequest(fn))
	if err == nil {
		return result{state: mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE}
	}
	p.fleet.log.Warn("a function was not prepared", "namespace", fn.GetNamespace(), "function", fn.GetName(), "error", err)
	if transient(fault.From(err).Code) || job.errors < prepareMaxErrors && fault.From(err).Code == codes.Internal {
		return stillPending("")
	}
	return result{state: mayflyv1.FunctionState_FUNCTION_STATE_FAILED, reason: fault.From(err).Message}
}

func prepareRequest(fn *mayflyv1.Function) *agentv1.PrepareRequest {
	return &agentv1.PrepareRequest{
		Runtime: fn.GetConfiguration().GetRuntime(), CodeDigest: fn.GetCode().GetDigest(), CodeSizeBytes: fn.GetCode().GetSizeBytes(),
	}
}

func transient(c codes.Code) bool {
	return c == codes.Unavailable || c == codes.DeadlineExceeded || c == codes.Canceled || c == codes.ResourceExhausted || c == codes.Aborted
}

// workerFor finds the connected node with the runtime that has the most free memory; up tells whether any is connected.
func (f *Fleet) workerFor(runtime string) (w Worker, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	request := scheduler.Request{Runtime: runtime}
	f.snapshot.Now = time.Now()
	if plan, _ := scheduler.Place(&f.snapshot, &request); plan.Node != nil {
		return f.nodes[plan.Node.ID].session.worker, true
	}
	return f.anyWorkerLocked(runtime)
}

// anyWorkerLocked takes a node however busy it is: preparing needs no sandbox.
func (f *Fleet) anyWorkerLocked(runtime string) (w Worker, up bool) {
	for _, candidate := range f.snapshot.Nodes { // in order of their first attachment
		n := f.nodes[candidate.ID]
		if n.session == nil {
			continue
		}
		up = true
		if slices.Contains(n.Runtimes, runtime) {
			return n.session.worker, true
		}
	}
	return nil, up
}
