package runtimeapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

func startGo(t *testing.T) *agent {
	t.Helper()
	f := &function{}
	a := newAgent(t, f.start)
	t.Cleanup(func() {
		if f.cmd == nil || f.cmd.Process == nil {
			return
		}
		f.cmd.Process.Kill()
		f.cmd.Wait()
	})
	a.load()
	a.expect(frame.TypeReady)
	return a
}

func TestGoFunction(t *testing.T) {
	a := startGo(t)
	deadline := time.Now().Add(time.Hour).UnixMilli()
	for _, id := range []string{"first", "second"} {
		a.invoke(frame.Invoke{
			RequestID: id, DeadlineMS: deadline, ARN: "arn:aws:lambda:x", ClientContext: `{"client":{"app_title":"app"}}`,
		}, `"hi"`)
		var got answer
		a.expectJSON(frame.TypeResult, &got)
		want := answer{
			Echo: "hi", Request: id, ARN: "arn:aws:lambda:x", Client: "app", Deadline: deadline, Name: "hello", Memory: 256, Variable: "its value",
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	a.send(frame.TypeShutdown, frame.Shutdown{Reason: "spindown"})
	if status, err := a.end(); err != nil || status != 0 {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

func TestGoFunctionReader(t *testing.T) {
	a := startGo(t)
	a.invoke(frame.Invoke{RequestID: "r"}, `"reader"`)
	if got := a.expect(frame.TypeResult); string(got) != "from a reader" {
		t.Errorf("got %q", got)
	}
}

func TestGoFunctionErrors(t *testing.T) {
	for event, want := range map[string]frame.Error{
		"fail":          {Type: "errorString", Message: "as asked"},
		"panic":         {Type: "string", Message: "as asked"},
		"broken reader": {Type: "errorString", Message: "disk on fire"},
		"large":         {Type: "Function.ResponseSizeTooLarge", Message: "Response payload size exceeded maximum allowed payload size (6291556 bytes)."},
	} {
		t.Run(event, func(t *testing.T) {
			a := startGo(t)
			a.invoke(frame.Invoke{RequestID: "r"}, `"`+event+`"`)
			var got struct {
				ErrorType, ErrorMessage string
				StackTrace              []struct{ Path string } // as Go's runtime client writes it
			}
			a.expectJSON(frame.TypeError, &got)
			if got.ErrorType != want.Type || got.ErrorMessage != want.Message {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if event == "panic" && (len(got.StackTrace) == 0 || !strings.HasSuffix(got.StackTrace[0].Path, ".go")) {
				t.Errorf("stack trace %v", got.StackTrace)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	a := newAgent(t, nil)
	a.load()
	env := <-a.env
	for _, want := range []string{
		"VARIABLE=its value", "AWS_LAMBDA_FUNCTION_NAME=hello", "AWS_LAMBDA_FUNCTION_VERSION=3", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/hello", "AWS_LAMBDA_LOG_STREAM_NAME=stream", "_HANDLER=bootstrap", "LAMBDA_TASK_ROOT=/var/task",
		"AWS_LAMBDA_RUNTIME_API=" + strings.TrimSuffix(strings.TrimPrefix(a.url, "http://"), "/2018-06-01/runtime/"),
	} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %q", want, env)
		}
	}
}

func TestNotStarted(t *testing.T) {
	a := newAgent(t, func([]string) error { return errors.New("no bootstrap") })
	a.load()
	var e frame.Error
	a.expectJSON(frame.TypeInitError, &e)
	if e.Type != "Runtime.InvalidEntrypoint" || e.Message != "no bootstrap" {
		t.Errorf("init error %+v", e)
	}
	if status, err := a.end(); status != 1 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

func TestAgentLost(t *testing.T) {
	a := newAgent(t, nil)
	a.load()
	next := a.later("GET", "invocation/next", nil, nil)
	a.expect(frame.TypeReady)
	a.conn.Close()
	if status, err := a.end(); status != exitLost || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
	if r := <-next; r.status == http.StatusOK {
		t.Errorf("next: %+v", r)
	}
}

// begin makes a loaded function, in whose place the test speaks, that has an event.
func begin(t *testing.T, meta frame.Invoke) *agent {
	t.Helper()
	a := newAgent(t, nil)
	a.load()
	next := a.later("GET", "invocation/next", nil, nil)
	a.expect(frame.TypeReady)
	a.invoke(meta, `{"a":1}`)
	r := <-next
	if r.status != http.StatusOK || r.body != `{"a":1}` || r.header.Get("Lambda-Runtime-Aws-Request-Id") != meta.RequestID {
		t.Fatalf("next: %+v", r)
	}
	return a
}

func expectReply(t *testing.T, got reply, status int, kind string) {
	t.Helper()
	var body struct{ Status, ErrorMessage, ErrorType string }
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("reply %+v: %v", got, err)
	}
	ok := body.Status == "OK"
	if kind != "" {
		ok = body.ErrorType == kind && body.ErrorMessage != ""
	}
	if got.status != status || !ok {
		t.Errorf("reply %d %s, want %d %s", got.status, got.body, status, kind)
	}
}

func TestHeadersOfNext(t *testing.T) {
	a := newAgent(t, nil)
	a.load()
	next := a.later("GET", "invocation/next", nil, nil)
	a.expect(frame.TypeReady)
	a.invoke(frame.Invoke{RequestID: "id", DeadlineMS: 1234, ARN: "arn", TraceID: "Root=1", ClientContext: "{}", CognitoContext: `{"i":1}`}, "1")
	h := (<-next).header
	for name, want := range map[string]string{
		"Lambda-Runtime-Aws-Request-Id": "id", "Lambda-Runtime-Deadline-Ms": "1234", "Lambda-Runtime-Invoked-Function-Arn": "arn",
		"Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": "{}", "Lambda-Runtime-Cognito-Identity": `{"i":1}`,
		"Content-Type": "application/json",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	r := begin(t, frame.Invoke{RequestID: "id"}).call("POST", "invocation/x/response", nil, nil)
	if _, ok := r.header["Lambda-Runtime-Trace-Id"]; ok {
		t.Error("an empty trace id is sent")
	}
}

func TestResponse(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	r := a.later("POST", "invocation/id/response", nil, strings.NewReader("the answer"))
	if got := a.expect(frame.TypeResult); string(got) != "the answer" {
		t.Errorf("result %q", got)
	}
	expectReply(t, <-r, http.StatusAccepted, "")
}

func TestTransitions(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	expectReply(t, a.call("POST", "init/error", nil, nil), http.StatusForbidden, "InvalidStateTransition")
	expectReply(t, a.call("POST", "invocation/other/response", nil, nil), http.StatusBadRequest, "InvalidRequestID")
	expectReply(t, a.call("POST", "invocation/other/error", nil, nil), http.StatusBadRequest, "InvalidRequestID")
	expectReply(t, a.call("GET", "nonsense", nil, nil), http.StatusNotFound, "NotFound")
	r := a.later("POST", "invocation/id/error", nil, strings.NewReader(`{}`))
	a.expect(frame.TypeError)
	expectReply(t, <-r, http.StatusAccepted, "")
	twice := a.call("POST", "invocation/id/response", nil, nil)
	expectReply(t, twice, http.StatusForbidden, "InvalidStateTransition")
	if want := "State transition from RuntimeResponseSentState to InvocationResponse failed for runtime."; !strings.Contains(twice.body, want) {
		t.Errorf("%s, want %s", twice.body, want)
	}
}

// A function whose connection broke, so that it may not have seen its event, gets it again.
func TestEventIsRepeated(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id", DeadlineMS: 5})
	again := a.call("GET", "invocation/next", nil, nil)
	if again.status != http.StatusOK || again.body != `{"a":1}` || again.header.Get("Lambda-Runtime-Aws-Request-Id") != "id" {
		t.Fatalf("next: %+v", again)
	}
	r := a.later("POST", "invocation/id/response", nil, strings.NewReader("1"))
	a.expect(frame.TypeResult)
	expectReply(t, <-r, http.StatusAccepted, "")
}

func TestUnknownResponseMode(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	expectReply(t, a.call("POST", "invocation/id/response", http.Header{modeHeader: {"smoke signals"}}, nil), http.StatusBadRequest, "InvalidFunctionResponseMode")
	r := a.later("POST", "invocation/id/response", nil, strings.NewReader("1"))
	a.expect(frame.TypeResult)
	expectReply(t, <-r, http.StatusAccepted, "")
}

func TestFunctionExits(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	a.function.exit(3)
	if status, err := a.end(); status != 3 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

func TestOneWaitsAtATime(t *testing.T) {
	a := newAgent(t, nil)
	a.load()
	next := a.later("GET", "invocation/next", nil, nil)
	a.expect(frame.TypeReady)
	expectReply(t, a.call("GET", "invocation/next", nil, nil), http.StatusForbidden, "InvalidStateTransition")
	a.invoke(frame.Invoke{RequestID: "id"}, "1")
	if r := <-next; r.status != http.StatusOK {
		t.Errorf("next: %+v", r)
	}
}

func TestTooLarge(t *testing.T) {
	for _, path := range []string{"invocation/id/response", "invocation/id/error"} {
		a := begin(t, frame.Invoke{RequestID: "id"})
		r := a.later("POST", path, nil, strings.NewReader(strings.Repeat("x", MaxPayload+1)))
		var e frame.Error
		a.expectJSON(frame.TypeError, &e)
		if e.Type != "Function.ResponseSizeTooLarge" {
			t.Errorf("error %+v", e)
		}
		expectReply(t, <-r, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge")
	}
}

func TestLargest(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	r := a.later("POST", "invocation/id/response", nil, strings.NewReader(strings.Repeat("x", MaxPayload)))
	if got := a.expect(frame.TypeResult); len(got) != MaxPayload {
		t.Errorf("%d bytes", len(got))
	}
	expectReply(t, <-r, http.StatusAccepted, "")
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct{ header, body, want string }{
		"python":          {"", `{"errorMessage":"bad","errorType":"ValueError","requestId":"","stackTrace":["  File app.py"]}`, "same"},
		"node":            {"", `{"errorType":"TypeError","errorMessage":"bad","trace":["TypeError: bad"," at x"]}`, "same"},
		"go":              {"", `{"errorType":"string","errorMessage":"boo","stackTrace":[{"path":"a/b.go","line":39,"label":"f"}]}`, "same"},
		"both":            {"Function.Odd", `{"errorType":"Own","errorMessage":"m"}`, "same"},
		"header only":     {"Function.Odd", `{"errorMessage":"m"}`, `{"errorMessage":"m","errorType":"Function.Odd"}`},
		"no object":       {"Function.Odd", `"broken"`, `{"errorType":"Function.Odd","errorMessage":"\"broken\""}`},
		"no JSON":         {"Function.Odd", `broken`, `{"errorType":"Function.Odd","errorMessage":"broken"}`},
		"null":            {"Function.Odd", `null`, `{"errorType":"Function.Odd","errorMessage":"null"}`},
		"nothing":         {"", ``, `{"errorType":"Runtime.Unknown","errorMessage":""}`},
		"type is no text": {"", `{"errorType":7}`, `{"errorType":"Runtime.Unknown"}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := begin(t, frame.Invoke{RequestID: "id"})
			header := http.Header{}
			if c.header != "" {
				header.Set(errorTypeHeader, c.header)
			}
			r := a.later("POST", "invocation/id/error", header, strings.NewReader(c.body))
			got := string(a.expect(frame.TypeError))
			expectReply(t, <-r, http.StatusAccepted, "")
			if want := strings.Replace(c.want, "same", c.body, 1); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestInitError(t *testing.T) {
	a := newAgent(t, nil)
	a.load()
	header := http.Header{errorTypeHeader: {"Runtime.HandlerNotFound"}}
	r := a.later("POST", "init/error", header, strings.NewReader(`{"errorMessage":"no handler"}`))
	var e frame.Error
	a.expectJSON(frame.TypeInitError, &e)
	if e.Type != "Runtime.HandlerNotFound" || e.Message != "no handler" {
		t.Errorf("init error %+v", e)
	}
	expectReply(t, <-r, http.StatusAccepted, "")
	expectReply(t, a.call("GET", "invocation/next", nil, nil), http.StatusForbidden, "InvalidStateTransition")
}

func streaming() http.Header {
	return http.Header{modeHeader: {"streaming"}, "Content-Type": {"application/vnd.awslambda.http-integration-response"}}
}

func TestStreaming(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id", Stream: true})
	pr, pw := io.Pipe()
	r := a.later("POST", "invocation/id/response", streaming(), pr)
	var b frame.StreamBegin
	a.expectJSON(frame.TypeStreamBegin, &b)
	if b.ContentType != "application/vnd.awslambda.http-integration-response" {
		t.Errorf("begin %+v", b)
	}
	for _, part := range []string{`{"statusCode":200}` + strings.Repeat("\x00", 8), "one", "two"} {
		io.WriteString(pw, part)
		if got := a.expect(frame.TypeStream); string(got) != part { // before the next part is written
			t.Errorf("part %q, want %q", got, part)
		}
	}
	pw.Close()
	if got := a.expect(frame.TypeStreamEnd); len(got) != 0 {
		t.Errorf("end %q", got)
	}
	expectReply(t, <-r, http.StatusAccepted, "")
}

// midStream is a body whose trailers say that it broke off; like Node's client it declares one of the two only.
func midStream() *trailing {
	body := base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Error","errorMessage":"midstream","trace":["x"]}`))
	return &trailing{
		Reader: strings.NewReader("one"), declared: http.Header{errorBodyHeader: nil},
		values: http.Header{errorTypeHeader: {"Error"}, errorBodyHeader: {body}},
	}
}

func TestStreamingError(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id", Stream: true})
	r := a.later("POST", "invocation/id/response", streaming(), midStream())
	a.expect(frame.TypeStreamBegin)
	a.expect(frame.TypeStream)
	var e frame.Error
	a.expectJSON(frame.TypeStreamEnd, &e)
	if e.Type != "Error" || e.Message != "midstream" {
		t.Errorf("end %+v", e)
	}
	expectReply(t, <-r, http.StatusAccepted, "")
}

// A caller that can't take a stream gets the whole.
func TestStreamingBuffered(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	r := a.later("POST", "invocation/id/response", streaming(), strings.NewReader("all of it"))
	if got := a.expect(frame.TypeResult); string(got) != "all of it" {
		t.Errorf("result %q", got)
	}
	expectReply(t, <-r, http.StatusAccepted, "")
	next := a.later("GET", "invocation/next", nil, nil)
	a.invoke(frame.Invoke{RequestID: "id2"}, "1")
	<-next
	r = a.later("POST", "invocation/id2/response", streaming(), midStream())
	var e frame.Error
	a.expectJSON(frame.TypeError, &e)
	if e.Message != "midstream" {
		t.Errorf("error %+v", e)
	}
	<-r
}

func TestBrokenOffBody(t *testing.T) {
	a := begin(t, frame.Invoke{RequestID: "id"})
	pr, pw := io.Pipe()
	r := a.later("POST", "invocation/id/response", nil, pr)
	io.WriteString(pw, "half")
	pw.CloseWithError(errors.New("as asked"))
	var e frame.Error
	a.expectJSON(frame.TypeError, &e)
	if e.Type != "Runtime.TruncatedResponse" {
		t.Errorf("error %+v", e)
	}
	<-r
}

// Serve ends rather than mix up invocations.
func TestAgentMisbehaves(t *testing.T) {
	for name, b := range map[string][]byte{
		"unknown type": frame.Append(nil, 99, nil),
		"load":         frame.Append(nil, frame.TypeLoad, []byte("no JSON")),
		"invoke":       frame.Append(nil, frame.TypeInvoke, []byte{0}),
		"two events":   slices.Concat(frame.AppendInvoke(nil, []byte("{}"), 0), frame.AppendInvoke(nil, []byte("{}"), 0)),
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, nil)
			a.conn.Write(b)
			if _, err := a.end(); err == nil {
				t.Error("Serve: no error")
			}
		})
	}
}
