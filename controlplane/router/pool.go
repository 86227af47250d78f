package router

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type functionKey struct{ namespace, name string }

type poolKey struct {
	functionKey
	version  string
	revision uint64
	secrets  uint64
}

// function counts what waits for any version of it.
type function struct {
	waiting atomic.Int64
	pools   int // Router.mu guards it
}

// pool is the leased sandboxes of one version, and those who wait for one, oldest first. Each waiter has a start under
// way for it. If another sandbox comes first, the oldest waiter gets that one, and its start goes to who is left; a start
// that nobody is left for is an orphan: it is called off if it hasn't begun, and else serves whoever comes next.
type pool struct {
	router   *Router
	key      poolKey
	spec     *agentv1.SandboxSpec
	function *function

	mu      sync.Mutex
	idle    []idleLease // the last used is last
	busy    int
	waiters []*waiter
	orphans []*start
	starts  int
	closed  bool
}

type idleLease struct {
	lease Lease
	since time.Time
}

type waiter struct {
	granted chan grant // takes one
	start   *start
	expired bool
}

// start is an Acquire under way.
type start struct {
	ctx    context.Context
	cancel context.CancelFunc
	waiter *waiter // nil: orphan
}

// grant is what a waiter gets: a lease, or how the start for it failed.
type grant struct {
	lease Lease
	// started is set if a start brought the lease, or failed in the function's init.
	started *agentv1.CreateSandboxResponse
	waited  bool
	err     error
}

// errClosed tells that the pool was forgotten: the version has another one now, or none.
var errClosed = errors.New("pool closed")

// take leases a sandbox, waiting for one if it must.
func (p *pool) take(ctx context.Context) (grant, error) {
	g, useless, w, err := p.enter()
	for _, l := range useless {
		l.Release()
	}
	if w == nil {
		return g, err
	}
	g = p.wait(ctx, w)
	return g, g.err
}

// enter pops the sandbox used last, or joins the queue.
func (p *pool) enter() (g grant, useless []Lease, w *waiter, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return g, nil, nil, errClosed
	}
	for n := len(p.idle) - 1; n >= 0 && len(p.waiters) == 0; n-- {
		l := p.idle[n].lease
		p.idle[n] = idleLease{}
		p.idle = p.idle[:n]
		if l.Usable() {
			p.busy++
			return grant{lease: l}, useless, nil, nil
		}
		useless = append(useless, l)
	}
	if limit := p.router.cfg.QueueLength; p.function.waiting.Add(1) > int64(limit) {
		p.function.waiting.Add(-1)
		return g, useless, nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_QUEUE_FULL,
			"Rate Exceeded. %d invocations of function %q in namespace %q wait for a sandbox already: retry later", limit, p.key.name, p.key.namespace)
	}
	w = &waiter{granted: make(chan grant, 1)}
	p.waiters = append(p.waiters, w)
	p.coverLocked()
	return g, useless, w, nil
}

// coverLocked sees to it that waiters without a start get one, an orphan first.
func (p *pool) coverLocked() {
	bare := len(p.waiters) - (p.starts - len(p.orphans))
	fresh := p.router.cfg.Starts(len(p.waiters), p.starts, 0)
	for i := len(p.waiters) - 1; i >= 0 && bare > 0; i-- { // those without are among the last
		w := p.waiters[i]
		if w.start != nil {
			continue
		}
		bare--
		if n := len(p.orphans); n > 0 {
			w.start, p.orphans = p.orphans[n-1], p.orphans[:n-1]
			w.start.waiter = w
		} else if fresh > 0 {
			fresh--
			p.beginLocked(w)
		}
	}
}

func (p *pool) beginLocked(w *waiter) {
	if p.router.ctx.Err() != nil {
		p.grantLocked(w, grant{err: stopping()})
		return
	}
	s := &start{waiter: w}
	s.ctx, s.cancel = context.WithCancel(p.router.ctx)
	w.start = s
	p.starts++
	p.router.starts.Go(func() {
		lease, resp, err := p.router.cfg.Home.Acquire(s.ctx, p.spec)
		if l := p.ended(s, lease, resp, err); l != nil {
			l.Release()
		}
		s.cancel()
	})
}

func stopping() error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "this node is stopping: retry, at another node")
}

