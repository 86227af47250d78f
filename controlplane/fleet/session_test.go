package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// identifyByMetadata stands in for the client certificate.
func identifyByMetadata(ctx context.Context) (string, string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("node")) == 0 {
		return "", "", fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "no certificate")
	}
	return md.Get("node")[0] + "-id", md.Get("node")[0], nil
}

type dirBlobs string

func (d dirBlobs) Open(digest string) (*os.File, int64, error) {
	f, err := os.Open(filepath.Join(string(d), digest))
	return f, 0, err
}

// wire is a fleet behind a gRPC server, and a client of it.
type wire struct {
	*home
	client agentv1.SessionServiceClient
}

func newWire(t *testing.T, change func(*Config)) *wire {
	t.Helper()
	h := newHome(t, func(c *Config) {
		c.Identify = identifyByMetadata
		c.Blobs = dirBlobs(t.TempDir())
		c.ServerID = "server-1"
		if change != nil {
			change(c)
		}
	})
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.WaitForHandlers(true))
	agentv1.RegisterSessionServiceServer(server, h.Server())
	go server.Serve(listener)
	conn, err := grpc.NewClient("passthrough:agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		h.receivers.Wait()
	})
	return &wire{h, agentv1.NewSessionServiceClient(conn)}
}

type agentStream = grpc.BidiStreamingClient[agentv1.SessionRequest, agentv1.SessionResponse]

// remoteAgent is the agent's end of a session: it runs calls on a fakeWorker.
type remoteAgent struct {
	t       *testing.T
	worker  *fakeWorker
	cancel  context.CancelFunc
	control agentStream
	bulk    atomic.Int64 // calls that came on the BULK lane
	cancels chan uint64
	calls   sync.WaitGroup
	sending sync.Mutex
}

func (w *wire) open(ctx context.Context, name string, lane agentv1.Lane) (agentStream, error) {
	stream, err := w.client.Session(metadata.AppendToOutgoingContext(ctx, "node", name))
	if err != nil {
		return nil, err
	}
	h := hello(name, 100000)
	h.Lane = lane
	if err := stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Hello{Hello: h}}); err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if first.GetWelcome().GetServerId() != "server-1" {
		return nil, fmt.Errorf("no welcome but %v", first)
	}
	return stream, nil
}

func (w *wire) agent(t *testing.T, name string) *remoteAgent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &remoteAgent{t: t, worker: newFakeWorker(100000), cancel: cancel, cancels: make(chan uint64, 100)}
	for _, lane := range []agentv1.Lane{agentv1.Lane_LANE_CONTROL, agentv1.Lane_LANE_BULK} {
		stream, err := w.open(ctx, name, lane)
		if err != nil {
			t.Fatal(err)
		}
		if lane == agentv1.Lane_LANE_CONTROL {
			a.control = stream
		}
		a.calls.Go(func() { a.serve(stream, lane) })
	}
	t.Cleanup(a.stop)
	return a
}

func (a *remoteAgent) stop() {
	a.cancel()
	a.calls.Wait()
}

func (a *remoteAgent) serve(stream agentStream, lane agentv1.Lane) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		if id := m.GetCancel(); id != 0 {
			a.cancels <- id
		}
		for _, c := range callsOf(m) {
			if lane == agentv1.Lane_LANE_BULK {
				a.bulk.Add(1)
			}
			a.calls.Go(func() { a.run(stream, c) })
		}
	}
}

func callsOf(m *agentv1.SessionResponse) []*agentv1.Call {
	if c := m.GetCall(); c != nil {
		return []*agentv1.Call{c}
	}
	return m.GetCalls().GetCalls()
}

func (a *remoteAgent) reply(stream agentStream, reply *agentv1.Reply) {
	a.sending.Lock()
	defer a.sending.Unlock()
	_ = stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Reply{Reply: reply}})
}

