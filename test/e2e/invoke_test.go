package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const helloAnswer = `{"statusCode": 200, "body": "\"Hello World!\""}`

func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%q: %v", got, err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	gj, _ := json.Marshal(g)
	wj, _ := json.Marshal(w)
	if !bytes.Equal(gj, wj) {
		t.Fatalf("got %s, want %s", gj, wj)
	}
}

func TestHelloWorldThreeWays(t *testing.T) {
	example := filepath.Join("..", "..", "docs", "examples", "hello-python")
	shared.mustCLI(t, "deploy", example, "--name", "hello-three", "--runtime", "python3.11", "--handler", "hello_world.hello_world", "--url", "none")
	t.Cleanup(func() { shared.cli("", "function", "delete", "hello-three") })

	sameJSON(t, shared.mustCLI(t, "invoke", "hello-three"), helloAnswer)

	resp := shared.invoke(t, "hello-three", `{}`)
	if resp.GetExecutedVersion() != "$LATEST" || resp.GetRequestId() == "" || resp.GetFunctionError() != "" {
		t.Errorf("%v", resp)
	}
	sameJSON(t, string(resp.GetPayload()), helloAnswer)

	status, body := shared.get(t, "/fn/hello-three/")
	if status != 200 || body != `"Hello World!"` {
		t.Errorf("HTTP answered %d %s", status, body)
	}
}

