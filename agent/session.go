package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	"github.com/mayfly-faas/mayfly/proto/lane"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// bulkFrom is the size of a payload from which it travels on the lane BULK, and the largest chunk of a stream, in bytes.
const bulkFrom = 256 << 10

// agentLane is one stream of a session.
type agentLane struct {
	stream agentv1.SessionService_SessionClient
	out    *lane.Sender[outgoing]
}

// outgoing is a reply or, without one, a report.
type outgoing struct {
	reply  *agentv1.Reply
	report *agentv1.Report
}

func newAgentLane(stream agentv1.SessionService_SessionClient) *agentLane {
	return &agentLane{stream: stream, out: lane.NewSender(func(parts []outgoing) error { return sendParts(stream, parts) }, nil)}
}

// sendParts sends what is in order, replies that follow each other in one message.
func sendParts(stream agentv1.SessionService_SessionClient, parts []outgoing) error {
	for len(parts) > 0 {
		var replies []*agentv1.Reply
		for len(replies) < len(parts) && parts[len(replies)].reply != nil {
			replies = append(replies, parts[len(replies)].reply)
		}
		m := &agentv1.SessionRequest{}
		switch len(replies) {
		case 0:
			m.Message = &agentv1.SessionRequest_Report{Report: parts[0].report}
		case 1:
			m.Message = &agentv1.SessionRequest_Reply{Reply: replies[0]}
		default:
			m.Message = &agentv1.SessionRequest_Replies{Replies: &agentv1.Replies{Replies: replies}}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		parts = parts[max(1, len(replies)):]
	}
	return nil
}

// maxIdleServers is how many goroutines wait for the next call with stacks that are large enough for it already.
const maxIdleServers = 64

// job is a call to be served.
type job struct {
	ctx  context.Context //nolint:containedctx // of the call, on its way to a goroutine
	lane *agentLane
	call *agentv1.Call
}

// remoteSession is the agent's end of a session: it serves calls at once and sends reports.
type remoteSession struct {
	remote *Remote
	worker Worker
	lanes  [2]*agentLane   // CONTROL and BULK
	ctx    context.Context // the session's life
	end    context.CancelFunc
	loops  sync.WaitGroup
	jobs   chan job // to idle servers
	idle   atomic.Int32

	mu      sync.Mutex
	running map[uint64]context.CancelFunc
	pending *agentv1.Report // not sent yet
	kick    chan struct{}
}

// Attach implements ControlPlane: it opens both lanes and returns when both are welcome.
func (r *Remote) Attach(ctx context.Context, hello *agentv1.Hello, w Worker) (Session, error) {
	s := &remoteSession{remote: r, worker: w, running: map[uint64]context.CancelFunc{}, kick: make(chan struct{}, 1), jobs: make(chan job)}
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	handshake, cancel := context.WithTimeout(ctx, r.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(handshake, s.end)
	for i := range s.lanes {
		l, err := s.open(r, hello, i)
		if err != nil {
			s.end()
			return nil, fmt.Errorf("session with %s: %w", r.cfg.Address, err)
		}
		s.lanes[i] = l
	}
	if !stop() {
		return nil, fmt.Errorf("session with %s: %w", r.cfg.Address, handshake.Err())
	}
	for _, l := range s.lanes {
		s.loops.Go(func() { s.receive(l) })
		s.loops.Go(func() {
			defer s.end()
			l.out.Run(s.ctx.Done())
		})
	}
	s.loops.Go(s.sendReports)
	return s, nil
}

func (s *remoteSession) open(r *Remote, hello *agentv1.Hello, i int) (*agentLane, error) {
	stream, err := agentv1.NewSessionServiceClient(r.conns[i]).Session(s.ctx)
	if err != nil {
		return nil, err
	}
	h := proto.CloneOf(hello)
	h.Lane = []agentv1.Lane{agentv1.Lane_LANE_CONTROL, agentv1.Lane_LANE_BULK}[i]
	if err := stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Hello{Hello: h}}); err != nil {
		return nil, errors.Join(err, recvError(stream))
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if m.GetWelcome() == nil {
		return nil, errors.New("the control plane did not say welcome")
	}
	l := newAgentLane(stream)
	l.out.Start()
	return l, nil
}

// recvError is why a stream ended: Send only says that it did.
func recvError(stream agentv1.SessionService_SessionClient) error {
	_, err := stream.Recv()
	return err
}

// Done implements Session.
func (s *remoteSession) Done() <-chan struct{} { return s.ctx.Done() }

// Close implements Session. Functions that run go on; Remote.Close waits for them.
func (s *remoteSession) Close() error {
	s.end()
	s.loops.Wait()
	return nil
}

// receive serves one lane until the session ends.
func (s *remoteSession) receive(l *agentLane) {
	defer s.end()
	for {
		m, err := l.stream.Recv()
		if err != nil {
			if s.ctx.Err() == nil {
				s.remote.cfg.Logger.Debug("session ends", "error", err)
			}
			return
		}
		switch m := m.GetMessage().(type) {
		case *agentv1.SessionResponse_Call:
			s.begin(l, m.Call)
		case *agentv1.SessionResponse_Calls:
			for _, c := range m.Calls.GetCalls() {
				s.begin(l, c)
			}
		case *agentv1.SessionResponse_Cancel:
			s.cancel(m.Cancel)
		}
	}
}

// begin lets an idle server have the call, or a new one.
func (s *remoteSession) begin(l *agentLane, c *agentv1.Call) {
	j := job{s.ctx, l, c}
	if !plainInvocation(c) {
		ctx, cancel := context.WithCancel(s.ctx)
		s.mu.Lock()
		s.running[c.GetId()] = cancel
		s.mu.Unlock()
		j.ctx = ctx
	}
	select {
	case s.jobs <- j:
	default:
		s.remote.calls.Go(func() { s.serveMany(j) })
	}
}

// plainInvocation tells of a call that nothing ends but the function: it needs no context of its own.
func plainInvocation(c *agentv1.Call) bool {
	return c.GetInvoke() != nil && !c.GetInvoke().GetStream()
}

// serveMany serves a call, and then others while there are few idle servers.
func (s *remoteSession) serveMany(j job) {
	for {
		s.serve(j.ctx, j.lane, j.call)
		if !plainInvocation(j.call) {
			s.cancel(j.call.GetId())
		}
		if s.idle.Add(1) > maxIdleServers {
			s.idle.Add(-1)
			return
		}
		select {
		case j = <-s.jobs:
			s.idle.Add(-1)
		case <-s.ctx.Done():
			return
		}
	}
}

// cancel ends the context of a call and forgets it.
func (s *remoteSession) cancel(id uint64) {
	s.mu.Lock()
	cancel := s.running[id]
	delete(s.running, id)
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// serve runs a call and sends its reply.
func (s *remoteSession) serve(ctx context.Context, l *agentLane, c *agentv1.Call) {
	reply := &agentv1.Reply{Id: c.GetId()}
	var err error
	switch call := c.GetCall().(type) {
	case *agentv1.Call_Invoke:
		l, err = s.invoke(ctx, l, call.Invoke, reply)
	case *agentv1.Call_CreateSandbox:
		var r *agentv1.CreateSandboxResponse
		r, err = s.worker.CreateSandbox(ctx, call.CreateSandbox)
		reply.Reply = &agentv1.Reply_CreateSandbox{CreateSandbox: r}
	case *agentv1.Call_DestroySandbox:
		var r *agentv1.DestroySandboxResponse
		r, err = s.worker.DestroySandbox(ctx, call.DestroySandbox)
		reply.Reply = &agentv1.Reply_DestroySandbox{DestroySandbox: r}
	case *agentv1.Call_Prepare:
		var r *agentv1.PrepareResponse
		r, err = s.worker.Prepare(ctx, call.Prepare)
		reply.Reply = &agentv1.Reply_Prepare{Prepare: r}
	case *agentv1.Call_ReadLogs:
		l = s.lanes[1]
		err = s.readLogs(ctx, l, c.GetId(), call.ReadLogs)
		reply.Reply = &agentv1.Reply_ReadLogs{ReadLogs: &agentv1.ReadLogsResponse{}}
	default:
		err = fault.New(codes.Unimplemented, mayflyv1.ErrorReason_ERROR_REASON_UNIMPLEMENTED, "this agent doesn't know the call; it may be older than the control plane")
	}
	if err != nil {
		reply.Reply = &agentv1.Reply_Error{Error: s.wireError(err)}
	}
	s.reply(l, reply)
}

// reply sends a reply. When it can't, the session is over and the control plane knows.
func (s *remoteSession) reply(l *agentLane, r *agentv1.Reply) {
	if err := l.out.Send(s.ctx, outgoing{reply: r}, len(r.GetInvoke().GetPayload())); err != nil && s.ctx.Err() == nil {
		s.remote.cfg.Logger.Debug("a reply was not sent", "error", err)
		s.end()
	}
}

// invoke runs an invocation and returns the lane of its reply: that of its chunks, if there were any.
func (s *remoteSession) invoke(ctx context.Context, l *agentLane, r *agentv1.InvokeRequest, reply *agentv1.Reply) (*agentLane, error) {
	var emit func([]byte) error
	if r.GetStream() {
		emit = func(chunk []byte) error { return s.emit(ctx, l, reply.GetId(), chunk) }
	}
	resp, err := s.worker.Invoke(ctx, r, emit)
	if err != nil {
		return l, err
	}
	reply.Reply = &agentv1.Reply_Invoke{Invoke: resp}
	switch {
	case resp.GetStreamed():
		return l, nil
	case len(resp.GetPayload()) > bulkFrom:
		return s.lanes[1], nil
	}
	return s.lanes[0], nil
}

// emit sends a part of a streamed answer, in messages of a decent size.
func (s *remoteSession) emit(ctx context.Context, l *agentLane, id uint64, chunk []byte) error {
	for len(chunk) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(chunk), bulkFrom)
		part := &agentv1.Reply{Id: id, Reply: &agentv1.Reply_Chunk{Chunk: chunk[:n]}}
		if err := l.out.Send(ctx, outgoing{reply: part}, n); err != nil {
			return err
		}
		chunk = chunk[n:]
	}
	return nil
}