func (a *remoteAgent) run(stream agentStream, c *agentv1.Call) {
	reply := &agentv1.Reply{Id: c.GetId()}
	var err error
	ctx := stream.Context()
	switch call := c.GetCall().(type) {
	case *agentv1.Call_CreateSandbox:
		r, e := a.worker.CreateSandbox(ctx, call.CreateSandbox)
		reply.Reply, err = &agentv1.Reply_CreateSandbox{CreateSandbox: r}, e
	case *agentv1.Call_DestroySandbox:
		r, e := a.worker.DestroySandbox(ctx, call.DestroySandbox)
		reply.Reply, err = &agentv1.Reply_DestroySandbox{DestroySandbox: r}, e
	case *agentv1.Call_Prepare:
		r, e := a.worker.Prepare(ctx, call.Prepare)
		reply.Reply, err = &agentv1.Reply_Prepare{Prepare: r}, e
	case *agentv1.Call_Invoke:
		r, e := a.worker.Invoke(ctx, call.Invoke, func(chunk []byte) error {
			a.reply(stream, &agentv1.Reply{Id: c.GetId(), Reply: &agentv1.Reply_Chunk{Chunk: chunk}})
			return nil
		})
		reply.Reply, err = &agentv1.Reply_Invoke{Invoke: r}, e
	case *agentv1.Call_ReadLogs:
		e := a.worker.ReadLogs(ctx, call.ReadLogs, func(r *mayflyv1.ReadLogsResponse) error {
			a.reply(stream, &agentv1.Reply{Id: c.GetId(), Reply: &agentv1.Reply_LogLines{LogLines: r}})
			return nil
		})
		reply.Reply, err = &agentv1.Reply_ReadLogs{ReadLogs: &agentv1.ReadLogsResponse{}}, e
	}
	if err != nil {
		e := fault.From(err)
		reply.Reply = &agentv1.Reply_Error{Error: &agentv1.Error{Code: int32(e.Code), Reason: e.Reason, Message: e.Message}}
	}
	a.reply(stream, reply)
}

func TestSessionCarriesEveryCall(t *testing.T) {
	w := newWire(t, nil)
	a := w.agent(t, "a")
	a.worker.invoke = func(r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
		if r.GetStream() {
			for _, chunk := range []string{"a", "b", "c"} {
				_ = emit([]byte(chunk))
			}
		}
		return &agentv1.InvokeResponse{Payload: r.GetPayload(), Streamed: r.GetStream()}, nil
	}
	fn := active("f", 128)
	w.state.put(fn)
	l := w.acquire(fn)
	small, err := l.Invoke(t.Context(), &agentv1.InvokeRequest{Payload: []byte("1")}, nil)
	if err != nil || string(small.GetPayload()) != "1" || a.bulk.Load() != 0 {
		t.Fatalf("small: %v, %v, %d on BULK", small, err, a.bulk.Load())
	}
	payload := bytes.Repeat([]byte("x"), 6_000_000)
	large, err := l.Invoke(t.Context(), &agentv1.InvokeRequest{Payload: payload}, nil)
	if err != nil || !bytes.Equal(large.GetPayload(), payload) || a.bulk.Load() != 1 {
		t.Fatalf("large: %d bytes, %v, %d on BULK", len(large.GetPayload()), err, a.bulk.Load())
	}
	var chunks []string
	streamed, err := l.Invoke(t.Context(), &agentv1.InvokeRequest{Stream: true}, func(c []byte) error { chunks = append(chunks, string(c)); return nil })
	if err != nil || !streamed.GetStreamed() || strings.Join(chunks, "") != "abc" {
		t.Fatalf("streamed: %v, %v, %v", streamed, err, chunks)
	}
	worker, _ := w.workerFor("python3.11")
	if _, err := worker.Prepare(t.Context(), &agentv1.PrepareRequest{CodeDigest: "d"}); err != nil || a.worker.prepared[0] != "d" {
		t.Fatal(err)
	}
	if _, err := worker.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: l.SandboxID()}); err != nil || len(a.worker.live) != 0 {
		t.Fatal(err)
	}
}

