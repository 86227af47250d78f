package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// fleet is the server's end of sessions, as small as can be.
type fleet struct {
	agentv1.UnimplementedSessionServiceServer
	blob    []byte
	hellos  chan *agentv1.Hello
	reports chan *agentv1.Report
	replies chan laneReply
	refuse  bool
	silent  chan struct{} // not nil: no welcome before it is closed

	mu    sync.Mutex
	lanes map[agentv1.Lane]agentv1.SessionService_SessionServer
}

type laneReply struct {
	lane agentv1.Lane
	*agentv1.Reply
}

func (f *fleet) Session(s agentv1.SessionService_SessionServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	if f.refuse {
		return fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, "no")
	}
	if f.silent != nil {
		<-f.silent
		return nil
	}
	l := m.GetHello().GetLane()
	f.mu.Lock()
	f.lanes[l] = s
	f.mu.Unlock()
	f.hellos <- m.GetHello()
	if err := s.Send(&agentv1.SessionResponse{Message: &agentv1.SessionResponse_Welcome{Welcome: &agentv1.Welcome{}}}); err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if r := m.GetReport(); r != nil {
			f.reports <- r
		}
		if r := m.GetReply(); r != nil {
			f.replies <- laneReply{l, r}
		}
		for _, r := range m.GetReplies().GetReplies() {
			f.replies <- laneReply{l, r}
		}
	}
}

func (f *fleet) FetchBlob(r *agentv1.FetchBlobRequest, s agentv1.SessionService_FetchBlobServer) error {
	if r.GetDigest() != "sha256:known" {
		return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "no %s", r.GetDigest())
	}
	for chunk := f.blob; len(chunk) > 0; chunk = chunk[min(1000, len(chunk)):] {
		if err := s.Send(&agentv1.FetchBlobResponse{Chunk: chunk[:min(1000, len(chunk))]}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) call(t *testing.T, l agentv1.Lane, c *agentv1.Call) {
	t.Helper()
	f.send(t, l, &agentv1.SessionResponse{Message: &agentv1.SessionResponse_Call{Call: c}})
}

func (f *fleet) send(t *testing.T, l agentv1.Lane, m *agentv1.SessionResponse) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.lanes[l].Send(m); err != nil {
		t.Error(err)
	}
}

// worker is a Worker that does what the payload says.
type worker struct {
	release chan struct{}
	began   chan struct{}
	ended   chan error
}

func (w *worker) CreateSandbox(ctx context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	if r.GetSandboxId() == "wait" {
		close(w.began)
		<-ctx.Done()
		w.ended <- ctx.Err()
		return nil, ctx.Err()
	}
	return nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "full")
}

func (w *worker) DestroySandbox(context.Context, *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	return nil, fault.Internal(errors.New("secret"), "broken")
}

func (w *worker) Invoke(_ context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	if string(r.GetPayload()) == "wait" {
		<-w.release
	}
	if emit != nil {
		for range 2 {
			if err := emit(bytes.Repeat([]byte("x"), bulkFrom+10)); err != nil {
				return nil, err
			}
		}
		return &agentv1.InvokeResponse{Streamed: true}, nil
	}
	return &agentv1.InvokeResponse{Payload: r.GetPayload()}, nil
}

func (w *worker) Prepare(context.Context, *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error) {
	return &agentv1.PrepareResponse{}, nil
}

func (w *worker) ReadLogs(_ context.Context, r *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	for i := range 3 {
		if err := emit(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{{Text: fmt.Sprint(r.GetQuery().GetFunction(), i)}}}); err != nil {
			return err
		}
	}
	return nil
}

type link2 struct {
	*fleet
	remote *Remote
	server *grpc.Server
	worker *worker
}

