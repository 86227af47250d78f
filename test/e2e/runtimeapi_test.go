package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// compile builds a program of testdata for a sandbox.
func compile(t testing.TB, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./testdata/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(program)
}

// custom is a function that is its own runtime; init says what it does before its first event.
func custom(name, bootstrap, init string) function {
	return function{
		name: name, runtime: "provided", handler: "bootstrap", timeout: 3 * time.Second,
		files: map[string]string{"bootstrap": bootstrap}, env: map[string]string{"INIT": init},
	}
}

// neighbour is another function whose sandbox must not notice what happens.
type neighbour struct{ name, answer string }

func newNeighbour(t *testing.T, name string) neighbour {
	t.Helper()
	shared.deploy(t, python(name, "import os, uuid\nme = str(uuid.uuid4())\ndef handler(e, c): return me"))
	return neighbour{name, string(shared.invoke(t, name, "{}").GetPayload())}
}

func (n neighbour) check(t *testing.T) {
	t.Helper()
	if got := string(shared.invoke(t, n.name, "{}").GetPayload()); got != n.answer {
		t.Errorf("the neighbour's sandbox was harmed: %s answers in place of %s", got, n.answer)
	}
}

func text(t testing.TB, in *instance, name, do string) string {
	t.Helper()
	resp := in.invoke(t, name, `{"do":"`+do+`"}`)
	var s string
	if err := json.Unmarshal(resp.GetPayload(), &s); err != nil || resp.GetFunctionError() != "" {
		t.Fatalf("%s: %s %q: %v", do, resp.GetFunctionError(), resp.GetPayload(), err)
	}
	return s
}