func TestSessionCarriesManyCallsAtOnce(t *testing.T) {
	w := newWire(t, nil)
	w.agent(t, "a")
	fn := active("f", 128)
	w.state.put(fn)
	var all sync.WaitGroup
	for range 20 {
		l := w.acquire(fn)
		for i := range 50 {
			all.Go(func() {
				want := fmt.Sprint(i)
				resp, err := l.Invoke(t.Context(), &agentv1.InvokeRequest{Payload: []byte(want)}, nil)
				if err != nil || string(resp.GetPayload()) != want {
					t.Errorf("%v, %v, want %s", resp, err, want)
				}
			})
		}
	}
	all.Wait()
}

func TestSessionCarriesFaults(t *testing.T) {
	w := newWire(t, nil)
	a := w.agent(t, "a")
	a.worker.invoke = func(*agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		return nil, fault.Unavailable(sandboxGone, "it exited")
	}
	fn := active("f", 128)
	w.state.put(fn)
	_, err := w.acquire(fn).Invoke(t.Context(), &agentv1.InvokeRequest{}, nil)
	if e := fault.From(err); e.Reason != sandboxGone || e.Code != codes.Unavailable || e.Message != "it exited" {
		t.Fatal(err)
	}
}

func TestCallsFailWithTheirSession(t *testing.T) {
	w := newWire(t, nil)
	a := w.agent(t, "a")
	running := make(chan struct{})
	release := make(chan struct{})
	a.worker.invoke = func(*agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		close(running)
		<-release
		return &agentv1.InvokeResponse{}, nil
	}
	fn := active("f", 128)
	w.state.put(fn)
	l := w.acquire(fn)
	done := make(chan error)
	go func() {
		_, err := l.Invoke(context.Background(), &agentv1.InvokeRequest{}, nil)
		done <- err
	}()
	<-running
	a.cancel()
	if err := <-done; !fault.Is(err, nodeLost) {
		t.Errorf("under way: %v", err)
	}
	close(release)
	if _, err := l.Invoke(context.Background(), &agentv1.InvokeRequest{}, nil); !fault.Is(err, sandboxGone) {
		t.Errorf("not sent: %v", err)
	}
	if l.Usable() {
		t.Error("the lease is usable")
	}
	a.stop()
	w.agent(t, "a") // comes back
	w.acquire(fn)
}

