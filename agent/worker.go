package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// CreateSandbox implements Worker. Errors: NO_CAPACITY if the node has no room for it; ALREADY_EXISTS for a
// known id; EGRESS_UNAVAILABLE; INVALID_CODE, CODE_TOO_LARGE, CODE_NOT_FOUND, INVALID_RUNTIME for what can't be run here. A function whose init
// fails is no error: the response says so. If ctx ends first the sandbox is destroyed.
func (a *Agent) CreateSandbox(ctx context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	started := time.Now()
	b, err := a.newBox(ctx, r)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.claimed:
	case <-ctx.Done():
		b.end("the caller that wanted it has gone")
		<-b.claimed
	}
	m := b.machine()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case m.Init == sandbox.OutcomeOK:
		a.metrics.coldStart.Observe(time.Since(started).Seconds())
		return &agentv1.CreateSandboxResponse{InitDuration: durationpb.New(b.initTook)}, nil
	case b.initBody != nil:
		return &agentv1.CreateSandboxResponse{InitError: b.initBody, LogTail: b.initTail}, nil
	case b.createErr != nil:
		return nil, fault.Internal(b.createErr, "sandbox %s can't be made on node %s", b.id, a.cfg.NodeName)
	case m.Init == sandbox.OutcomeLost:
		return nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE, "sandbox %s was destroyed before it was ready", b.id)
	case m.Init == sandbox.OutcomeTimeout && b.attempt.link == nil:
		return nil, fault.Internal(errors.New("no Hello"), "sandbox %s did not start within %s", b.id, a.cfg.CreateTimeout)
	}
	body := failureOf(m, b.spec.GetTimeout().AsDuration()).payload("")
	return &agentv1.CreateSandboxResponse{InitError: body, LogTail: b.initTail}, nil
}

// newBox gathers all that a sandbox needs and starts its life.
func (a *Agent) newBox(ctx context.Context, r *agentv1.CreateSandboxRequest) (*box, error) {
	dirName, err := boxDir(r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if err := checkSpec(r.GetSpec()); err != nil {
		return nil, err
	}
	if a.cfg.EgressError != "" && egressOf(r.GetSpec().GetEgress()) != sandbox.EgressNone {
		return nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_EGRESS_UNAVAILABLE,
			"node %s can't give sandboxes network access: %s", a.cfg.NodeName, a.cfg.EgressError)
	}
	b := &box{
		agent: a, id: r.GetSandboxId(), name: r.GetSandboxId(), spec: r.GetSpec(), dir: filepath.Join(a.cfg.RunDir, sandboxesDir, dirName),
		claimed: make(chan struct{}), gone: make(chan struct{}), memoryLimit: int(r.GetSpec().GetMemoryBytes() >> 20),
	}
	if err := a.room.take(b.spec.GetMemoryBytes(), b.spec.GetMilliCpus()); err != nil {
		return nil, err
	}
	if err := a.furnish(ctx, b); err != nil {
		a.room.give(b.spec.GetMemoryBytes(), b.spec.GetMilliCpus())
		return nil, err
	}
	if err := a.start(b, grantOf(r.GetGrant())); err != nil {
		b.unfurnish()
		a.room.give(b.spec.GetMemoryBytes(), b.spec.GetMilliCpus())
		return nil, err
	}
	return b, nil
}

// boxDir is the name of a sandbox's directory, short for the sake of socket paths.
func boxDir(id string) (string, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return "", fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "sandbox id %q is no UUID", id)
	}
	return hex.EncodeToString(u[:]), nil
}

func checkSpec(s *agentv1.SandboxSpec) error {
	switch {
	case s.GetNamespace() == "" || s.GetFunction() == "" || s.GetVersion() == "":
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "a sandbox needs namespace, function and version")
	case s.GetMemoryBytes() <= 0 || s.GetMilliCpus() <= 0:
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_MEMORY, "a sandbox needs limits of memory and CPU")
	case s.GetTimeout().AsDuration() <= 0:
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_TIMEOUT, "a sandbox needs a time-out")
	}
	return nil
}

