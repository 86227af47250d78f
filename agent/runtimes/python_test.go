package runtimes

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// eachPython runs a test in every version of the language.
func eachPython(t *testing.T, test func(t *testing.T, runtime string)) {
	t.Helper()
	for _, runtime := range []string{"python3.11", "python3.13"} {
		t.Run(runtime, func(t *testing.T) { test(t, runtime) })
	}
}

func python(tb testing.TB, runtime, code string) *process {
	tb.Helper()
	return start(tb, runtime, map[string]string{"app.py": code}).mustLoad("app.handler")
}

func TestPythonHelloExample(t *testing.T) { eachPython(t, testPythonHelloExample) }

func testPythonHelloExample(t *testing.T, runtime string) {
	code, err := os.ReadFile("../../docs/examples/hello-python/hello_world.py")
	must(t, err)
	p := start(t, runtime, map[string]string{"hello_world.py": string(code)}).mustLoad("hello_world.hello_world")
	wantEqual(t, p.result(`{}`), `{"statusCode": 200, "body": "\"Hello World!\""}`)
	wantEqual(t, p.newLog(), "")
}

func TestPythonContextAndEnvironment(t *testing.T) { eachPython(t, testPythonContextAndEnvironment) }

func testPythonContextAndEnvironment(t *testing.T, runtime string) {
	p := start(t, runtime, map[string]string{"pkg/app.py": `
import os, time, sys
LOADED = os.environ["COLOR"]
def handler(event, context):
    left = context.get_remaining_time_in_millis()
    return [LOADED, os.getcwd(), os.getuid(), time.tzname[0], os.environ["_X_AMZN_TRACE_ID"], context.function_name,
            context.function_version, context.invoked_function_arn, context.memory_limit_in_mb, context.aws_request_id,
            context.log_group_name, context.log_stream_name, 20000 < left <= 30000, context.client_context.custom,
            context.client_context.client.app_title, context.identity.cognito_identity_id, sys.path[0], event]
`})
	typ, body := p.load("pkg/app.handler", map[string]string{"COLOR": "grün", "TZ": "Asia/Tokyo"})
	if typ != frame.TypeReady {
		t.Fatalf("%d %s", typ, body)
	}
	p.sendInvoke(frame.Invoke{
		RequestID: "r-7", TraceID: "Root=1-2-3", ClientContext: `{"custom":{"a":1},"client":{"app_title":"T"}}`,
		CognitoContext: `{"cognitoIdentityId":"id"}`,
	}, `{"ü":"日本"}`)
	typ, body = p.receive()
	wantEqual(t, typ, frame.TypeResult)
	want := `["grün", "/var/task", 1000, "JST", "Root=1-2-3", "fn", "$LATEST", "arn:aws:lambda:us-east-1:000000000000:function:fn", ` +
		`"128", "r-7", "/aws/lambda/fn", "2026/01/02/[$LATEST]abc", true, {"a": 1}, "T", "id", "/var/task", {"ü": "日本"}]`
	wantEqual(t, string(body), want)
}

func TestPythonInitErrors(t *testing.T) { eachPython(t, testPythonInitErrors) }

