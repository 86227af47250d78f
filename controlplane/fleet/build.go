package fleet

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// build has all connected nodes build the image of a function's runtime, which none has: the agents do that when a
// function is prepared. One function does it for all that wait for the same runtime.
func (p *preparer) build(ctx context.Context, fn *mayflyv1.Function, job *preparation) result {
	runtime := fn.GetConfiguration().GetRuntime()
	workers := p.fleet.connected()
	if len(workers) == 0 {
		return stillPending("")
	}
	names := make([]string, len(workers))
	for i, w := range workers {
		names[i] = w.name
	}
	begun := stillPending("the runtime " + runtime + " is being built on " + strings.Join(names, ", ") + ": the first time takes minutes")
	if !p.beginBuild(runtime) {
		begun.waits = true
		return begun
	}
	defer p.endBuild(runtime)
	if err := p.record(ctx, fn, begun); err != nil {
		return stillPending("")
	}
	err := p.buildOn(ctx, fn, workers)
	if err == nil {
		// Their reports tell that they have it; then any of them prepares the function.
		return result{state: mayflyv1.FunctionState_FUNCTION_STATE_PENDING, waits: true}
	}
	p.fleet.log.Warn("a runtime was not built", "runtime", runtime, "error", err)
	e := fault.From(err)
	if ctx.Err() != nil || e.Code == codes.Canceled || job.errors < prepareMaxErrors && (transient(e.Code) || e.Code == codes.Internal) {
		return stillPending(noRuntime + runtime + " yet: " + e.Message)
	}
	return result{
		state:  mayflyv1.FunctionState_FUNCTION_STATE_FAILED,
		reason: noRuntime + runtime + ": " + e.Message + "; mend that and run `mayfly runtime build " + runtime + "` on a node with an agent",
	}
}

func (p *preparer) beginBuild(runtime string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.building[runtime] {
		return false
	}
	p.building[runtime] = true
	return true
}

func (p *preparer) endBuild(runtime string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.building, runtime)
}

// buildOn prepares a function on several nodes at once. It is done when all have ended, and well if one ended well;
// otherwise the error is that of the first node.
func (p *preparer) buildOn(ctx context.Context, fn *mayflyv1.Function, workers []namedWorker) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	errs := make([]error, len(workers))
	var all sync.WaitGroup
	for i, w := range workers {
		all.Go(func() { _, errs[i] = w.Prepare(ctx, prepareRequest(fn)) })
	}
	all.Wait()
	if slices.Contains(errs, nil) {
		return nil
	}
	return errs[0]
}

type namedWorker struct {
	Worker
	name string
}

// connected is the agents of all nodes that are up, by name.
func (f *Fleet) connected() []namedWorker {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []namedWorker
	for _, n := range f.nodes {
		if n.session != nil {
			all = append(all, namedWorker{n.session.worker, n.Name})
		}
	}
	slices.SortFunc(all, func(a, b namedWorker) int { return cmp.Compare(a.name, b.name) })
	return all
}
