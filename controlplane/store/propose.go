package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// retryPause is how long an unknown outcome waits for news before it asks again.
const retryPause = 100 * time.Millisecond

// errUnknown says that a proposal may or may not take effect.
var errUnknown = errors.New("the outcome of the proposal is unknown")

// Propose commits a command and answers its result once this node has applied it. It sets the command's proposal id and
// time if they are not set, in c itself: proposing c again can't apply it twice. A refusal comes back as a *fault.Error.
// Other errors: DISK_FULL, PAYLOAD_TOO_LARGE (over MaxEntryBytes), NO_LEADER (nothing happened), DEADLINE_EXCEEDED.
// An unknown outcome (leadership lost meanwhile) is retried with the same id until ctx ends.
func (s *Store) Propose(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	start := time.Now()
	r, err := s.propose(ctx, c)
	if err == nil && r.GetRefusal() != nil {
		ref := r.GetRefusal()
		r, err = nil, &fault.Error{Code: codes.Code(ref.GetCode()), Reason: ref.GetReason(), Message: ref.GetMessage()}
	}
	s.metrics.proposed(time.Since(start), err)
	return r, err
}

func (s *Store) propose(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	if c.GetProposalId() == "" {
		c.ProposalId = uuid.NewString()
	}
	if c.GetTime() == nil {
		c.Time = timestamppb.New(s.cfg.Now())
	}
	data, err := encode(c)
	if err != nil {
		return nil, err
	}
	if err := s.disk.refuse(); err != nil {
		return nil, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.retry(ctx, c, data)
}

func encode(c *statev1.Command) ([]byte, error) {
	data, err := proto.Marshal(c)
	if err != nil {
		return nil, fault.Internal(err, "can't encode the command")
	}
	if len(data) > MaxEntryBytes {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE,
			"the change takes %d bytes and one may take %d at most: make it smaller, or split it", len(data), MaxEntryBytes)
	}
	return data, nil
}

// bounded gives a context without a deadline the default one.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.cfg.ProposeTimeout)
}

// retry proposes until the outcome is known or ctx ends.
func (s *Store) retry(ctx context.Context, c *statev1.Command, data []byte) (*statev1.Result, error) {
	unknown := false
	for {
		changed := s.View().Changed()
		r, err := s.attempt(ctx, c, data)
		switch {
		case err == nil:
			return r, nil
		case errors.Is(err, errUnknown):
			unknown = true
		case !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER):
			return nil, err
		case !unknown && s.cfg.Forwarder == nil:
			return nil, err
		}
		if unknown {
			if r, err := s.cfg.State.Proposed(c.GetProposalId()); err != nil || r != nil {
				return r, internal(err)
			}
		}
		if err := s.pause(ctx, changed, unknown); err != nil {
			return nil, err
		}
	}
}

// pause waits for news: another leader, new entries, or a little time.
func (s *Store) pause(ctx context.Context, changed <-chan struct{}, unknown bool) error {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-changed:
	case <-s.LeaderChanged():
	case <-timer.C:
	case <-s.closing:
		return ended(unknown, errors.New("this node is shutting down"))
	case <-ctx.Done():
		return ended(unknown, ctx.Err())
	}
	if ctx.Err() != nil {
		return ended(unknown, ctx.Err())
	}
	return nil
}

// ended is the error of a proposal that was given up.
func ended(unknown bool, cause error) error {
	if !unknown {
		return noLeader("no leader of the control plane was found in time (%v): nothing was changed, try again", cause)
	}
	code := codes.DeadlineExceeded
	if errors.Is(cause, context.Canceled) {
		code = codes.Canceled
	}
	return fault.New(code, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED,
		"the leader of the control plane was lost (%v): the change may still take effect; read the resource before you repeat it", cause)
}

// attempt proposes once. It answers errUnknown, or NO_LEADER if nothing can have happened.
func (s *Store) attempt(ctx context.Context, c *statev1.Command, data []byte) (*statev1.Result, error) {
	if s.IsLeader() {
		return s.applyHere(ctx, data)
	}
	if s.cfg.Forwarder == nil {
		return nil, noLeader("this node doesn't lead the control plane (the leader is %s): nothing was changed, try again", s.Leader())
	}
	r, err := s.cfg.Forwarder.Forward(ctx, s.Leader(), c)
	if err != nil {
		return nil, forwardError(err)
	}
	if err := s.cfg.State.WaitIndex(ctx, r.GetIndex()); err != nil {
		return nil, errors.Join(errUnknown, err)
	}
	return r, nil
}

// forwardError keeps what the leader said for certain; anything else leaves the outcome unknown.
func forwardError(err error) error {
	switch f := fault.From(err); f.Reason {
	case mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL, mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE:
		return f
	}
	return errors.Join(errUnknown, err)
}

// applyHere proposes to this node's own Raft.
func (s *Store) applyHere(ctx context.Context, data []byte) (*statev1.Result, error) {
	f, err := s.await(ctx, func(timeout time.Duration) raft.Future { return s.raft.Apply(data, timeout) })
	if err != nil {
		return nil, err
	}
	return response(f.(raft.ApplyFuture).Response())
}

// await asks Raft something and waits for its answer. It answers errUnknown, or NO_LEADER if nothing can have happened.
// Raft's answer can't be waited for with a context, so a goroutine does, which Close joins.
func (s *Store) await(ctx context.Context, ask func(timeout time.Duration) raft.Future) (raft.Future, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	answered := make(chan raft.Future, 1)
	go func() {
		defer s.pending.Done()
		f := ask(max(time.Until(deadline), time.Millisecond))
		_ = f.Error()
		answered <- f
	}()
	select {
	case f := <-answered:
		return f, raftError(f.Error())
	case <-ctx.Done():
		return nil, errors.Join(errUnknown, ctx.Err())
	}
}

func raftError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return noLeader("the control plane is changing its leader: nothing was changed, try again")
	}
	// ErrLeadershipLost, ErrRaftShutdown, a log that could not be written: others may have the entry.
	return errors.Join(errUnknown, err)
}

func response(v any) (*statev1.Result, error) {
	switch r := v.(type) {
	case *statev1.Result:
		return r, nil
	case error:
		return nil, internal(r)
	}
	return nil, fault.Internal(fmt.Errorf("raft answered %T", v), "the change was not applied on this node")
}

func internal(err error) error {
	if err == nil {
		return nil
	}
	return fault.Internal(err, "this node can't apply changes any more: see its log")
}

func noLeader(format string, args ...any) error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER, format, args...)
}