func TestPythonContextAndEvent(t *testing.T) {
	f := python("ctx", `
import os
def handler(event, context):
    left = context.get_remaining_time_in_millis()
    return {"event": event, "name": context.function_name, "version": context.function_version, "arn": context.invoked_function_arn,
        "memory": context.memory_limit_in_mb, "id": context.aws_request_id, "group": context.log_group_name,
        "stream": context.log_stream_name, "left": 0 < left <= 10000, "env": os.environ["GREETING"], "region": os.environ["AWS_REGION"],
        "cwd": os.getcwd(), "handler": os.environ["_HANDLER"]}
`)
	f.env = map[string]string{"GREETING": "hé"}
	f.memoryMB = 256
	shared.deploy(t, f)
	resp := shared.invoke(t, "ctx", `{"a":[1,"ü"]}`)
	var got map[string]any
	if err := json.Unmarshal(resp.GetPayload(), &got); err != nil {
		t.Fatalf("%s: %v", resp.GetPayload(), err)
	}
	if !strings.Contains(got["stream"].(string), "[$LATEST]") || !strings.HasSuffix(got["arn"].(string), ":function:ctx") {
		t.Errorf("stream %v, arn %v", got["stream"], got["arn"])
	}
	delete(got, "stream")
	delete(got, "arn")
	want := map[string]any{
		"event": map[string]any{"a": []any{1.0, "ü"}}, "name": "ctx", "version": "$LATEST", "memory": "256", "id": resp.GetRequestId(),
		"group": "/aws/lambda/ctx", "left": true, "env": "hé", "region": "us-east-1", "cwd": "/var/task", "handler": "main.handler",
	}
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if string(g) != string(w) {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

func TestNodeFunction(t *testing.T) {
	shared.deploy(t, function{
		name: "node", runtime: "nodejs18", handler: "index.handler",
		files: map[string]string{"index.mjs": `
export const handler = async (event, context) => {
  console.log("seen", event.x);
  if (event.fail) throw new TypeError("no " + event.fail);
  return { twice: event.x * 2, id: context.awsRequestId };
};`},
	})
	resp := shared.invoke(t, "node", `{"x":21}`)
	sameJSON(t, string(resp.GetPayload()), `{"twice":42,"id":"`+resp.GetRequestId()+`"}`)
	if !strings.Contains(string(resp.GetLogTail()), "seen 21") {
		t.Errorf("log tail: %s", resp.GetLogTail())
	}
	if e := shared.failure(t, "node", `{"fail":"luck"}`); e.ErrorType != "TypeError" || e.ErrorMessage != "no luck" {
		t.Errorf("%+v", e)
	}
}

// TestGoFunction runs the example, a program with the unmodified aws-lambda-go module.
func TestGoFunction(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", filepath.Join(dir, "bootstrap"), "../../docs/examples/hello-go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	shared.mustCLI(t, "deploy", dir, "--name", "hello-go", "--runtime", "provided", "--handler", "bootstrap")
	t.Cleanup(func() { shared.cli("", "function", "delete", "hello-go") })
	for range 3 {
		resp := shared.invoke(t, "hello-go", `{}`)
		if resp.GetFunctionError() != "" || !strings.Contains(string(resp.GetPayload()), "Hello World!") {
			t.Fatalf("%s %s", resp.GetFunctionError(), resp.GetPayload())
		}
	}
}

func TestFunctionFailures(t *testing.T) {
	f := python("fails", `
import os, sys, time
def handler(event, context):
    what = event["what"]
    if what == "raise": raise ValueError("bad luck")
    if what == "exit": os._exit(7)
    if what == "sleep": time.sleep(60)
    if what == "memory":
        hog = bytearray(400 << 20)
        return len(hog)
    if what == "big": return "x" * (7 << 20)
    if what == "odd": return object()
    return os.getpid()
`)
	f.timeout = 4 * time.Second
	shared.deploy(t, f)
	for _, c := range []struct{ what, errorType, message string }{
		{"raise", "ValueError", "bad luck"},
		{"exit", "Runtime.ExitError", "exit status 7"},
		{"sleep", "Sandbox.Timedout", "Task timed out after 4.00 seconds"},
		{"memory", "Runtime.OutOfMemory", ""},
		{"big", "Function.ResponseSizeTooLarge", ""},
		{"odd", "Runtime.MarshalError", "not JSON serializable"},
	} {
		t.Run(c.what, func(t *testing.T) {
			e := shared.failure(t, "fails", `{"what":"`+c.what+`"}`)
			if e.ErrorType != c.errorType || !strings.Contains(e.ErrorMessage, c.message) {
				t.Errorf("%+v", e)
			}
			if resp := shared.invoke(t, "fails", `{"what":"ok"}`); resp.GetFunctionError() != "" {
				t.Errorf("the next invocation failed: %s", resp.GetPayload())
			}
		})
	}
	if e := shared.failure(t, "fails", `{"what":"raise"}`); len(e.StackTrace) == 0 || !strings.Contains(strings.Join(e.StackTrace, ""), "main.py") {
		t.Errorf("stack trace: %q", e.StackTrace)
	}
}

func TestBrokenModules(t *testing.T) {
	for _, c := range []struct{ name, source, handler, errorType string }{
		{"no-module", "def handler(e, c): return 1", "other.handler", "Runtime.ImportModuleError"},
		{"no-handler", "def handler(e, c): return 1", "main.other", "Runtime.HandlerNotFound"},
		{"no-dependency", "import pandas_of_the_future\ndef handler(e, c): return 1", "main.handler", "Runtime.ImportModuleError"},
		{"no-syntax", "def handler(e, c) return 1", "main.handler", "Runtime.UserCodeSyntaxError"},
		{"init-raises", "raise RuntimeError('early')\ndef handler(e, c): return 1", "main.handler", "RuntimeError"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := python(c.name, c.source)
			f.handler = c.handler
			shared.deploy(t, f)
			if e := shared.failure(t, c.name, `{}`); e.ErrorType != c.errorType || e.ErrorMessage == "" {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestSandboxIsReusedAndScaledOut(t *testing.T) {
	shared.deploy(t, python("reuse", `
import os, time, uuid
me = str(uuid.uuid4())
def handler(event, context):
    time.sleep(event.get("s", 0))
    return me
`))
	first := string(shared.invoke(t, "reuse", `{}`).GetPayload())
	for range 5 {
		if again := string(shared.invoke(t, "reuse", `{}`).GetPayload()); again != first {
			t.Fatalf("another sandbox answered: %s, %s", first, again)
		}
	}
	answers := make(chan string, 4)
	for range cap(answers) {
		go func() {
			resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "reuse", Payload: []byte(`{"s":1}`)})
			if err != nil {
				t.Error(err)
			}
			answers <- string(resp.GetPayload())
		}()
	}
	distinct := map[string]bool{}
	for range cap(answers) {
		distinct[<-answers] = true
	}
	if len(distinct) != cap(answers) {
		t.Errorf("%d sandboxes served %d invocations at once", len(distinct), cap(answers))
	}
}

func TestStreamedAnswer(t *testing.T) {
	shared.deploy(t, python("stream", `
import time
def handler(event, context):
    for i in range(3):
        yield "part %d\n" % i
        time.sleep(0.1)
`))
	s, err := shared.invocations().InvokeStream(t.Context(), &mayflyv1.InvokeStreamRequest{Invoke: &mayflyv1.InvokeRequest{Function: "stream"}})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	chunks := 0
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c := m.GetChunk(); c != nil {
			chunks++
			text.Write(c)
		}
	}
	if text.String() != "part 0\npart 1\npart 2\n" || chunks < 2 {
		t.Errorf("%d chunks: %q", chunks, text.String())
	}
}

func TestDryRunRunsNothing(t *testing.T) {
	shared.deploy(t, python("dry", "def handler(e, c): raise SystemExit(3)"))
	resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "dry", Type: mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN})
	if err != nil || resp.GetFunctionError() != "" || len(resp.GetPayload()) != 0 {
		t.Errorf("%v %v", resp, err)
	}
}

func TestVersionsAndAliases(t *testing.T) {
	shared.deploy(t, python("ver", "def handler(e, c): return 'one ' + c.function_version"))
	shared.mustCLI(t, "version", "publish", "ver")
	shared.mustCLI(t, "alias", "create", "ver", "live", "--version", "1")

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte("def handler(e, c): return 'two ' + c.function_version"), 0o644); err != nil {
		t.Fatal(err)
	}
	shared.mustCLI(t, "deploy", dir, "--name", "ver")
	for qualifier, want := range map[string]string{"": `"two $LATEST"`, "1": `"one 1"`, "live": `"one 1"`} {
		resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "ver", Qualifier: qualifier})
		if err != nil || string(resp.GetPayload()) != want {
			t.Errorf("qualifier %q: %s %v", qualifier, resp.GetPayload(), err)
		}
	}
	shared.mustCLI(t, "version", "publish", "ver")
	shared.mustCLI(t, "alias", "update", "ver", "live", "--version", "2", "--weight", "1=0.5")
	seen := map[string]int{}
	for range 60 {
		resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "ver:live"})
		if err != nil {
			t.Fatal(err)
		}
		seen[string(resp.GetPayload())]++
	}
	if len(seen) != 2 || seen[`"one 1"`] == 0 || seen[`"two 2"`] == 0 {
		t.Errorf("60 calls to weights 0.5/0.5 went to %v", seen)
	}
}