func testPythonInitErrors(t *testing.T, runtime string) {
	cases := []struct {
		name, handler, code string
		kind, message       string
	}{
		{"no module", "nope.handler", "", "Runtime.ImportModuleError", "Unable to import module 'nope': No module named 'nope'"},
		{"module of a module", "app.handler", "import numpy_is_not_here", "Runtime.ImportModuleError", "Unable to import module 'app': No module named 'numpy_is_not_here'"},
		{"no function", "app.handler", "x = 1", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'"},
		{"syntax", "app.handler", "def handler(:\n", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app': "},
		{"no dot", "app", "", "Runtime.MalformedHandlerName", "Bad handler 'app'"},
		{"built in", "sys.exit", "", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"},
		{"raises", "app.handler", "def f():\n    raise ValueError('broken')\nf()\n", "ValueError", "broken"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, runtime, map[string]string{"app.py": c.code})
			typ, body := p.load(c.handler, nil)
			e := decodeError(t, typ, frame.TypeInitError, body)
			wantEqual(t, e.Type, c.kind)
			wantContains(t, e.Message, c.message)
			wantEqual(t, p.wait(), 1)
			wantContains(t, p.newLog(), "[ERROR] "+c.kind+": "+c.message)
			for _, f := range e.StackTrace {
				if strings.Contains(f, "bootstrap.py") || strings.Contains(f, "importlib") {
					t.Errorf("frame of the platform: %s", f)
				}
			}
		})
	}
}

func TestPythonHandlerErrors(t *testing.T) { eachPython(t, testPythonHandlerErrors) }

func testPythonHandlerErrors(t *testing.T, runtime string) {
	p := python(t, runtime, `
import sys
class CustomException(Exception): pass
class Quiet(Exception):
    def __str__(self): raise RuntimeError()
def deep(n): return deep(n + 1)
def handler(event, context):
    print("before")
    if event == "raise":
        raise CustomException("some error occurred")
    if event == "quiet": raise Quiet()
    if event == "deep": deep(0)
    if event == "long": raise ValueError("x" * 20_000_000)
    if event == "set": return {1, 2}
    if event == "big": return "x" * 6291555
    if event == "nearly": return "x" * 6291554
    if event == "surrogate": return "\ud800"
    if event == "interrupt": raise KeyboardInterrupt()
    return "ok"
`)
	e := p.failure(`"raise"`)
	want := []string{"  File \"/var/task/app.py\", line 10, in handler\n    raise CustomException(\"some error occurred\")\n"}
	wantEqual(t, e.Error, frame.Error{Type: "CustomException", Message: "some error occurred", StackTrace: want})
	wantEqual(t, e.RequestID, "req-1")
	wantEqual(t, p.newLog(), "before\n[ERROR] CustomException: some error occurred\nTraceback (most recent call last):\n"+want[0])

	wantEqual(t, p.failure(`"quiet"`).Type, "Quiet")
	wantEqual(t, p.failure(`"deep"`).Type, "RecursionError")
	wantEqual(t, len(p.failure(`"long"`).Message) < 1<<20, true)
	e = p.failure(`"set"`)
	wantEqual(t, e.Type+": "+e.Message, "Runtime.MarshalError: Unable to marshal response: Object of type set is not JSON serializable")
	wantEqual(t, p.failure(`"big"`).Type, "Function.ResponseSizeTooLarge")
	wantEqual(t, len(p.result(`"nearly"`)), 6291556)
	wantEqual(t, p.result(`"surrogate"`), `"\ud800"`)
	wantEqual(t, p.failure(`"interrupt"`).Type, "KeyboardInterrupt")
	e = p.failure(`{`)
	wantEqual(t, e.Type, "Runtime.UnmarshalError")
	wantContains(t, e.Message, "Unable to unmarshal input: ")
	wantEqual(t, p.failure("\"\xff\"").Type, "Runtime.UnmarshalError")
	wantEqual(t, p.result(`1`), `"ok"`) // and it still works
}

func TestPythonValues(t *testing.T) { eachPython(t, testPythonValues) }

func testPythonValues(t *testing.T, runtime string) {
	p := python(t, runtime, `
import decimal
def handler(event, context):
    if event == "decimal": return decimal.Decimal("1.5")
    return event
`)
	for _, v := range []string{`null`, `true`, `"äöü 😀"`, `1.5`, `[1, {"a": []}]`, `{}`} {
		wantEqual(t, p.result(v), v)
	}
	wantEqual(t, p.result(`"decimal"`), "1.5")
	big := `"` + strings.Repeat("é", 3_000_000) + `"`
	wantEqual(t, p.result(big) == big, true)
}

func TestPythonLogging(t *testing.T) { eachPython(t, testPythonLogging) }

func testPythonLogging(t *testing.T, runtime string) {
	p := python(t, runtime, `
import logging
log = logging.getLogger()
log.setLevel("INFO")
log.warning("at init")
def handler(event, context):
    print("one"); print("two", end="")
    log.info("hello %s", "there")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("caught")
    import sys; sys.stderr.write("err")
`)
	init := p.newLog()
	wantContains(t, init, "[WARNING]\t", "Z\t\tat init\n")
	wantEqual(t, p.result(`1`), "null")
	log := p.newLog()
	wantContains(t, log, "one\ntwo[INFO]\t", "Z\treq-1\thello there\n", "[ERROR]\t", "Z\treq-1\tcaught\nTraceback (most recent call last):\n", "ZeroDivisionError", "err")
}

func TestPythonExit(t *testing.T) { eachPython(t, testPythonExit) }

func testPythonExit(t *testing.T, runtime string) {
	for code, want := range map[string]int{"sys.exit(3)": 3, "sys.exit()": 0, `sys.exit("bye")`: 1, "os._exit(7)": 7, "exit(4)": 4} {
		t.Run(code, func(t *testing.T) {
			p := python(t, runtime, `
import os, sys, threading, time, atexit
def handler(event, context):
    threading.Thread(target=time.sleep, args=(600,)).start()
    print("unfinished", end="")
    `+code)
			p.sendInvoke(frame.Invoke{}, "1")
			if _, _, err := frame.Read(p.conn); err == nil {
				t.Error("a process that exits must not answer")
			}
			wantEqual(t, p.wait(), want)
			if !strings.HasPrefix(code, "os.") {
				wantContains(t, p.newLog(), "unfinished")
			}
		})
	}
}

func TestPythonStream(t *testing.T) { eachPython(t, testPythonStream) }

func testPythonStream(t *testing.T, runtime string) {
	p := python(t, runtime, `
def handler(event, context):
    if event == "early": raise_first()
    if event == "http": yield {"statusCode": 201, "cookies": ["a=b"]}
    print("start")
    yield "ä"
    if event == "late": raise ValueError("midway")
    if event == "bad": yield 5
    yield b"bytes"
    yield bytearray(3 * 1024 * 1024)
    print("end", end="")
`)
	p.sendInvoke(frame.Invoke{Stream: true}, "1")
	_, data, end := p.stream()
	wantEqual(t, data == "äbytes"+strings.Repeat("\x00", 3<<20), true)
	wantEqual(t, len(end), 0)
	wantEqual(t, p.newLog(), "start\nend")
	p.sendInvoke(frame.Invoke{}, `"late"`)
	_, data, end = p.stream()
	wantEqual(t, data, "ä")
	e := decodeError(t, frame.TypeStreamEnd, frame.TypeStreamEnd, end)
	wantEqual(t, e.Type+e.Message, "ValueErrormidway")
	wantEqual(t, len(e.StackTrace), 1)
	p.sendInvoke(frame.Invoke{}, `"bad"`)
	_, _, end = p.stream()
	wantEqual(t, decodeError(t, frame.TypeStreamEnd, frame.TypeStreamEnd, end).Type, "Runtime.MarshalError")
	wantEqual(t, p.failure(`"early"`).Type, "NameError")
	p.sendInvoke(frame.Invoke{}, `"http"`)
	begin, data, _ := p.stream()
	wantEqual(t, begin.ContentType, "application/vnd.awslambda.http-integration-response")
	wantContains(t, data, `{"statusCode": 201, "cookies": ["a=b"]}`+strings.Repeat("\x00", 8)+"äbytes")
}

func TestPythonForkedChildDoesNotAnswer(t *testing.T) {
	eachPython(t, testPythonForkedChildDoesNotAnswer)
}

func testPythonForkedChildDoesNotAnswer(t *testing.T, runtime string) {
	p := python(t, runtime, `
import os
def handler(event, context):
    pid = os.fork()
    if pid == 0: return "child"
    os.waitpid(pid, 0)
    return "parent"
`)
	for range 3 {
		wantEqual(t, p.result("1"), `"parent"`)
	}
}

func TestPythonModules(t *testing.T) { eachPython(t, testPythonModules) }

func testPythonModules(t *testing.T, runtime string) {
	p := python(t, runtime, `
def handler(event, context):
    import json, sqlite3, ssl, ctypes, zoneinfo, boto3, urllib.request, asyncio, zlib, lzma, bz2
    con = sqlite3.connect(":memory:")
    tz = str(zoneinfo.ZoneInfo("Europe/Berlin"))
    s3 = boto3.client("s3", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
    ca = ssl.create_default_context()
    import subprocess
    sh = subprocess.run(["sh", "-c", "echo $((6*7)) | awk '{print $1}'"], capture_output=True, text=True).stdout
    import os
    hashes = [n for n in os.listdir("/etc/ssl/certs") if n.endswith(".0")]
    return [con.execute("select 1").fetchone()[0], tz, s3.meta.region_name, sh, len(hashes) > 100, ca.cert_store_stats()["x509_ca"] > 100,
            boto3.__file__, ctypes.sizeof(ctypes.c_int)]
`)
	wantEqual(t, p.result("1"), `[1, "Europe/Berlin", "eu-west-1", "42\n", true, true, "/usr/lib/python3/dist-packages/boto3/__init__.py", 4]`)
}

func TestPythonModuleNamedLikeAPreloadedOne(t *testing.T) {
	eachPython(t, testPythonModuleNamedLikeAPreloadedOne)
}

func testPythonModuleNamedLikeAPreloadedOne(t *testing.T, runtime string) {
	p := start(t, runtime, map[string]string{"uuid.py": "def handler(event, context): return 'mine'\n"}).mustLoad("uuid.handler")
	wantEqual(t, p.result("1"), `"mine"`)
}

func TestPythonShutdown(t *testing.T) { eachPython(t, testPythonShutdown) }

func testPythonShutdown(t *testing.T, runtime string) {
	p := python(t, runtime, "import atexit\natexit.register(print, 'bye')\ndef handler(e, c): pass\n")
	body, err := json.Marshal(frame.Shutdown{Reason: "spindown"})
	must(t, err)
	p.send(frame.Append(nil, frame.TypeShutdown, body))
	wantEqual(t, p.wait(), 0)
	wantEqual(t, p.newLog(), "bye\n")
}

func TestPythonFramesInPieces(t *testing.T) { eachPython(t, testPythonFramesInPieces) }

func testPythonFramesInPieces(t *testing.T, runtime string) {
	p := python(t, runtime, "def handler(e, c): return e\n")
	event := []byte(`{"n": 1}`)
	meta := []byte(`{"request_id":"r","deadline_ms":0,"arn":"a"}`)
	call := append(frame.AppendInvoke(nil, meta, len(event)), event...)
	for _, b := range call {
		p.send([]byte{b})
	}
	typ, body := p.receive()
	wantEqual(t, typ, frame.TypeResult)
	wantEqual(t, string(body), `{"n": 1}`)
	p.send(append(append([]byte{}, call...), call...)) // two at once
	p.receive()
	typ, _ = p.receive()
	wantEqual(t, typ, frame.TypeResult)
}

func TestPythonVendoredModules(t *testing.T) { eachPython(t, testPythonVendoredModules) }

func testPythonVendoredModules(t *testing.T, runtime string) {
	p := start(t, runtime, map[string]string{
		"app.py":    "import beside, one, two, both, boto3\ndef handler(e, c): return [beside.X, one.X, two.X, both.X, boto3.X]\n",
		"beside.py": "X = 'beside'\n", "python/one.py": "X = 'python'\n", "vendor/two/__init__.py": "X = 'vendor'\n",
		"python/both.py": "X = 'python'\n", "vendor/both.py": "X = 'vendor'\n", "vendor/boto3.py": "X = 'own boto3'\n",
	}).mustLoad("app.handler")
	wantEqual(t, p.result("1"), `["beside", "python", "vendor", "python", "own boto3"]`)
}