// ended takes the outcome of a start. It answers a lease that nobody has use for.
func (p *pool) ended(s *start, lease Lease, resp *agentv1.CreateSandboxResponse, err error) Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starts--
	p.orphans = slices.DeleteFunc(p.orphans, func(o *start) bool { return o == s })
	w := s.waiter
	if w != nil {
		w.start = nil
	}
	switch {
	case err == nil && lease != nil:
		useless := p.offerLocked(lease, resp)
		p.coverLocked() // w, if the lease was recalled meanwhile or served one without a start
		return useless
	case w == nil:
		p.router.log.Debug("a sandbox that nobody waits for was not started", "namespace", p.key.namespace, "function", p.key.name, "error", err)
	case err != nil && s.ctx.Err() != nil && !w.expired && p.router.ctx.Err() == nil:
		p.coverLocked() // it was called off as an orphan, and found its waiter too late
	case err != nil && p.router.ctx.Err() != nil:
		p.grantLocked(w, grant{err: stopping()})
	default:
		p.grantLocked(w, grant{started: resp, waited: true, err: err})
	}
	return nil
}

// offerLocked gives a lease to the oldest waiter, else keeps it; it answers one that must go back home.
func (p *pool) offerLocked(l Lease, started *agentv1.CreateSandboxResponse) Lease {
	if !l.Usable() {
		return l
	}
	if len(p.waiters) > 0 {
		w := p.waiters[0]
		p.grantLocked(w, grant{lease: l, started: started, waited: true})
		p.busy++
		p.handOnLocked(w.start)
		return nil
	}
	if p.closed || p.router.ctx.Err() != nil || !l.Keep() {
		return l
	}
	p.idle = append(p.idle, idleLease{l, time.Now()})
	return nil
}

// handOnLocked gives a start whose waiter was served to one without, else it makes it an orphan and calls it off.
func (p *pool) handOnLocked(s *start) {
	if s == nil {
		return
	}
	s.waiter = nil
	for _, w := range p.waiters {
		if w.start == nil {
			w.start, s.waiter = s, w
			if w.expired {
				s.cancel()
			}
			return
		}
	}
	p.orphans = append(p.orphans, s)
	s.cancel()
}

// grantLocked ends a wait.
func (p *pool) grantLocked(w *waiter, g grant) {
	p.waiters = slices.DeleteFunc(p.waiters, func(other *waiter) bool { return other == w })
	p.function.waiting.Add(-1)
	w.granted <- g
}

func (p *pool) wait(ctx context.Context, w *waiter) grant {
	limit := time.NewTimer(p.router.cfg.MaxWait)
	defer limit.Stop()
	for {
		select {
		case g := <-w.granted:
			return g
		case <-limit.C:
			p.expireWaiter(w)
		case <-ctx.Done():
			if g, granted := p.leave(w); granted && g.lease != nil {
				p.put(g.lease)
			}
			return grant{err: gone(ctx)}
		}
	}
}

// expireWaiter calls the waiter's start off: if it hasn't begun it ends with NO_CAPACITY.
func (p *pool) expireWaiter(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.expired = true
	switch {
	case len(w.granted) > 0:
	case w.start != nil:
		w.start.cancel()
	default:
		p.grantLocked(w, grant{err: fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY,
			"no sandbox of function %q in namespace %q came free within %v: retry later, or add a node", p.key.name, p.key.namespace, p.router.cfg.MaxWait)})
	}
}

// leave takes a waiter out of the queue, unless it has been granted something just before.
func (p *pool) leave(w *waiter) (grant, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case g := <-w.granted:
		return g, true
	default:
	}
	p.grantLocked(w, grant{})
	p.handOnLocked(w.start)
	return grant{}, false
}

// put brings a sandbox back after an invocation.
func (p *pool) put(l Lease) {
	p.mu.Lock()
	p.busy--
	l = p.offerLocked(l, nil)
	p.mu.Unlock()
	if l != nil {
		l.Release()
	}
}

// discard gives up a sandbox after an invocation.
func (p *pool) discard(l Lease, gone bool) {
	p.mu.Lock()
	p.busy--
	p.mu.Unlock()
	l.Discard(gone)
}

// expire takes out the leases that are idle since before the given time, unusable or wanted back. If the pool has no use
// then, it is closed.
func (p *pool) expire(before time.Time) (leases []Lease, empty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = slices.DeleteFunc(p.idle, func(i idleLease) bool {
		out := i.since.Before(before) || !i.lease.Keep()
		if out {
			leases = append(leases, i.lease)
		}
		return out
	})
	if !p.closed && len(leases)+len(p.idle)+p.busy+len(p.waiters)+p.starts == 0 {
		p.closed, empty = true, true
	}
	return leases, empty
}

func (p *pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// recall takes out up to n idle leases, those unused for longest.
func (p *pool) recall(n int) []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = min(n, len(p.idle))
	leases := make([]Lease, n)
	for i := range n {
		leases[i] = p.idle[i].lease
	}
	p.idle = slices.Delete(p.idle, 0, n)
	return leases
}

// shut closes the pool and takes out all idle leases; those in use go home when they are put back.
func (p *pool) shut() []Lease {
	p.mu.Lock()
	p.closed = true
	n := len(p.idle)
	p.mu.Unlock()
	return p.recall(n)
}
