package fleet

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	"github.com/mayfly-faas/mayfly/proto/lane"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// bulkBytes is the payload from which a call takes the BULK lane.
	bulkBytes = 256 << 10
	// streamBuffer bounds what is kept of a streamed answer for a caller that reads slowly.
	streamBuffer = 32 << 20
)

// remote is a Worker over the lanes of a session. Calls and replies find each other by id.
type remote struct {
	instanceID string
	logBuffer  int
	control    *sender
	bulk       atomic.Pointer[sender]
	lost       chan struct{}
	loseOnce   sync.Once

	mu    sync.Mutex
	last  uint64
	calls map[uint64]*call
}

// sender sends calls over one lane. What has no call is the cancellation of the call with that id.
type sender = lane.Sender[outgoing]

type outgoing struct {
	call   *agentv1.Call
	waits  *call
	cancel uint64
}

// call waits for its replies. What comes before the last is queued, so that no caller holds up the session.
type call struct {
	id uint64
	partial
	more chan struct{}
	// unsent: the session was lost before the call was sent.
	unsent atomic.Bool

	mu       sync.Mutex
	parts    []*agentv1.Reply
	bytes    int
	overflow bool
	final    *agentv1.Reply
}

// partial is what becomes of replies before the last.
type partial struct {
	onPart func(*agentv1.Reply) error
	// limit bounds the bytes that wait for onPart. What is over it is lost, and abort ends the call then.
	limit int
	abort bool
}

func newRemote(instanceID string, logBuffer int) *remote {
	return &remote{instanceID: instanceID, logBuffer: logBuffer, lost: make(chan struct{}), calls: map[uint64]*call{}}
}

func newSender(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse]) *sender {
	return lane.NewSender(func(parts []outgoing) error { return sendCalls(stream, parts) }, func(part outgoing) {
		if part.waits != nil {
			part.waits.unsent.Store(true)
		}
	})
}

// sendCalls sends the calls in one message, and then cancellations: these are rare.
func sendCalls(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse], parts []outgoing) error {
	calls := make([]*agentv1.Call, 0, len(parts))
	for _, part := range parts {
		if part.call != nil {
			calls = append(calls, part.call)
		}
	}
	m := &agentv1.SessionResponse{Message: &agentv1.SessionResponse_Calls{Calls: &agentv1.Calls{Calls: calls}}}
	if len(calls) == 1 {
		m.Message = &agentv1.SessionResponse_Call{Call: calls[0]}
	}
	if len(calls) > 0 {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	for _, part := range parts {
		if part.call == nil {
			if err := stream.Send(&agentv1.SessionResponse{Message: &agentv1.SessionResponse_Cancel{Cancel: part.cancel}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// lose fails all calls.
func (r *remote) lose() { r.loseOnce.Do(func() { close(r.lost) }) }

var errLost = fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST, "the node was lost during the call: whether it ran is unknown")

// do sends a call with a payload of so many bytes and waits for its last reply. If ctx ends first the agent is told.
func (r *remote) do(ctx context.Context, m *agentv1.Call, bytes int, parts partial) (*agentv1.Reply, error) {
	c := r.open(m, parts)
	defer r.close(c)
	s := r.control
	if b := r.bulk.Load(); b != nil && bytes > bulkBytes {
		s = b
	}
	if err := s.Send(ctx, outgoing{call: m, waits: c}, bytes); err != nil {
		return nil, unsent(ctx, err)
	}
	reply, err := r.await(ctx, c)
	switch {
	case reply != nil:
	case errors.Is(err, errLost) && c.unsent.Load():
		return nil, unsent(ctx, err)
	default:
		r.cancel(c.id)
	}
	return reply, err
}

func unsent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctxFault(ctx)
	}
	e := fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE, "the node was lost before the call reached it: safe to retry")
	e.Cause = err
	return e
}

func ctxFault(ctx context.Context) error {
	e := fault.New(codes.Canceled, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the caller has gone")
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Code, e.Message = codes.DeadlineExceeded, "the call took too long"
	}
	e.Cause = context.Cause(ctx)
	return e
}

// cancel tells the agent that nobody waits for a call. An error means that the session has ended, and the call with it.
func (r *remote) cancel(id uint64) {
	_ = r.control.Send(context.Background(), outgoing{cancel: id}, 0)
}

func (r *remote) open(m *agentv1.Call, parts partial) *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	m.Id = r.last
	c := &call{id: r.last, partial: parts, more: make(chan struct{}, 1)}
	r.calls[c.id] = c
	return c
}

func (r *remote) close(c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.calls, c.id)
}