func TestCallIsCancelledWithItsCaller(t *testing.T) {
	w := newWire(t, nil)
	a := w.agent(t, "a")
	preparing := make(chan struct{})
	release := make(chan struct{})
	a.worker.prepare = func(*agentv1.PrepareRequest) error {
		close(preparing)
		<-release
		return nil
	}
	defer close(release)
	worker, _ := w.workerFor("python3.11")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-preparing
		cancel()
	}()
	if _, err := worker.Prepare(ctx, &agentv1.PrepareRequest{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-a.cancels
}

func TestSessionRefuses(t *testing.T) {
	w := newWire(t, nil)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "node", "a")
	first := func(ctx context.Context, m *agentv1.SessionRequest) error {
		stream, err := w.client.Session(ctx)
		if err != nil {
			return err
		}
		_ = stream.Send(m)
		_, err = stream.Recv()
		return err
	}
	helloAs := func(name string, lane agentv1.Lane) *agentv1.SessionRequest {
		h := hello(name, 1000)
		h.Lane = lane
		return &agentv1.SessionRequest{Message: &agentv1.SessionRequest_Hello{Hello: h}}
	}
	for name, c := range map[string]struct {
		ctx  context.Context
		m    *agentv1.SessionRequest
		want codes.Code
	}{
		"no certificate":       {t.Context(), helloAs("a", agentv1.Lane_LANE_CONTROL), codes.Unauthenticated},
		"another's name":       {ctx, helloAs("b", agentv1.Lane_LANE_CONTROL), codes.PermissionDenied},
		"no hello":             {ctx, &agentv1.SessionRequest{}, codes.InvalidArgument},
		"no lane":              {ctx, helloAs("a", agentv1.Lane_LANE_UNSPECIFIED), codes.InvalidArgument},
		"BULK without CONTROL": {ctx, helloAs("a", agentv1.Lane_LANE_BULK), codes.Unavailable},
	} {
		if err := first(c.ctx, c.m); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestFetchBlob(t *testing.T) {
	w := newWire(t, nil)
	content := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	if err := os.WriteFile(filepath.Join(string(w.cfg.Blobs.(dirBlobs)), "d"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	fetch := func(ctx context.Context, digest string) ([]byte, error) {
		stream, err := w.client.FetchBlob(ctx, &agentv1.FetchBlobRequest{Digest: digest})
		if err != nil {
			return nil, err
		}
		var got []byte
		for {
			m, err := stream.Recv()
			if err != nil {
				return got, err
			}
			got = append(got, m.GetChunk()...)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "node", "a")
	if got, err := fetch(ctx, "d"); !errors.Is(err, io.EOF) || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := fetch(ctx, "none"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND) {
		t.Error(err)
	}
	if _, err := fetch(t.Context(), "d"); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	r, err := w.FetchBlob(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("in process: %d bytes, %v", len(got), err)
	}
}

// A reader much slower than the agent gets every line once, and the session serves others meanwhile.
func TestSlowLogReader(t *testing.T) {
	w := newWire(t, func(c *Config) { c.LogBufferBytes = 4 << 10 })
	a := w.agent(t, "a")
	asked := 0
	a.worker.logs = func(_ context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
		asked++
		for i := range 500 {
			l := line(1000+i/3, fmt.Sprintf("line %d %s", i, strings.Repeat("x", 50))) // three of each time
			if q.GetSince() == nil || !l.GetTime().AsTime().Before(q.GetSince().AsTime()) {
				if err := emit(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{l}}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	fn := active("f", 128)
	w.state.put(fn)
	l := w.acquire(fn)
	n := 0
	err := w.ReadLogs(t.Context(), &mayflyv1.ReadLogsRequest{}, func(r *mayflyv1.ReadLogsResponse) error {
		if _, err := l.Invoke(t.Context(), &agentv1.InvokeRequest{}, nil); err != nil {
			t.Error(err)
		}
		for _, line := range r.GetLines() {
			if want := fmt.Sprintf("line %d ", n); !strings.HasPrefix(line.GetText(), want) {
				return fmt.Errorf("got %q, want %q", line.GetText(), want)
			}
			n++
		}
		time.Sleep(time.Millisecond)
		return nil
	})
	if err != nil || n != 500 {
		t.Fatalf("%d lines, %v", n, err)
	}
	t.Logf("asked %d times", asked)
}

func TestReportsComeOverTheSession(t *testing.T) {
	w := newWire(t, nil)
	a := w.agent(t, "a")
	fn := active("f", 128)
	w.state.put(fn)
	l := w.acquire(fn)
	report := &agentv1.Report{Sandboxes: []*agentv1.SandboxStatus{{SandboxId: l.SandboxID(), State: agentv1.SandboxState_SANDBOX_STATE_GONE}}}
	if err := a.control.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Report{Report: report}}); err != nil {
		t.Fatal(err)
	}
	for l.Usable() {
		time.Sleep(time.Millisecond)
	}
}

func TestSilentSessionEnds(t *testing.T) {
	w := newWire(t, func(c *Config) { c.SessionTimeout = 50 * time.Millisecond })
	stop := w.run()
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := w.open(ctx, "a", agentv1.Lane_LANE_CONTROL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !fault.Is(err, nodeLost) {
		t.Fatal(err)
	}
	if n := w.Nodes()[0]; n.GetState() != mayflyv1.NodeState_NODE_STATE_DOWN {
		t.Fatal("the node is up")
	}
}
