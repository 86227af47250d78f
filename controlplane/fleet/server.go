package fleet

import (
	"context"
	"errors"
	"io"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// blobChunk is how many bytes of code one message carries.
const blobChunk = 256 << 10

// Server is the SessionService: agents attach through it.
type Server struct {
	agentv1.UnimplementedSessionServiceServer
	fleet *Fleet
}

// Server makes the gRPC service. The gRPC server must accept messages of 16 MiB.
func (f *Fleet) Server() *Server { return &Server{fleet: f} }

// Session serves one lane of an agent until either side ends it.
func (s *Server) Session(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse]) error {
	hello, err := s.hello(stream)
	if err != nil {
		return err
	}
	switch hello.GetLane() {
	case agentv1.Lane_LANE_CONTROL:
		return s.control(stream, hello)
	case agentv1.Lane_LANE_BULK:
		return s.bulk(stream, hello)
	default:
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "unknown lane %v: an agent opens CONTROL, then BULK", hello.GetLane())
	}
}

// hello reads the first message and holds it against the client certificate.
func (s *Server) hello(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse]) (*agentv1.Hello, error) {
	id, name, err := s.identify(stream.Context())
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	hello := first.GetHello()
	if hello == nil {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "the first message of a session is a hello")
	}
	if hello.GetNodeId() != id || hello.GetNodeName() != name {
		return nil, fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED,
			"the certificate is of node %q (%s), the hello of %q (%s)", name, id, hello.GetNodeName(), hello.GetNodeId())
	}
	return hello, nil
}

func (s *Server) identify(ctx context.Context) (id, name string, err error) {
	if s.fleet.cfg.Identify == nil {
		return "", "", fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "this server takes no agents over the network")
	}
	return s.fleet.cfg.Identify(ctx)
}

// control attaches the agent. Calls are sent once the welcome is.
func (s *Server) control(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse], hello *agentv1.Hello) error {
	r := newRemote(hello.GetInstanceId(), s.fleet.cfg.LogBufferBytes)
	r.control = newSender(stream)
	session, err := s.fleet.attach(hello, r, true)
	if err != nil {
		return err
	}
	defer r.lose()
	defer session.Close()
	if err := stream.Send(s.welcome()); err != nil {
		return err
	}
	r.control.Start()
	return s.serve(stream, r.control, r, session)
}

func (s *Server) welcome() *agentv1.SessionResponse {
	return &agentv1.SessionResponse{Message: &agentv1.SessionResponse_Welcome{Welcome: &agentv1.Welcome{ServerId: s.fleet.cfg.ServerID}}}
}

// bulk adds the second lane to the session that the agent's CONTROL lane opened; they end together.
func (s *Server) bulk(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse], hello *agentv1.Hello) error {
	session, r := s.fleet.remoteOf(hello)
	if r == nil {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST, "node %q has no CONTROL lane here: open it first", hello.GetNodeName())
	}
	defer session.Close()
	if err := stream.Send(s.welcome()); err != nil {
		return err
	}
	b := newSender(stream)
	b.Start()
	r.bulk.Store(b)
	return s.serve(stream, b, r, session)
}

func (f *Fleet) remoteOf(hello *agentv1.Hello) (*session, *remote) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[hello.GetNodeId()]
	if n == nil || n.session == nil || n.instanceID != hello.GetInstanceId() {
		return nil, nil
	}
	r, _ := n.session.worker.(*remote)
	return n.session, r
}

// serve serves a lane until it or the session ends. Its reader ends when the handler returns, as gRPC then cancels the
// stream; the fleet's Run waits for it and for the sender.
func (s *Server) serve(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse], out *sender, r *remote, session *session) error {
	ended := make(chan error, 1)
	started := s.fleet.join(func() { out.Run(stream.Context().Done()) }) &&
		s.fleet.join(func() { ended <- receive(stream, r, session) })
	if !started {
		return errStopping()
	}
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-session.Done():
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST, "the session was ended: attach again")
	}
}

// receive takes what the agent sends until the stream ends.
func receive(stream grpc.BidiStreamingServer[agentv1.SessionRequest, agentv1.SessionResponse], r *remote, session *session) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		session.touch()
		switch m := m.GetMessage().(type) {
		case *agentv1.SessionRequest_Report:
			session.Report(m.Report)
		case *agentv1.SessionRequest_Reply:
			r.take(m.Reply)
		case *agentv1.SessionRequest_Replies:
			for _, reply := range m.Replies.GetReplies() {
				r.take(reply)
			}
		}
	}
}

// join runs a part of a session that Run waits for, unless Run has ended.
func (f *Fleet) join(part func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.receivers.Go(part)
	return true
}

// FetchBlob streams code to an agent.
func (s *Server) FetchBlob(req *agentv1.FetchBlobRequest, stream grpc.ServerStreamingServer[agentv1.FetchBlobResponse]) error {
	if _, _, err := s.identify(stream.Context()); err != nil {
		return err
	}
	file, _, err := s.fleet.openBlob(req.GetDigest())
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		chunk := make([]byte, blobChunk) // gRPC may keep what it sends
		n, err := io.ReadFull(file, chunk)
		if n > 0 {
			if err := stream.Send(&agentv1.FetchBlobResponse{Chunk: chunk[:n]}); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		default:
			return fault.Internal(err, "code %s can't be read", req.GetDigest())
		}
	}
}

func (f *Fleet) openBlob(digest string) (*os.File, int64, error) {
	if f.cfg.Blobs == nil {
		return nil, 0, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "this server keeps no code")
	}
	file, size, err := f.cfg.Blobs.Open(digest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "there is no code %q here", digest)
	}
	return file, size, err
}