func TestReservedConcurrencyThrottles(t *testing.T) {
	shared.deploy(t, python("one-only", "import time\ndef handler(e, c):\n    time.sleep(1)\n    return 1"))
	shared.mustCLI(t, "function", "concurrency", "set", "one-only", "1")
	results := make(chan error, 3)
	for range cap(results) {
		go func() {
			_, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "one-only"})
			results <- err
		}()
	}
	var throttled, served int
	for range cap(results) {
		if err := <-results; err == nil {
			served++
		} else if reasonOf(err) == "FUNCTION_CONCURRENCY_EXCEEDED" {
			throttled++
		} else {
			t.Error(err)
		}
	}
	if served != 1 || throttled != 2 {
		t.Errorf("%d served, %d throttled", served, throttled)
	}
}

func TestBinaryPackagesAndLargeCode(t *testing.T) {
	dir := t.TempDir()
	blob := strings.Repeat(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7, 99, 3}, 999)), 6000)
	for name, content := range map[string]string{"main.py": "import os\ndef handler(e, c): return os.path.getsize('data.bin')", "data.bin": blob} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shared.mustCLI(t, "deploy", dir, "--name", "large", "--runtime", "python3.11", "--handler", "main.handler")
	t.Cleanup(func() { shared.cli("", "function", "delete", "large") })
	if got := string(shared.invoke(t, "large", "{}").GetPayload()); got != jsonNumber(len(blob)) {
		t.Errorf("%s, want %d", got, len(blob))
	}
}

func jsonNumber(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}
