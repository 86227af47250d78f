package fleet

import (
	"context"
	"sync/atomic"
	"time"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// Lease is the right to use one sandbox, for one invocation at a time. Its holder ends it by Release or Discard.
type Lease struct {
	fleet   *Fleet
	sandbox *sandbox
	worker  Worker
	grant   *agentv1.Grant
	// recalled: no new invocation may start. ended is set once the sandbox is no longer the holder's.
	recalled, ended atomic.Bool
}

// SandboxID is the id of the sandbox.
func (l *Lease) SandboxID() string { return l.sandbox.id }

// Grant orders this lease among all of the sandbox.
func (l *Lease) Grant() *agentv1.Grant { return l.grant }

// Usable tells whether an invocation may start: the sandbox lives and its version is current. A lease that isn't usable
// is released.
func (l *Lease) Usable() bool { return !l.ended.Load() && !l.recalled.Load() }

// Keep tells whether the holder may keep the lease while it has no use for it.
func (l *Lease) Keep() bool { return l.Usable() && !l.fleet.crowded.Load() }

// Invoke runs one invocation and returns when the sandbox is free again, whatever becomes of the caller meanwhile: the
// end of ctx doesn't end it. It fills sandbox id and grant of r.
func (l *Lease) Invoke(ctx context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	r.SandboxId, r.Grant = l.sandbox.id, l.grant
	if ctx.Done() != nil {
		ctx = context.WithoutCancel(ctx)
	}
	return l.worker.Invoke(ctx, r, emit)
}

// Release gives a healthy sandbox back. Ending a lease twice is no error.
func (l *Lease) Release() {
	f := l.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.sandbox.lease != l {
		return
	}
	f.endLeaseLocked(l.sandbox)
	f.becomeIdleLocked(l.sandbox)
	f.schedulePendingLocked()
}

// Discard gives up a sandbox that can't be used again: it is destroyed, unless it is gone already.
func (l *Lease) Discard(gone bool) {
	f := l.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.sandbox.lease != l {
		return
	}
	if gone {
		f.removeLocked(l.sandbox)
	} else {
		f.endLeaseLocked(l.sandbox)
		f.destroyLocked(l.sandbox, "its invocation ended badly")
	}
	f.schedulePendingLocked()
}

// grantLocked leases a sandbox; the lease is counted already.
func (f *Fleet) grantLocked(sb *sandbox) *Lease {
	f.leaveIdleLocked(sb)
	sb.state = leased
	sb.grant = f.nextGrantLocked()
	sb.lease = &Lease{fleet: f, sandbox: sb, worker: sb.session.worker, grant: sb.grant}
	return sb.lease
}

func (f *Fleet) endLeaseLocked(sb *sandbox) {
	if sb.lease == nil {
		return
	}
	sb.lease.ended.Store(true)
	sb.lease = nil
	sb.lastUsed = time.Now()
	f.limits.give(sb.key.Function)
}
