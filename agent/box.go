package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-faas/mayfly/agent/code"
	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/logs"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	sandboxesDir   = "s"
	socketName     = "agent.sock"
	logName        = "log"
	sandboxPIDs    = 1024
	retryPause     = time.Second
	usageTimeout   = time.Second
	destroyTimeout = 30 * time.Second
)

// box is one sandbox of the agent: the machine, and what performs its effects.
type box struct {
	agent *Agent
	id    string // of the container; at first the name, too
	group *group
	spec  *agentv1.SandboxSpec
	image *image
	dir   string // of the socket and the log
	code  *code.Ref
	logs  *logs.Stream
	// stream is the log stream's name.
	stream string

	claimed chan struct{} // closed when the claim has ended
	gone    chan struct{} // closed when nothing is left

	mu      sync.Mutex
	name    string // of the control plane; changes under the group's lock, too, and only while the sandbox is idle
	m       sandbox.Machine
	attempt *attempt
	reason  string // why it is destroyed
	// Set before claimed is closed.
	createErr   error
	initBody    []byte // of InitError
	initTail    []byte
	initTook    time.Duration
	usedSince   atomic.Bool   // invoked since the last sample
	peak        atomic.Int64  // most memory seen, in bytes
	reportedAs  atomic.Int32  // state in the last report
	wasSampled  bool          // by the one invocation that runs
	lastTook    time.Duration // of the last invocation
	memoryLimit int
}

// attempt is one container of a sandbox.
type attempt struct {
	number   uint8
	ctx      context.Context // ends Create
	cancel   context.CancelFunc
	listener *net.UnixListener
	link     *link
	started  time.Time // when PID 1 ran
	// shutdownTime is how long the bootstrap may take after a Shutdown; 0: it is killed at once.
	shutdownTime time.Duration
	exit         sandbox.Exit
	exited       chan struct{} // closed when exit is known
	ended        chan struct{} // closed by interrupt
	endOnce      sync.Once
}

// step takes an event, and performs what follows. It returns the machine after it.
func (b *box) step(e sandbox.Event) (sandbox.Machine, sandbox.Effects, sandbox.Refusal) {
	b.mu.Lock()
	m, effects, refusal := b.m.Step(e)
	b.m = m
	b.mu.Unlock()
	if effects&^(sandbox.EffectSend|sandbox.EffectOutcome) != 0 {
		b.perform(m, effects)
	}
	return m, effects, refusal
}

// end is step for what the agent itself decides.
func (b *box) end(reason string) {
	b.mu.Lock()
	if b.reason == "" {
		b.reason = reason
	}
	b.mu.Unlock()
	b.step(sandbox.Event{Kind: sandbox.EventKill})
}

// perform does the effects, in order. EffectSend and EffectAwaitExit are done by who caused them.
func (b *box) perform(m sandbox.Machine, effects sandbox.Effects) {
	for f := sandbox.EffectCreate; f <= sandbox.EffectGone; f <<= 1 {
		if effects.Has(f) {
			b.performOne(m, f)
		}
	}
}

func (b *box) performOne(m sandbox.Machine, f sandbox.Effects) {
	tasks := &b.agent.tasks
	switch f {
	case sandbox.EffectCreate:
		tasks.Go(func() { b.create(m) })
	case sandbox.EffectPlace:
		tasks.Go(func() { b.place(m) })
	case sandbox.EffectLoad:
		tasks.Go(func() { b.load(m) })
	case sandbox.EffectInterrupt:
		b.interrupt(m)
	case sandbox.EffectInitAgain:
		b.logs.Notice(initReport(m.Init, b.initLimit(m), m.Attempt))
	case sandbox.EffectClaimed:
		b.endClaim(m)
	case sandbox.EffectReport:
		b.agent.reportGone(b)
	case sandbox.EffectDestroy:
		tasks.Go(func() { b.destroy(m) })
	case sandbox.EffectRetryDestroy:
		tasks.Go(func() {
			b.pause(retryPause)
			b.destroy(m)
		})
	case sandbox.EffectGone:
		b.release()
	}
}