func (s *remoteSession) readLogs(ctx context.Context, l *agentLane, id uint64, r *agentv1.ReadLogsRequest) error {
	return s.worker.ReadLogs(ctx, r, func(lines *mayflyv1.ReadLogsResponse) error {
		part := &agentv1.Reply{Id: id, Reply: &agentv1.Reply_LogLines{LogLines: lines}}
		return l.out.Send(ctx, outgoing{reply: part}, proto.Size(lines))
	})
}

// wireError makes an error ready to travel; what only a log may see stays here.
func (s *remoteSession) wireError(err error) *agentv1.Error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &agentv1.Error{Code: int32(codes.Canceled), Reason: mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, Message: "the call was cancelled"}
	}
	e := fault.From(err)
	if e.Cause != nil {
		s.remote.cfg.Logger.Error("a call of the control plane failed", "error", err)
	}
	return &agentv1.Error{Code: int32(e.Code), Reason: e.Reason, Message: e.Message} // a gRPC code
}

// Report implements Session. What can't be sent at once is merged with what comes after it.
func (s *remoteSession) Report(r *agentv1.Report) {
	s.mu.Lock()
	s.pending = mergeReports(s.pending, r)
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// mergeReports is the later report with what of the earlier one it doesn't replace.
func mergeReports(earlier, later *agentv1.Report) *agentv1.Report {
	if earlier == nil {
		return later
	}
	m := &agentv1.Report{Used: later.GetUsed(), Runtimes: later.GetRuntimes()}
	if m.GetUsed() == nil {
		m.Used = earlier.GetUsed()
	}
	if len(m.GetRuntimes()) == 0 {
		m.Runtimes = earlier.GetRuntimes()
	}
	at := map[string]int{}
	for _, s := range append(append([]*agentv1.SandboxStatus(nil), earlier.GetSandboxes()...), later.GetSandboxes()...) {
		if i, ok := at[s.GetSandboxId()]; ok {
			m.Sandboxes[i] = s
			continue
		}
		at[s.GetSandboxId()] = len(m.GetSandboxes())
		m.Sandboxes = append(m.Sandboxes, s)
	}
	return m
}

// maxReported keeps a report far below the limit of a message.
const maxReported = 2000

func (s *remoteSession) sendReports() {
	defer s.end()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.kick:
		}
		for r := s.nextReport(); r != nil; r = s.nextReport() {
			if err := s.lanes[0].out.Send(s.ctx, outgoing{report: r}, 0); err != nil {
				return
			}
		}
	}
}

func (s *remoteSession) nextReport() *agentv1.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.pending
	s.pending = nil
	if len(r.GetSandboxes()) > maxReported {
		s.pending = &agentv1.Report{Used: r.GetUsed(), Sandboxes: r.GetSandboxes()[maxReported:]}
		r = &agentv1.Report{Used: r.GetUsed(), Runtimes: r.GetRuntimes(), Sandboxes: r.GetSandboxes()[:maxReported]}
	}
	return r
}
