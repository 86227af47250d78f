package agent

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// A control plane that is lost is tried again after this, and up to the maximum each time twice as long.
	reattachMin = 50 * time.Millisecond
	reattachMax = 5 * time.Second
	// imagesEvery is how many reports lie between two looks at the runtime images.
	imagesEvery = 10
	// reportAgain is no state: it makes the next report have the sandbox.
	reportAgain = -1
)

// reporter keeps one control plane attached and tells it what changes. What ends while a session begins is
// neither in its hello, perhaps, nor reported: the reporter keeps it until the session is there.
type reporter struct {
	agent        *Agent
	controlPlane ControlPlane

	mu        sync.Mutex
	session   Session
	attaching bool
	backlog   []*agentv1.SandboxStatus
}

// run attaches, again and again, until ctx ends.
func (r *reporter) run(ctx context.Context) error {
	pause := reattachMin
	for ctx.Err() == nil {
		session, err := r.attach(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.agent.log.Warn("no session with the control plane; trying again", "error", err, "pause", pause)
			}
			sleep(ctx, pause/2+rand.N(pause/2)) // jitter
			pause = min(2*pause, reattachMax)
			continue
		}
		pause = reattachMin
		select {
		case <-session.Done():
			r.agent.log.Warn("lost the session with the control plane; sandboxes live on")
		case <-ctx.Done():
		}
		r.detach()
		if err := session.Close(); err != nil {
			r.agent.log.Debug("session ended", "error", err)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (r *reporter) attach(ctx context.Context) (Session, error) {
	r.mu.Lock()
	r.attaching, r.backlog = true, nil
	r.mu.Unlock()
	session, err := r.controlPlane.Attach(ctx, r.agent.hello(), r.agent)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attaching = false
	if err != nil {
		return nil, err
	}
	r.session = session
	for b := range r.agent.all() {
		b.reportedAs.Store(reportAgain) // changes since hello have found nobody
	}
	if len(r.backlog) > 0 {
		session.Report(&agentv1.Report{Used: r.agent.room.used(), Sandboxes: r.backlog})
	}
	r.backlog = nil
	return session, nil
}

func (r *reporter) detach() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session = nil
}

// report sends a report, if somebody is there. What is gone is kept for a session that begins now.
func (r *reporter) report(rep *agentv1.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session != nil {
		r.session.Report(rep)
		return
	}
	if !r.attaching {
		return
	}
	for _, s := range rep.GetSandboxes() {
		if s.GetState() == agentv1.SandboxState_SANDBOX_STATE_GONE {
			r.backlog = append(r.backlog, s)
		}
	}
}

// hello announces the agent with what lives now.
func (a *Agent) hello() *agentv1.Hello {
	h := &agentv1.Hello{
		NodeId: a.cfg.NodeID, NodeName: a.cfg.NodeName, InstanceId: a.instanceID, MayflyVersion: a.cfg.Version,
		Capacity: a.cfg.Capacity, Runtimes: a.images.list(), EgressError: a.cfg.EgressError,
	}
	for name, b := range a.allNamed() {
		s := b.status()
		s.SandboxId = name // it may just have exchanged names
		if s.GetState() != agentv1.SandboxState_SANDBOX_STATE_GONE {
			h.Sandboxes = append(h.Sandboxes, s)
		}
	}
	return h
}

// reportGone tells all control planes at once that a sandbox serves no more; no older status comes after.
func (a *Agent) reportGone(b *box) {
	a.reporting.Lock()
	defer a.reporting.Unlock()
	a.reportAll(&agentv1.Report{Used: a.room.used(), Sandboxes: []*agentv1.SandboxStatus{b.status()}})
}

func (a *Agent) reportAll(rep *agentv1.Report) {
	for _, r := range a.reports {
		r.report(rep)
	}
}

// observe reports load, and what has changed, once per interval.
func (a *Agent) observe(ctx context.Context) error {
	tick := time.NewTicker(a.cfg.ReportInterval)
	defer tick.Stop()
	known := a.images.list()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var images []*mayflyv1.RuntimeImage
		if n%imagesEvery == 0 {
			if now := a.images.list(); !sameImages(known, now) {
				known, images = now, now
				a.mayPrune()
			}
		}
		a.sampleUsed()
		a.reporting.Lock()
		a.reportAll(&agentv1.Report{Used: a.room.used(), Sandboxes: a.changes(), Runtimes: images})
		a.reporting.Unlock()
	}
}

// sampleUsed measures the memory of sandboxes that were used since the last time.
func (a *Agent) sampleUsed() {
	for b := range a.all() {
		if b.usedSince.Swap(b.machine().State == sandbox.StateBusy) {
			b.sample()
		}
	}
}

// changes is the status of the sandboxes that changed since the last report.
func (a *Agent) changes() []*agentv1.SandboxStatus {
	var all []*agentv1.SandboxStatus
	for b := range a.all() {
		s := b.status()
		if s.GetState() == agentv1.SandboxState_SANDBOX_STATE_GONE {
			continue // reported by reportGone
		}
		if b.reportedAs.Swap(int32(s.GetState())) != int32(s.GetState()) {
			all = append(all, s)
		}
	}
	return all
}

func sameImages(a, b []*mayflyv1.RuntimeImage) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
