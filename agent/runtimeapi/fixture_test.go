package runtimeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// functionVar makes the test binary a function that is written with the unmodified aws-lambda-go.
const functionVar = "MAYFLY_TEST_FUNCTION"

func TestMain(m *testing.M) {
	if os.Getenv(functionVar) != "" {
		lambda.Start(handle)
		return
	}
	os.Exit(m.Run())
}

const runtimeAPI = "/2018-06-01/runtime/"

type answer struct {
	Echo     string `json:"echo"`
	Request  string `json:"request"`
	ARN      string `json:"arn"`
	Client   string `json:"client"`
	Deadline int64  `json:"deadline"`
	Name     string `json:"name"`
	Memory   int    `json:"memory"`
	Variable string `json:"variable"`
}

type brokenReader struct{ begun bool }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.begun {
		return 0, errors.New("disk on fire")
	}
	b.begun = true
	return copy(p, "half of"), nil
}

func handle(ctx context.Context, in string) (any, error) {
	switch in {
	case "fail":
		return nil, errors.New("as asked")
	case "panic":
		panic("as asked")
	case "reader":
		return strings.NewReader("from a reader"), nil
	case "broken reader":
		return &brokenReader{}, nil
	case "large":
		return strings.Repeat("x", MaxPayload), nil // and two quotes
	}
	lc, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return answer{
		Echo: in, Request: lc.AwsRequestID, ARN: lc.InvokedFunctionArn, Client: lc.ClientContext.Client.AppTitle,
		Deadline: deadline.UnixMilli(), Name: lambdacontext.FunctionName, Memory: lambdacontext.MemoryLimitInMB,
		Variable: os.Getenv("VARIABLE"),
	}, nil
}

// agent is the other end of Serve.
type agent struct {
	t    *testing.T
	conn net.Conn
	url  string
	ends chan end // what Serve returned, once
	env  chan []string
	log  logLines
	// function is the process of the function, in whose place the test speaks.
	function *fakeProcess
}

// fakeProcess is a process that lives in the test only: a signal ends it, unless it is deaf.
type fakeProcess struct {
	once   sync.Once
	ended  chan struct{}
	status int
	deaf   bool
}

func newFakeProcess() *fakeProcess { return &fakeProcess{ended: make(chan struct{})} }

func (p *fakeProcess) Ended() <-chan struct{} { return p.ended }
func (p *fakeProcess) Status() int            { return p.status }
func (p *fakeProcess) Flush()                 {}

func (p *fakeProcess) Signal(s syscall.Signal) {
	if !p.deaf || s == syscall.SIGKILL {
		p.exit(128 + int(s))
	}
}

func (p *fakeProcess) exit(status int) {
	p.once.Do(func() {
		p.status = status
		close(p.ended)
	})
}

// logLines is a log that can be read while it is written.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newAgent serves a function that start starts; nil: the test speaks in its place.
func newAgent(t *testing.T, start func(env []string) error, external ...Extension) *agent {
	t.Helper()
	ours, theirs := net.Pipe()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, conn: ours, url: "http://" + l.Addr().String() + runtimeAPI, ends: make(chan end, 1), env: make(chan []string, 1), function: newFakeProcess()}
	go func() {
		status, err := Serve(Config{
			Agent: theirs, Listener: l, Runtime: "provided", Log: &a.log,
			Extensions: func() ([]Extension, error) { return external, nil },
			Start: func(env []string, _ func([]byte)) (Process, error) {
				a.env <- env
				if start == nil {
					return a.function, nil
				}
				return a.function, start(env)
			},
		})
		a.ends <- end{status: status, err: err}
	}()
	t.Cleanup(func() { ours.Close() })
	var hello frame.Hello
	a.expectJSON(frame.TypeHello, &hello)
	if hello.Protocol != 1 || hello.Runtime != "provided" {
		t.Errorf("hello %+v", hello)
	}
	return a
}

func (a *agent) send(t frame.Type, v any) {
	a.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(frame.Append(nil, t, body))
}

func (a *agent) write(b []byte) {
	a.t.Helper()
	if err := a.conn.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.conn.Write(b); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) load() {
	a.send(frame.TypeLoad, frame.Load{
		Handler: "bootstrap", TaskRoot: "/var/task", FunctionName: "hello", FunctionVersion: "3", MemoryLimitMB: 256,
		LogGroup: "/aws/lambda/hello", LogStream: "stream", Env: map[string]string{"VARIABLE": "its value"},
	})
}

func (a *agent) invoke(meta frame.Invoke, event string) {
	a.t.Helper()
	m, err := json.Marshal(meta)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(append(frame.AppendInvoke(nil, m, len(event)), event...))
}

func (a *agent) expect(want frame.Type) []byte {
	a.t.Helper()
	if err := a.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		a.t.Fatal(err)
	}
	got, body, err := frame.Read(a.conn)
	if err != nil || got != want {
		a.t.Fatalf("frame %d %q, %v; want type %d", got, body, err, want)
	}
	return body
}

func (a *agent) expectJSON(want frame.Type, v any) {
	a.t.Helper()
	if body := a.expect(want); json.Unmarshal(body, v) != nil {
		a.t.Fatalf("no JSON: %q", body)
	}
}

// end waits until Serve returns.
func (a *agent) end() (status int, err error) {
	a.t.Helper()
	select {
	case e := <-a.ends:
		return e.status, e.err
	case <-time.After(time.Minute):
		a.t.Fatal("Serve did not return")
		return 0, nil
	}
}

// reply is what a call of the Runtime API answered.
type reply struct {
	status int
	header http.Header
	body   string
}

func (a *agent) call(method, path string, header http.Header, body io.Reader) reply {
	a.t.Helper()
	r, err := a.try(method, path, header, body)
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func (a *agent) try(method, path string, header http.Header, body io.Reader) (reply, error) {
	target := a.url + path
	if strings.HasPrefix(path, "/") {
		target = strings.TrimSuffix(a.url, runtimeAPI) + path
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, target, body)
	if err != nil {
		return reply{}, err
	}
	maps.Copy(req.Header, header)
	if trailer, ok := body.(*trailing); ok {
		req.Trailer = trailer.declared
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b)}, err
}

// trailing is a body that sets trailers at its end.
type trailing struct {
	io.Reader
	declared, values http.Header
}

func (r *trailing) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		maps.Copy(r.declared, r.values)
	}
	return n, err
}

// later runs a call beside the test; a frame that the call causes must be read meanwhile.
func (a *agent) later(method, path string, header http.Header, body io.Reader) <-chan reply {
	out := make(chan reply, 1)
	go func() {
		r, err := a.try(method, path, header, body)
		if err != nil {
			r.body = err.Error()
		}
		out <- r
	}()
	return out
}

// function is a process with aws-lambda-go.
type function struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func (f *function) start(env []string) error {
	f.cmd = exec.Command(os.Args[0])
	f.cmd.Env = append(env, functionVar+"=1")
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.out
	return f.cmd.Start()
}