// take brings a reply to its call. It never blocks.
func (r *remote) take(reply *agentv1.Reply) {
	r.mu.Lock()
	c := r.calls[reply.GetId()]
	r.mu.Unlock()
	if c == nil {
		return
	}
	c.mu.Lock()
	c.addLocked(reply)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *call) addLocked(reply *agentv1.Reply) {
	if !isPart(reply) {
		c.final = reply
		return
	}
	size := len(reply.GetChunk()) + logBytes(reply.GetLogLines())
	if c.overflow = c.overflow || c.onPart == nil || c.bytes+size > c.limit; c.overflow {
		return
	}
	c.parts = append(c.parts, reply)
	c.bytes += size
}

func isPart(reply *agentv1.Reply) bool {
	switch reply.GetReply().(type) {
	case *agentv1.Reply_Chunk, *agentv1.Reply_LogLines:
		return true
	}
	return false
}

func logBytes(lines *mayflyv1.ReadLogsResponse) int {
	n := 0
	for _, line := range lines.GetLines() {
		n += 64 + len(line.GetText())
	}
	return n
}

func (c *call) drain() (parts []*agentv1.Reply, overflow bool, final *agentv1.Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts, c.parts, c.bytes = c.parts, nil, 0
	return parts, c.overflow, c.final
}

// await hands on parts until the last reply; without that there is an error.
func (r *remote) await(ctx context.Context, c *call) (*agentv1.Reply, error) {
	for lost := false; !lost; {
		select {
		case <-c.more:
		case <-ctx.Done():
			return nil, ctxFault(ctx)
		case <-r.lost:
			lost = true
		}
		parts, overflow, final := c.drain()
		for _, part := range parts {
			if err := c.onPart(part); err != nil {
				return nil, err
			}
		}
		if final != nil {
			return final, finalError(final, overflow)
		}
		if overflow && c.abort {
			return nil, errOverflow
		}
	}
	return nil, errLost
}

var errOverflow = fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, "the answer was read too slowly, a part of it is lost")

func finalError(final *agentv1.Reply, overflow bool) error {
	if e := final.GetError(); e != nil {
		return &fault.Error{Code: codes.Code(e.GetCode()), Reason: e.GetReason(), Message: e.GetMessage()}
	}
	if overflow {
		return errOverflow
	}
	return nil
}

// CreateSandbox implements Worker.
func (r *remote) CreateSandbox(ctx context.Context, req *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	reply, err := r.do(ctx, &agentv1.Call{Call: &agentv1.Call_CreateSandbox{CreateSandbox: req}}, 0, partial{})
	if err != nil {
		return nil, err
	}
	return reply.GetCreateSandbox(), nil
}

// DestroySandbox implements Worker.
func (r *remote) DestroySandbox(ctx context.Context, req *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	reply, err := r.do(ctx, &agentv1.Call{Call: &agentv1.Call_DestroySandbox{DestroySandbox: req}}, 0, partial{})
	if err != nil {
		return nil, err
	}
	return reply.GetDestroySandbox(), nil
}

// Prepare implements Worker.
func (r *remote) Prepare(ctx context.Context, req *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error) {
	reply, err := r.do(ctx, &agentv1.Call{Call: &agentv1.Call_Prepare{Prepare: req}}, 0, partial{})
	if err != nil {
		return nil, err
	}
	return reply.GetPrepare(), nil
}

// Invoke implements Worker. An error of emit ends what emit gets, not the invocation; it is answered at the end.
func (r *remote) Invoke(ctx context.Context, req *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	var emitErr error
	onPart := func(part *agentv1.Reply) error {
		if emitErr == nil && emit != nil {
			emitErr = emit(part.GetChunk())
		}
		return nil
	}
	reply, err := r.do(ctx, &agentv1.Call{Call: &agentv1.Call_Invoke{Invoke: req}}, len(req.GetPayload()), partial{onPart: onPart, limit: streamBuffer})
	resp := reply.GetInvoke()
	if resp == nil && err == nil {
		err = fault.Internal(nil, "the agent's reply is none of an invocation")
	}
	if err == nil {
		err = emitErr
	}
	return resp, err
}

// ReadLogs implements Worker. Of what a slow reader can't take in time nothing is kept: the rest is asked for again.
func (r *remote) ReadLogs(ctx context.Context, req *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	bookmark := logBookmark{query: req.GetQuery(), emit: emit}
	for {
		m := &agentv1.Call{Call: &agentv1.Call_ReadLogs{ReadLogs: &agentv1.ReadLogsRequest{Query: bookmark.query}}}
		_, err := r.do(ctx, m, 0, partial{limit: r.logBuffer, abort: true, onPart: func(part *agentv1.Reply) error {
			return bookmark.take(part.GetLogLines())
		}})
		if !errors.Is(err, errOverflow) {
			return err
		}
		bookmark.resume()
	}
}