// furnish finds image and code, and makes the directory and the log. After an error nothing is left.
func (a *Agent) furnish(ctx context.Context, b *box) (err error) {
	if b.image, err = a.images.acquire(b.spec.GetRuntime()); err != nil {
		return err
	}
	if b.code, err = a.code.Acquire(ctx, b.spec.GetCodeDigest()); err != nil {
		b.image.release()
		return gaveUp(ctx, err)
	}
	defer func() {
		if err != nil {
			b.unfurnish()
		}
	}()
	if err := os.Mkdir(b.dir, 0o711); err != nil { // the sandbox's user passes through it; its parent is private
		if errors.Is(err, os.ErrExist) {
			b.dir = "" // not ours to remove
			return alreadyExists(b.id)
		}
		return fault.Internal(err, "can't make the directory of sandbox %s", b.id)
	}
	if err := os.Chmod(b.dir, 0o711); err != nil { // see above
		return fault.Internal(err, "can't make the directory of sandbox %s", b.id)
	}
	b.stream = logStreamName(time.Now(), b.spec.GetVersion())
	if b.logs, err = a.logs.Stream(b.spec.GetNamespace(), b.spec.GetFunction(), b.stream, b.spec.GetVersion()); err != nil {
		return fault.Internal(err, "can't open the log of sandbox %s", b.id)
	}
	if err := b.logs.OpenPipe(filepath.Join(b.dir, logName)); err != nil {
		return fault.Internal(err, "can't open the log of sandbox %s", b.id)
	}
	return nil
}

func alreadyExists(id string) error {
	return fault.New(codes.AlreadyExists, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS, "sandbox %s exists already", id)
}

func (b *box) unfurnish() {
	if b.logs != nil {
		b.logs.Close()
	}
	if b.dir != "" {
		if err := os.RemoveAll(b.dir); err != nil {
			b.agent.log.Error("can't remove a sandbox's directory", "dir", b.dir, "error", err)
		}
	}
	b.code.Release()
	b.image.release()
}

// start begins the life of a sandbox, claimed from the first moment.
func (a *Agent) start(b *box, grant sandbox.Grant) error {
	a.gate.RLock()
	defer a.gate.RUnlock()
	if a.closing {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "node %s shuts down", a.cfg.NodeName)
	}
	m, effects := sandbox.NewMachine(true)
	m, _, _ = m.Step(sandbox.Event{Kind: sandbox.EventClaim, Grant: grant})
	b.m = m
	a.join(b)
	if _, taken := a.names.LoadOrStore(b.name, b); taken {
		a.part(b)
		return alreadyExists(b.id)
	}
	a.boxes.Store(b.id, b)
	b.logs.BeginInit(fmt.Sprintf("INIT_START Runtime Version: %s %s\tRuntime Image: %s", b.spec.GetRuntime(), b.image.Version, b.image.Digest))
	b.perform(m, effects)
	return nil
}

// DestroySandbox implements Worker. It returns when nothing of the sandbox is left; an unknown one is no error. A grant
// lower than the sandbox's last is refused with IN_USE.
func (a *Agent) DestroySandbox(ctx context.Context, r *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	b, refusal := a.destroyNamed(r.GetSandboxId(), r.GetReason(), grantOf(r.GetGrant()))
	switch {
	case b == nil:
		return &agentv1.DestroySandboxResponse{}, nil
	case refusal != sandbox.Accepted:
		return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "sandbox %s is not destroyed: %s", r.GetSandboxId(), refusal)
	}
	select {
	case <-b.gone:
		return &agentv1.DestroySandboxResponse{}, nil
	case <-ctx.Done():
		return nil, gaveUp(ctx, ctx.Err())
	}
}

// gaveUp is err, or that the caller has gone if that is why.
func gaveUp(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fault.New(codes.Canceled, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the caller has gone: %v", ctx.Err())
}

// Prepare implements Worker: it builds the runtime's image if there is none, and fetches code. Its errors are those
// of CreateSandbox for runtime and code, and codes.FailedPrecondition if the node lacks what building needs.
func (a *Agent) Prepare(ctx context.Context, r *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error) {
	if err := a.ensureImage(ctx, r.GetRuntime()); err != nil {
		return nil, err
	}
	ref, err := a.code.Acquire(ctx, r.GetCodeDigest())
	if err != nil {
		return nil, gaveUp(ctx, err)
	}
	ref.Release()
	return &agentv1.PrepareResponse{}, nil
}

// ReadLogs implements Worker.
func (a *Agent) ReadLogs(ctx context.Context, r *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	return a.logs.Read(ctx, r.GetQuery(), emit)
}