func (b *box) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.agent.life.Done():
	}
}

// create listens for the bootstrap and makes the container.
func (b *box) create(m sandbox.Machine) {
	att := &attempt{number: m.Attempt, exited: make(chan struct{}), ended: make(chan struct{})}
	att.ctx, att.cancel = context.WithTimeout(b.agent.life, b.agent.cfg.CreateTimeout)
	defer att.cancel()
	listener, err := listen(filepath.Join(b.dir, socketName))
	att.listener = listener
	b.mu.Lock()
	b.attempt = att
	dying := b.m.State != sandbox.StateCreating
	b.mu.Unlock()
	if err == nil && dying {
		err = errors.Join(context.Canceled, listener.Close())
	}
	if err == nil {
		b.agent.tasks.Go(func() { b.hello(att, m.Epoch) })
		err = b.agent.cfg.Runtime.Create(att.ctx, b.config())
	}
	if err != nil {
		b.mu.Lock()
		b.createErr = err
		b.mu.Unlock()
		b.step(sandbox.Event{Kind: sandbox.EventCreateFailed, Attempt: att.number})
		return
	}
	att.started = time.Now()
	b.agent.tasks.Go(func() { b.wait(att) })
	b.step(sandbox.Event{Kind: sandbox.EventCreated, Attempt: att.number})
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// The sandbox's user isn't known here; nobody else reaches the directory.
	if err := os.Chmod(path, 0o666); err != nil { // see above
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (b *box) config() sandbox.Config {
	return sandbox.Config{
		ID: b.id, RootFS: b.image.rootFS, Command: b.image.command(), Env: processEnv(b.memoryLimit), CodeDir: b.code.Dir, SocketDir: b.dir,
		MemoryBytes: b.spec.GetMemoryBytes(), MilliCPUs: b.spec.GetMilliCpus(), PIDs: sandboxPIDs, TmpBytes: b.spec.GetTmpBytes(),
		SecretFiles: b.spec.GetSecretFiles(),
		Egress:      egressOf(b.spec.GetEgress()),
	}
}

func egressOf(p mayflyv1.EgressPolicy) sandbox.Egress {
	switch p {
	case mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET:
		return sandbox.EgressInternet
	case mayflyv1.EgressPolicy_EGRESS_POLICY_ALL:
		return sandbox.EgressAll
	}
	return sandbox.EgressNone
}

// hello waits for the bootstrap: one connection, and no other ever.
func (b *box) hello(att *attempt, epoch uint32) {
	limit := time.Now().Add(b.agent.cfg.CreateTimeout)
	_ = att.listener.SetDeadline(limit)
	conn, err := att.listener.AcceptUnix()
	_ = att.listener.Close()
	if err != nil {
		b.step(sandbox.Event{Kind: sandbox.EventTimeout, Epoch: epoch})
		return
	}
	l, err := newLink(conn, limit)
	if err != nil {
		_ = conn.Close()
		b.disconnected(att)
		return
	}
	b.mu.Lock()
	att.link = l
	dying := b.attempt != att || b.m.State == sandbox.StateDestroying || b.m.State == sandbox.StateGone
	b.mu.Unlock()
	if dying {
		l.close()
	}
	b.step(sandbox.Event{Kind: sandbox.EventHello, Attempt: att.number})
}

// disconnected waits a little for the exit status of a bootstrap that has hung up.
func (b *box) disconnected(att *attempt) {
	m, effects, _ := b.step(sandbox.Event{Kind: sandbox.EventDisconnect, Attempt: att.number})
	if !effects.Has(sandbox.EffectAwaitExit) {
		return
	}
	t := time.NewTimer(b.agent.cfg.ExitGrace)
	defer t.Stop()
	select {
	case <-att.exited:
		b.exited(att)
	case <-t.C:
		b.step(sandbox.Event{Kind: sandbox.EventTimeout, Epoch: m.Epoch})
	}
}

func (b *box) exited(att *attempt) {
	b.step(sandbox.Event{Kind: sandbox.EventExit, Attempt: att.number, Exit: att.exit})
}

// checkExit is for who has just read an answer: the process may have been dead by then.
func (b *box) checkExit(att *attempt) {
	select {
	case <-att.exited:
		b.exited(att)
	default:
	}
}

// wait learns how PID 1 ends. Its last words may be in the socket still: whoever reads there finds them, then the
// end of the connection, and tells that it has exited. wait does so if nobody reads, or if that takes long.
func (b *box) wait(att *attempt) {
	exit, err := b.agent.cfg.Runtime.Wait(b.agent.life, b.id)
	if err != nil {
		if b.agent.life.Err() != nil {
			return
		}
		b.agent.log.Error("lost track of a sandbox", "sandbox", b.id, "error", err)
		exit = sandbox.Exit{Code: sandbox.ExitUnknown, Time: time.Now()}
	}
	att.exit = exit
	close(att.exited)
	if s := b.machine().State; s == sandbox.StateLoading || s == sandbox.StateBusy {
		t := time.NewTimer(b.agent.cfg.ExitGrace)
		defer t.Stop()
		select {
		case <-att.ended:
		case <-t.C:
		}
	}
	b.exited(att)
}

func (b *box) place(m sandbox.Machine) {
	kind := sandbox.EventPlaced
	ctx, cancel := context.WithTimeout(b.agent.life, b.agent.cfg.CreateTimeout)
	defer cancel()
	if err := b.agent.cfg.Runtime.PlaceCode(ctx, b.id, b.code.Dir); err != nil {
		kind = sandbox.EventPlaceFailed
		b.mu.Lock()
		b.createErr = err
		b.mu.Unlock()
	}
	b.step(sandbox.Event{Kind: kind, Attempt: m.Attempt})
}

// load has the bootstrap initialise the function.
func (b *box) load(m sandbox.Machine) {
	b.mu.Lock()
	att := b.attempt
	b.mu.Unlock()
	limit := b.agent.cfg.InitTimeout
	if att.number > 1 {
		limit = b.spec.GetTimeout().AsDuration()
	}
	ok, body, err := att.link.load(b.loadFrame(), time.Now().Add(limit))
	exit, exited := errors.AsType[*exitError](err)
	switch {
	case exited:
		b.functionExited(att, exit.Status)
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.step(sandbox.Event{Kind: sandbox.EventTimeout, Epoch: m.Epoch})
	case err != nil:
		b.disconnected(att)
	case ok:
		b.ready(att, body)
	default:
		b.mu.Lock()
		b.initBody = body
		b.mu.Unlock()
		b.step(sandbox.Event{Kind: sandbox.EventInitFailed, Attempt: att.number})
	}
}

func (b *box) ready(att *attempt, body []byte) {
	var ready frame.Ready
	if len(body) > 0 {
		_ = json.Unmarshal(body, &ready) // without a time it is killed at once
	}
	b.mu.Lock()
	b.initTook = time.Since(att.started)
	att.shutdownTime = min(time.Duration(ready.ShutdownMS)*time.Millisecond, maxShutdown)
	b.mu.Unlock()
	b.sample()
	b.logs.EndInit("")
	b.step(sandbox.Event{Kind: sandbox.EventReady, Attempt: att.number})
	b.checkExit(att)
}

// endClaim makes the result of the claim known to CreateSandbox.
func (b *box) endClaim(m sandbox.Machine) {
	if m.Init == sandbox.OutcomeOK {
		b.group.wait(b)
	} else {
		tail := b.logs.EndInit(initReport(m.Init, b.initLimit(m), m.Attempt))
		b.mu.Lock()
		b.initTail = tail
		b.mu.Unlock()
	}
	close(b.claimed)
}

func (b *box) initLimit(m sandbox.Machine) time.Duration {
	if m.Attempt > 1 {
		return b.spec.GetTimeout().AsDuration()
	}
	return b.agent.cfg.InitTimeout
}

func (b *box) destroy(m sandbox.Machine) {
	b.awaitShutdown()
	ctx, cancel := context.WithTimeout(b.agent.life, destroyTimeout)
	defer cancel()
	kind := sandbox.EventDestroyed
	if err := b.agent.cfg.Runtime.Destroy(ctx, b.id); err != nil {
		if b.agent.life.Err() != nil {
			return // the next start of the agent does it
		}
		b.agent.log.Error("can't destroy a sandbox; trying again", "sandbox", b.id, "error", err)
		kind = sandbox.EventDestroyFailed
	}
	b.step(sandbox.Event{Kind: kind, Attempt: m.Attempt})
}

// release gives back all that the sandbox had on the node.
func (b *box) release() {
	b.logs.Close()
	if err := os.RemoveAll(b.dir); err != nil {
		b.agent.log.Error("can't remove a sandbox's directory", "dir", b.dir, "error", err)
	}
	b.code.Release()
	b.image.release()
	if !b.agent.images.current(b.image) {
		b.agent.mayPrune()
	}
	b.agent.room.give(b.spec.GetMemoryBytes(), b.spec.GetMilliCpus())
	b.agent.leave(b)
	b.agent.boxes.Delete(b.id)
	close(b.gone)
}

// sample reads the memory that the sandbox has used at most.
func (b *box) sample() {
	ctx, cancel := context.WithTimeout(b.agent.life, usageTimeout)
	defer cancel()
	u, err := b.agent.cfg.Runtime.Usage(ctx, b.id)
	if err != nil {
		return // it may be gone
	}
	b.notePeak(max(u.PeakMemoryBytes, u.MemoryBytes))
}

func (b *box) notePeak(n int64) {
	for {
		old := b.peak.Load()
		if n <= old || b.peak.CompareAndSwap(old, n) {
			return
		}
	}
}

// machine is the present state.
func (b *box) machine() sandbox.Machine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m
}

// status is what the control plane is told.
func (b *box) status() *agentv1.SandboxStatus {
	b.mu.Lock()
	m, reason, name := b.m, b.reason, b.name
	b.mu.Unlock()
	s := &agentv1.SandboxStatus{
		SandboxId: name, State: wireState(m.State), Namespace: b.spec.GetNamespace(), Function: b.spec.GetFunction(),
		Version: b.spec.GetVersion(), CodeRevision: b.spec.GetCodeRevision(), SecretsRevision: b.spec.GetSecretsRevision(),
		MemoryBytes: b.spec.GetMemoryBytes(),
		Grant:       &agentv1.Grant{Term: m.Grant.Term, Sequence: m.Grant.Sequence},
	}
	if s.GetState() == agentv1.SandboxState_SANDBOX_STATE_GONE {
		s.Reason = reason
		if reason == "" {
			s.Reason = endText(m)
		}
	}
	return s
}

func wireState(s sandbox.State) agentv1.SandboxState {
	switch s {
	case sandbox.StateCreating, sandbox.StateLoading:
		return agentv1.SandboxState_SANDBOX_STATE_STARTING
	case sandbox.StateGeneric:
		return agentv1.SandboxState_SANDBOX_STATE_GENERIC
	case sandbox.StateIdle:
		return agentv1.SandboxState_SANDBOX_STATE_IDLE
	case sandbox.StateBusy:
		return agentv1.SandboxState_SANDBOX_STATE_BUSY
	case sandbox.StateDestroying, sandbox.StateGone:
		return agentv1.SandboxState_SANDBOX_STATE_GONE
	}
	return agentv1.SandboxState_SANDBOX_STATE_UNSPECIFIED
}

func endText(m sandbox.Machine) string {
	switch {
	case m.Init == sandbox.OutcomeTimeout || m.Last == sandbox.OutcomeTimeout:
		return "time-out"
	case m.Exit.OOMKilled:
		return "out of memory"
	case m.Exit != sandbox.Exit{}:
		return fmt.Sprintf("exited with status %d", m.Exit.Code)
	case m.Init == sandbox.OutcomeFailed:
		return "init failed"
	}
	return "destroyed"
}