func connect(t *testing.T, change func(*fleet)) *link2 {
	t.Helper()
	f := &fleet{
		blob: bytes.Repeat([]byte("0123456789"), 1234), hellos: make(chan *agentv1.Hello, 10), reports: make(chan *agentv1.Report, 1000),
		replies: make(chan laneReply, 1000), lanes: map[agentv1.Lane]agentv1.SessionService_SessionServer{},
	}
	if change != nil {
		change(f)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	agentv1.RegisterSessionServiceServer(server, f)
	go func() { _ = server.Serve(listener) }()
	r, err := NewRemote(RemoteConfig{Address: listener.Addr().String(), HandshakeTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{release: make(chan struct{}), began: make(chan struct{}), ended: make(chan error, 1)}
	t.Cleanup(func() {
		_ = r.Close()
		server.Stop()
	})
	return &link2{fleet: f, remote: r, server: server, worker: w}
}

func attached(t *testing.T) (*link2, Session) {
	t.Helper()
	c := connect(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.remote.Attach(ctx, &agentv1.Hello{NodeName: "n", InstanceId: "i"}, c.worker)
	cancel() // the session outlives the call
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return c, s
}

func TestSessionCalls(t *testing.T) {
	c, _ := attached(t)
	if a, b := <-c.hellos, <-c.hellos; a.GetLane() != agentv1.Lane_LANE_CONTROL || b.GetLane() != agentv1.Lane_LANE_BULK || b.GetInstanceId() != "i" {
		t.Fatalf("%v, %v", a, b)
	}
	control, bulk := agentv1.Lane_LANE_CONTROL, agentv1.Lane_LANE_BULK
	invoke := func(payload string, stream bool) *agentv1.Call_Invoke {
		return &agentv1.Call_Invoke{Invoke: &agentv1.InvokeRequest{Payload: []byte(payload), Stream: stream}}
	}
	large := strings.Repeat("x", bulkFrom+1)
	// A call that takes long holds up no other.
	c.call(t, control, &agentv1.Call{Id: 1, Call: invoke("wait", false)})
	c.call(t, control, &agentv1.Call{Id: 2, Call: invoke("small", false)})
	if r := <-c.replies; r.GetId() != 2 || r.lane != control || string(r.GetInvoke().GetPayload()) != "small" {
		t.Fatalf("%v", r)
	}
	close(c.worker.release)
	if r := <-c.replies; r.GetId() != 1 {
		t.Fatalf("%v", r)
	}
	c.call(t, bulk, &agentv1.Call{Id: 3, Call: invoke(large, false)})
	if r := <-c.replies; r.GetId() != 3 || r.lane != bulk || string(r.GetInvoke().GetPayload()) != large {
		t.Fatalf("lane %v", r.lane)
	}
	c.call(t, control, &agentv1.Call{Id: 4, Call: invoke("", true)})
	for _, size := range []int{bulkFrom, 10, bulkFrom, 10} {
		if r := <-c.replies; r.GetId() != 4 || r.lane != control || len(r.GetChunk()) != size {
			t.Fatalf("chunk of %d bytes, want %d", len(r.GetChunk()), size)
		}
	}
	if r := <-c.replies; r.lane != control || !r.GetInvoke().GetStreamed() {
		t.Fatalf("%v", r)
	}
	c.call(t, control, &agentv1.Call{Id: 5, Call: &agentv1.Call_ReadLogs{ReadLogs: &agentv1.ReadLogsRequest{Query: &mayflyv1.ReadLogsRequest{Function: "f"}}}})
	for i := range 3 {
		if r := <-c.replies; r.GetId() != 5 || r.GetLogLines().GetLines()[0].GetText() != fmt.Sprint("f", i) {
			t.Fatalf("%v", r)
		}
	}
	if r := <-c.replies; r.GetReadLogs() == nil {
		t.Fatalf("%v", r)
	}
}

func TestSessionErrorsAndCancel(t *testing.T) {
	c, _ := attached(t)
	control := agentv1.Lane_LANE_CONTROL
	for id, call := range []*agentv1.Call{
		{Call: &agentv1.Call_CreateSandbox{CreateSandbox: &agentv1.CreateSandboxRequest{}}},
		{Call: &agentv1.Call_DestroySandbox{DestroySandbox: &agentv1.DestroySandboxRequest{}}},
		{},
		{Call: &agentv1.Call_Prepare{Prepare: &agentv1.PrepareRequest{}}},
	} {
		call.Id = uint64(id)
		c.call(t, control, call)
		r := <-c.replies
		e := r.GetError()
		want := []mayflyv1.ErrorReason{mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL, mayflyv1.ErrorReason_ERROR_REASON_UNIMPLEMENTED, 0}[id]
		if r.GetId() != uint64(id) || e.GetReason() != want || strings.Contains(e.GetMessage(), "secret") || (want == 0) != (r.GetPrepare() != nil) {
			t.Errorf("%v", r)
		}
	}
	c.call(t, control, &agentv1.Call{Id: 9, Call: &agentv1.Call_CreateSandbox{CreateSandbox: &agentv1.CreateSandboxRequest{SandboxId: "wait"}}})
	c.send(t, control, &agentv1.SessionResponse{Message: &agentv1.SessionResponse_Cancel{Cancel: 9}})
	if err := <-c.worker.ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if r := <-c.replies; r.GetId() != 9 || codes.Code(r.GetError().GetCode()) != codes.Canceled {
		t.Errorf("%v", r)
	}
}

func TestSessionEnds(t *testing.T) {
	c, s := attached(t)
	c.call(t, agentv1.Lane_LANE_CONTROL, &agentv1.Call{Id: 1, Call: &agentv1.Call_CreateSandbox{CreateSandbox: &agentv1.CreateSandboxRequest{SandboxId: "wait"}}})
	<-c.worker.began
	c.server.Stop()
	<-s.Done()
	<-c.worker.ended
	s.Report(&agentv1.Report{})
	if _, err := c.remote.Attach(t.Context(), &agentv1.Hello{}, c.worker); err == nil {
		t.Fatal("attached to nobody")
	}
}

func TestSessionRefused(t *testing.T) {
	c := connect(t, func(f *fleet) { f.refuse = true })
	if _, err := c.remote.Attach(t.Context(), &agentv1.Hello{}, c.worker); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED) {
		t.Fatalf("%v", err)
	}
}

func TestSessionIsNotWelcomed(t *testing.T) {
	silent := make(chan struct{})
	c := connect(t, func(f *fleet) { f.silent = silent })
	c.remote.cfg.HandshakeTimeout = 50 * time.Millisecond
	_, err := c.remote.Attach(t.Context(), &agentv1.Hello{}, c.worker)
	close(silent)
	if err == nil {
		t.Fatal("attached without a welcome")
	}
}

func TestReports(t *testing.T) {
	c, s := attached(t)
	for i := range 2*maxReported + 1 {
		s.Report(&agentv1.Report{Sandboxes: []*agentv1.SandboxStatus{{SandboxId: fmt.Sprint(i)}}})
	}
	seen := map[string]bool{}
	for len(seen) < 2*maxReported+1 {
		for _, status := range (<-c.reports).GetSandboxes() {
			seen[status.GetSandboxId()] = true
		}
	}
}

func TestMergeReports(t *testing.T) {
	status := func(id string, s agentv1.SandboxState) *agentv1.SandboxStatus {
		return &agentv1.SandboxStatus{SandboxId: id, State: s}
	}
	idle, gone := agentv1.SandboxState_SANDBOX_STATE_IDLE, agentv1.SandboxState_SANDBOX_STATE_GONE
	m := mergeReports(
		&agentv1.Report{Used: &mayflyv1.NodeResources{MemoryBytes: 1}, Sandboxes: []*agentv1.SandboxStatus{status("a", idle), status("b", idle)}, Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "r"}}},
		&agentv1.Report{Used: &mayflyv1.NodeResources{MemoryBytes: 2}, Sandboxes: []*agentv1.SandboxStatus{status("b", gone), status("c", idle)}})
	if len(m.GetSandboxes()) != 3 || m.GetSandboxes()[1].GetState() != gone || m.GetUsed().GetMemoryBytes() != 2 || len(m.GetRuntimes()) != 1 {
		t.Fatalf("%v", m)
	}
}

func TestFetchBlob(t *testing.T) {
	c := connect(t, nil)
	in, err := c.remote.FetchBlob(t.Context(), "sha256:known")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil || !bytes.Equal(got, c.blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if _, err := c.remote.FetchBlob(t.Context(), "sha256:other"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND) {
		t.Fatalf("%v", err)
	}
}
