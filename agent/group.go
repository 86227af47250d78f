package agent

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// group is the sandboxes of one function version on this node. They are all the same to the function's callers, so the
// agent decides which of those that wait an invocation gets: the one used last, of whose memory most is in the caches.
// The control plane names a sandbox that it holds on lease; two sandboxes that wait exchange their names, and with them
// their grants, before one of them runs the invocation (docs/adr/0010-sandboxes-exchange-names.md).
type group struct {
	key groupKey
	// members is guarded by Agent.groupsMu.
	members int
	// quickest is how long an invocation takes when little is in its way, in nanoseconds; 0: unknown.
	quickest atomic.Int64

	mu sync.Mutex
	// waiting is the sandboxes that are idle, the one used last being last. Some may have ended.
	waiting []*box
}

type groupKey struct {
	namespace, function, version string
	code, secrets                uint64 // revisions
}

func groupKeyOf(s *agentv1.SandboxSpec) groupKey {
	return groupKey{s.GetNamespace(), s.GetFunction(), s.GetVersion(), s.GetCodeRevision(), s.GetSecretsRevision()}
}

// join finds or makes the group of a new sandbox.
func (a *Agent) join(b *box) {
	a.groupsMu.Lock()
	defer a.groupsMu.Unlock()
	k := groupKeyOf(b.spec)
	g := a.groups[k]
	if g == nil {
		g = &group{key: k}
		a.groups[k] = g
	}
	g.members++
	b.group = g
}

// leave takes a sandbox that serves no more out of its group, and its name with it.
func (a *Agent) leave(b *box) {
	g := b.group
	g.mu.Lock()
	g.dropLocked(b)
	a.names.Delete(b.name)
	g.mu.Unlock()
	a.part(b)
}

// part takes a sandbox out of the count of its group.
func (a *Agent) part(b *box) {
	a.groupsMu.Lock()
	defer a.groupsMu.Unlock()
	g := b.group
	if g.members--; g.members == 0 {
		delete(a.groups, g.key)
	}
}

func (g *group) dropLocked(b *box) {
	for i, other := range slices.Backward(g.waiting) { // it's among the last, mostly
		if other == b {
			g.waiting = slices.Delete(g.waiting, i, i+1)
			return
		}
	}
}

// wait takes a sandbox that waits for an invocation.
func (g *group) wait(b *box) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, b)
}

// invoke gives the invocation the sandbox used last, under the name that the control plane said. nil: no sandbox has it.
func (a *Agent) invoke(name string, grant sandbox.Grant) (*box, sandbox.Machine, sandbox.Refusal) {
	b := a.named(name)
	if b == nil {
		return nil, sandbox.Machine{}, sandbox.RefusedGone
	}
	g := b.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if b = a.named(name); b == nil {
		return nil, sandbox.Machine{}, sandbox.RefusedGone
	}
	if hot := g.hottestLocked(); hot != nil && hot != b && a.exchange(b, hot) {
		b = hot
	}
	m, _, refusal := b.step(sandbox.Event{Kind: sandbox.EventInvoke, Grant: grant})
	if refusal == sandbox.Accepted {
		g.dropLocked(b)
	}
	return b, m, refusal
}

// hottestLocked is the waiting sandbox used last; those that have ended meanwhile are forgotten.
func (g *group) hottestLocked() *box {
	for n := len(g.waiting); n > 0; n-- {
		if b := g.waiting[n-1]; b.machine().State == sandbox.StateIdle {
			return b
		}
		g.waiting[n-1] = nil
		g.waiting = g.waiting[:n-1]
	}
	return nil
}

// exchange swaps the names and grants of two sandboxes of a group whose lock is held, if both are idle.
func (a *Agent) exchange(b, c *box) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.m.State != sandbox.StateIdle || c.m.State != sandbox.StateIdle {
		return false
	}
	b.name, c.name = c.name, b.name
	b.m.Grant, c.m.Grant = c.m.Grant, b.m.Grant
	a.names.Store(b.name, b)
	a.names.Store(c.name, c)
	return true
}

// destroyNamed has the sandbox of that name destroyed; nil: there is none.
func (a *Agent) destroyNamed(name, reason string, grant sandbox.Grant) (*box, sandbox.Refusal) {
	b := a.named(name)
	if b == nil {
		return nil, sandbox.Accepted
	}
	g := b.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if b = a.named(name); b == nil {
		return nil, sandbox.Accepted
	}
	b.mu.Lock()
	before := b.reason
	b.reason = reason
	b.mu.Unlock()
	_, _, refusal := b.step(sandbox.Event{Kind: sandbox.EventDestroy, Grant: grant})
	if refusal != sandbox.Accepted {
		b.mu.Lock()
		b.reason = before
		b.mu.Unlock()
	}
	return b, refusal
}

// named finds a sandbox by the control plane's name for it.
func (a *Agent) named(name string) *box {
	v, ok := a.names.Load(name)
	if !ok {
		return nil
	}
	return v.(*box) // the map's only type
}

// took learns from an invocation's time: the quickest of late counts, as others may have waited for a CPU.
func (g *group) took(d time.Duration) {
	n := int64(d)
	if old := g.quickest.Load(); old > 0 {
		n = min(n, old+old/64+1)
	}
	g.quickest.Store(n)
}

// quick tells whether invocations are known to take less than d.
func (g *group) quick(d time.Duration) bool {
	n := g.quickest.Load()
	return n > 0 && n < int64(d)
}