func TestRuntimeAPIHeaders(t *testing.T) {
	shared.deploy(t, custom("rapi-headers", compile(t, "bootstrap"), ""))
	resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{
		Function: "rapi-headers", Payload: []byte(`{}`), ClientContext: `{"client":{"app_title":"tests"}}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	var header http.Header
	if err := json.Unmarshal(resp.GetPayload(), &header); err != nil {
		t.Fatalf("%s: %v", resp.GetPayload(), err)
	}
	if got := header.Get("Lambda-Runtime-Aws-Request-Id"); got != resp.GetRequestId() {
		t.Errorf("request id %q, want %q", got, resp.GetRequestId())
	}
	if got := header.Get("Lambda-Runtime-Invoked-Function-Arn"); !strings.HasSuffix(got, ":function:rapi-headers") {
		t.Errorf("ARN %q", got)
	}
	if got := header.Get("Lambda-Runtime-Client-Context"); got != `{"client":{"app_title":"tests"}}` {
		t.Errorf("client context %q", got)
	}
	if got := header.Get("Lambda-Runtime-Deadline-Ms"); len(got) != 13 {
		t.Errorf("deadline %q", got)
	}
	if got := header.Get("Lambda-Runtime-Trace-Id"); !strings.HasPrefix(got, "Root=1-") {
		t.Errorf("trace id %q", got)
	}
}

func TestBootstrapInits(t *testing.T) {
	bootstrap := compile(t, "bootstrap")
	safe := newNeighbour(t, "rapi-init-neighbour")
	for _, c := range []struct{ name, init, errorType, message, log string }{
		{"rapi-exit", "exit", "Runtime.ExitError", "exit status 3", "Phase: invoke\tStatus: error\tError Type: Runtime.ExitError"},
		{"rapi-hang", "hang", "Sandbox.Timedout", "timed out after 3.00 seconds", "INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout"},
		{"rapi-error", "error", "Runtime.NoConfig", "no configuration", "INIT_REPORT Phase: init\tStatus: error"},
	} {
		t.Run(c.init, func(t *testing.T) {
			t.Parallel()
			shared.deploy(t, custom(c.name, bootstrap, c.init))
			resp := shared.invoke(t, c.name, `{}`)
			var e functionError
			if err := json.Unmarshal(resp.GetPayload(), &e); err != nil || resp.GetFunctionError() != "Unhandled" {
				t.Fatalf("%s: %v", resp.GetPayload(), err)
			}
			if e.ErrorType != c.errorType || !strings.Contains(e.ErrorMessage, c.message) || !strings.Contains(string(resp.GetLogTail()), c.log) {
				t.Errorf("%+v, log %s", e, resp.GetLogTail())
			}
			safe.check(t)
		})
	}
}

func TestBootstrapsThatAreNone(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"rapi-none":    {"readme": "nothing to run"},
		"rapi-garbage": {"bootstrap": "\x00garbage"},
	} {
		t.Run(name, func(t *testing.T) {
			f := custom(name, "", "")
			f.files = files
			shared.deploy(t, f)
			if e := shared.failure(t, name, `{}`); e.ErrorType != "Runtime.InvalidEntrypoint" || !strings.Contains(e.ErrorMessage, "/var/task/bootstrap") {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestBootstrapMisbehaves(t *testing.T) {
	shared.deploy(t, custom("rapi-bad", compile(t, "bootstrap"), ""))
	safe := newNeighbour(t, "rapi-bad-neighbour")
	for _, c := range []struct{ do, errorType, message string }{
		{"exit", "Runtime.ExitError", "exit status 4"},
		{"exit well", "Runtime.ExitError", "without providing a reason"},
		{"hang", "Sandbox.Timedout", "timed out after 3.00 seconds"},
		{"large", "Function.ResponseSizeTooLarge", "6291556"},
		{"half", "Runtime.TruncatedResponse", ""},
	} {
		t.Run(c.do, func(t *testing.T) {
			e := shared.failure(t, "rapi-bad", `{"do":"`+c.do+`"}`)
			if e.ErrorType != c.errorType || !strings.Contains(e.ErrorMessage, c.message) {
				t.Errorf("%+v", e)
			}
			safe.check(t)
		})
	}
}

func TestBootstrapTransitions(t *testing.T) {
	shared.deploy(t, custom("rapi-states", compile(t, "bootstrap"), ""))
	for _, c := range []struct{ do, want, last string }{
		{"twice", "first", "202 OK, 403 InvalidStateTransition, 403 InvalidStateTransition"},
		{"other", "400 InvalidRequestID", ""},
		{"ask again", "200 true", ""},
		{"garbage", "400 refused", ""},
	} {
		if got := text(t, shared, "rapi-states", c.do); got != c.want {
			t.Errorf("%s: %q, want %q", c.do, got, c.want)
		}
		if got := text(t, shared, "rapi-states", "last"); got != c.last {
			t.Errorf("after %s: %q, want %q", c.do, got, c.last)
		}
	}
	if e := shared.failure(t, "rapi-states", `{"do":"large"}`); e.ErrorType != "Function.ResponseSizeTooLarge" {
		t.Errorf("%+v", e)
	}
	if got := text(t, shared, "rapi-states", "last"); got != "413 RequestEntityTooLarge" {
		t.Errorf("after a large answer: %q", got)
	}
	resp := shared.invoke(t, "rapi-states", `{"do":"error"}`)
	want := `{"errorMessage":"as asked","errorType":"Odd","stackTrace":[{"path":"a.go","line":7}],"requestId":"` + resp.GetRequestId() + `"}`
	if string(resp.GetPayload()) != want || resp.GetFunctionError() != "Unhandled" {
		t.Errorf("%s %s, want %s", resp.GetFunctionError(), resp.GetPayload(), want)
	}
}

func TestBootstrapStreams(t *testing.T) {
	f := custom("rapi-stream", compile(t, "bootstrap"), "")
	f.url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM}
	shared.deploy(t, f)
	chunks, end := streamOf(t, "rapi-stream", `{"do":"stream"}`)
	if got := strings.Join(chunks, ""); len(chunks) < 3 || !strings.HasSuffix(got, strings.Repeat("\x00", 8)+"onetwo") || end.GetFunctionError() != "" {
		t.Errorf("%q, %v", chunks, end)
	}
	if got := text(t, shared, "rapi-stream", "last"); got != "202 OK" {
		t.Errorf("after a stream: %q", got)
	}
	chunks, end = streamOf(t, "rapi-stream", `{"do":"broken stream"}`)
	if !strings.HasSuffix(strings.Join(chunks, ""), "onetwo") || end.GetFunctionError() != "Unhandled" || !strings.Contains(string(end.GetPayload()), `"it broke"`) {
		t.Errorf("%q, %v", chunks, end)
	}
	resp, body := shared.do(t, shared.request(t, http.MethodGet, "/fn/rapi-stream/?do=stream", ""))
	if resp.StatusCode != http.StatusCreated || resp.Header.Get("X-Part") != "one" || body != "onetwo" {
		t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
	}
	// A caller who wants no stream gets the whole, or the error.
	if resp := shared.invoke(t, "rapi-stream", `{"do":"stream"}`); !strings.HasSuffix(string(resp.GetPayload()), "\x00onetwo") {
		t.Errorf("%q", resp.GetPayload())
	}
	if e := shared.failure(t, "rapi-stream", `{"do":"broken stream"}`); e.ErrorType != "Midstream" {
		t.Errorf("%+v", e)
	}
}

func streamOf(t *testing.T, name, payload string) (chunks []string, end *mayflyv1.InvokeResponse) {
	t.Helper()
	s, err := shared.invocations().InvokeStream(t.Context(), &mayflyv1.InvokeStreamRequest{
		Invoke: &mayflyv1.InvokeRequest{Function: name, Payload: []byte(payload)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return chunks, end
		}
		if err != nil {
			t.Fatal(err)
		}
		if c := m.GetChunk(); c != nil {
			chunks = append(chunks, string(c))
		}
		if c := m.GetComplete(); c != nil {
			end = c
		}
	}
}

// logOf is a function's log, line by line, once it has what is awaited.
func logOf(t *testing.T, in *instance, name, await string) []string {
	t.Helper()
	var lines []string
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out := in.mustCLI(t, "logs", name)
		lines = nil
		for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
			lines = append(lines, s.Text())
		}
		if strings.Contains(out, await) {
			return lines
		}
	}
	t.Fatalf("no %q in the log:\n%s", await, strings.Join(lines, "\n"))
	return nil
}

// The end of a sandbox leaves nothing in the function's log.
func TestEndOfACustomRuntimeIsSilent(t *testing.T) {
	f := custom("rapi-silent", compile(t, "bootstrap"), "")
	shared.deploy(t, f)
	shared.invoke(t, f.name, `{"do":"last"}`)
	shared.replaceCode(t, f)
	resp := shared.invoke(t, f.name, `{"do":"last"}`)
	lines := logOf(t, shared, f.name, "REPORT RequestId: "+resp.GetRequestId())
	for _, l := range lines {
		if !strings.Contains(l, "INIT_START") && !strings.Contains(l, "RequestId: ") {
			t.Errorf("unexpected in the log: %s", l)
		}
	}
}
