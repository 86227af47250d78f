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
	"sync/atomic"
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
	ends chan error // what Serve returned, once
	env  chan []string

	stopped atomic.Bool
}

func newAgent(t *testing.T, start func(env []string) error) *agent {
	t.Helper()
	ours, theirs := net.Pipe()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, conn: ours, url: "http://" + l.Addr().String() + "/2018-06-01/runtime/", ends: make(chan error, 1), env: make(chan []string, 1)}
	go func() {
		a.ends <- Serve(Config{Agent: theirs, Listener: l, Runtime: "provided", Start: func(env []string) error {
			a.env <- env
			if start == nil {
				return nil
			}
			return start(env)
		}, Stop: func() { a.stopped.Store(true) }})
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

func (a *agent) end() error {
	a.t.Helper()
	select {
	case err := <-a.ends:
		return err
	case <-time.After(time.Minute):
		a.t.Fatal("Serve did not return")
		return nil
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
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, body)
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
