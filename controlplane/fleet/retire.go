package fleet

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

const (
	destroyTimeout = 30 * time.Second
	upkeepEvery    = 100 * time.Millisecond
	keepAliveEvery = time.Second
	// retireEvery bounds how often a busy state is looked through.
	retireEvery = 10 * time.Millisecond
)

// destroyLocked hands a sandbox to the destroyer. Its memory stays counted until the agent has destroyed it.
func (f *Fleet) destroyLocked(sb *sandbox, reason string) {
	f.leaveIdleLocked(sb)
	sb.state, sb.reason = removing, reason
	f.destroys = append(f.destroys, sb)
	select {
	case f.destroyWake <- struct{}{}:
	default:
	}
}

// runDestroyer destroys what is handed to it, several at once.
func (f *Fleet) runDestroyer(ctx context.Context) error {
	var g errgroup.Group
	defer g.Wait() //nolint:errcheck // its functions return none
	g.SetLimit(f.cfg.DestroyParallelism)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.destroyWake:
		}
		f.mu.Lock()
		batch := f.destroys
		f.destroys = nil
		f.mu.Unlock()
		for _, sb := range batch {
			g.Go(func() error {
				f.destroy(ctx, sb, sb.reason)
				return nil
			})
		}
	}
}

// destroy has the agent destroy a sandbox and forgets it, even if the agent fails: what it still has it reports when it
// attaches again.
func (f *Fleet) destroy(ctx context.Context, sb *sandbox, reason string) {
	f.mu.Lock()
	known := f.sandboxes[sb.id] == sb
	grant := f.nextGrantLocked()
	f.mu.Unlock()
	if !known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	_, err := sb.session.worker.DestroySandbox(ctx, &agentv1.DestroySandboxRequest{SandboxId: sb.id, Grant: grant, Reason: reason})
	if err != nil {
		f.log.Warn("a sandbox was not destroyed", "sandbox", sb.id, "node_id", sb.node.ID, "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removeLocked(sb)
	f.schedulePendingLocked()
}

// runRetirement ends, after each change of the state, what the change made outdated.
func (f *Fleet) runRetirement(ctx context.Context) error {
	for {
		view := f.cfg.View()
		changed := view.Changed()
		f.retire(view)
		if !pause(ctx, retireEvery) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// retire destroys idle sandboxes of versions that view has no more, or with other secrets, and recalls leases of them and
// those over a function's limit.
func (f *Fleet) retire(view View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, v := range f.versions {
		if v.retired = !key.current(view); v.retired {
			for len(v.idle) > 0 {
				f.destroyLocked(v.idle[0], outdated)
			}
		}
	}
	excess := f.excessLocked(view)
	for _, sb := range f.sandboxes {
		if sb.lease == nil || sb.lease.recalled.Load() {
			continue
		}
		over := excess[sb.key.Function] > 0
		if over {
			excess[sb.key.Function]--
		}
		if over || f.versions[sb.key].retired {
			sb.lease.recalled.Store(true)
		}
	}
}

// excessLocked is by how many leases functions are above their reserved concurrency.
func (f *Fleet) excessLocked(view View) map[scheduler.Function]int {
	excess := map[scheduler.Function]int{}
	for key, n := range f.limits.functions {
		fn, ok := view.Function(key.Namespace, key.Name)
		if ok && fn.ReservedConcurrency != nil && n > int(fn.GetReservedConcurrency()) {
			excess[key] = n - int(fn.GetReservedConcurrency())
		}
	}
	for _, sb := range f.sandboxes {
		if sb.lease != nil && sb.lease.recalled.Load() && excess[sb.key.Function] > 0 {
			excess[sb.key.Function]-- // on its way back
		}
	}
	return excess
}

// runUpkeep does what only time brings about.
func (f *Fleet) runUpkeep(ctx context.Context) error {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			f.unblock()
			if now.Sub(last) >= keepAliveEvery {
				last = now
				f.expire(now)
			}
		}
	}
}

// unblock retries those in line for room: pauses of nodes end by time, and holders may have idle leases meanwhile.
func (f *Fleet) unblock() {
	f.mu.Lock()
	f.schedulePendingLocked()
	waiting := 0
	for _, p := range f.pending {
		if p.refused.Crowded() {
			waiting++
		}
	}
	holders := f.holders
	f.mu.Unlock()
	if waiting > 0 {
		recall(holders, anyFunction, waiting)
	}
}

// expire destroys sandboxes that were idle for too long and ends remote sessions that fell silent.
func (f *Fleet) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		for _, id := range scheduler.Expired(n.Idle, now, f.cfg.KeepAlive) {
			f.destroyLocked(f.sandboxes[id], "it was idle for too long")
		}
		if s := n.session; s != nil && s.watched && now.UnixNano()-s.heard.Load() > int64(f.cfg.SessionTimeout) {
			f.log.Warn("an agent fell silent", "node", n.Name, "node_id", n.ID)
			f.detachLocked(s)
		}
	}
}
