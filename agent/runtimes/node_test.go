package runtimes

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// eachNode runs a test in every version of the language.
func eachNode(t *testing.T, test func(t *testing.T, runtime string)) {
	t.Helper()
	for _, runtime := range []string{"nodejs18", "nodejs20"} {
		t.Run(runtime, func(t *testing.T) { test(t, runtime) })
	}
}

func node(tb testing.TB, runtime, code string) *process {
	tb.Helper()
	return start(tb, runtime, map[string]string{"index.js": code}).mustLoad("index.handler")
}

func TestNodeHelloExample(t *testing.T) { eachNode(t, testNodeHelloExample) }

func testNodeHelloExample(t *testing.T, runtime string) {
	code, err := os.ReadFile("../../docs/examples/hello-node/index.mjs")
	must(t, err)
	p := start(t, runtime, map[string]string{"index.mjs": string(code)}).mustLoad("index.handler")
	wantEqual(t, p.result(`{}`), `{"statusCode":200,"body":"\"Hello World!\""}`)
}

func TestNodeContextAndEnvironment(t *testing.T) { eachNode(t, testNodeContextAndEnvironment) }

func testNodeContextAndEnvironment(t *testing.T, runtime string) {
	p := start(t, runtime, map[string]string{"lib/app.js": `
const color = process.env.COLOR;
exports.api = { get: async (event, context) => {
  const left = context.getRemainingTimeInMillis();
  return [color, process.cwd(), process.getuid(), new Date(0).getHours(), process.env._X_AMZN_TRACE_ID, context.functionName,
    context.functionVersion, context.invokedFunctionArn, context.memoryLimitInMB, context.awsRequestId, context.logGroupName,
    context.logStreamName, left > 20000 && left <= 30000, context.clientContext.custom, context.identity.cognitoIdentityId, event];
} };`})
	typ, body := p.load("lib/app.api.get", map[string]string{"COLOR": "grün", "TZ": "Asia/Tokyo"})
	if typ != frame.TypeReady {
		t.Fatalf("%d %s", typ, body)
	}
	p.sendInvoke(frame.Invoke{
		RequestID: "r-7", TraceID: "Root=1-2-3", ClientContext: `{"custom":{"a":1}}`, CognitoContext: `{"cognitoIdentityId":"id"}`,
	}, `{"ü":"日本"}`)
	typ, body = p.receive()
	wantEqual(t, typ, frame.TypeResult)
	wantEqual(t, string(body), `["grün","/var/task",1000,9,"Root=1-2-3","fn","$LATEST","arn:aws:lambda:us-east-1:000000000000:function:fn",`+
		`"128","r-7","/aws/lambda/fn","2026/01/02/[$LATEST]abc",true,{"a":1},"id",{"ü":"日本"}]`)
}

func TestNodeModuleForms(t *testing.T) { eachNode(t, testNodeModuleForms) }

func testNodeModuleForms(t *testing.T, runtime string) {
	answer := "handler = async () => 'here'"
	cases := []struct {
		name  string
		files map[string]string
	}{
		{"CommonJS", map[string]string{"index.js": "exports." + answer}},
		{"cjs", map[string]string{"index.cjs": "exports." + answer}},
		{"mjs with await", map[string]string{"index.mjs": "await null; export const " + answer}},
		{"default export", map[string]string{"index.mjs": "const " + answer + "; export default { handler }"}},
		{"type module", map[string]string{"package.json": `{"type":"module"}`, "index.js": "export const " + answer}},
		{"module in node_modules", map[string]string{"index.js": "exports.handler = require('dep')", "node_modules/dep/index.js": "module.exports = async () => 'here'"}},
		{"module in vendor", map[string]string{"index.js": "exports.handler = require('dep')", "vendor/dep/index.js": "module.exports = async () => 'here'"}},
		{"module in vendor/node_modules", map[string]string{"index.js": "exports.handler = require('dep')", "vendor/node_modules/dep.js": "module.exports = async () => 'here'"}},
		{"ES module in node_modules", map[string]string{
			"index.mjs": "export { handler } from 'dep';", "node_modules/dep/package.json": `{"type":"module","exports":"./main.js"}`, "node_modules/dep/main.js": "export const " + answer,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			wantEqual(t, start(t, runtime, c.files).mustLoad("index.handler").result("1"), `"here"`)
		})
	}
}

func TestNodeInitErrors(t *testing.T) { eachNode(t, testNodeInitErrors) }

func testNodeInitErrors(t *testing.T, runtime string) {
	cases := []struct {
		name, handler, file, code string
		kind, message             string
	}{
		{"no module", "nope.handler", "index.js", "", "Runtime.ImportModuleError", "Error: Cannot find module 'nope'"},
		{"module of a module", "index.handler", "index.js", "require('absent')", "Runtime.ImportModuleError", "Error: Cannot find module 'absent'"},
		{"module of an ES module", "index.handler", "index.mjs", "import 'absent'", "Runtime.ImportModuleError", "Cannot find package 'absent'"},
		{"no function", "index.handler", "index.js", "exports.x = 1", "Runtime.HandlerNotFound", "index.handler is undefined or not exported"},
		{"not a function", "index.handler", "index.js", "exports.handler = 1", "Runtime.HandlerNotFound", "index.handler is not a function"},
		{"syntax", "index.handler", "index.js", "exports.handler = (", "Runtime.UserCodeSyntaxError", "SyntaxError: "},
		{"no dot", "index", "index.js", "", "Runtime.MalformedHandlerName", "Bad handler 'index'"},
		{"throws", "index.handler", "index.js", "throw new RangeError('broken')", "RangeError", "broken"},
		{"rejects", "index.handler", "index.mjs", "await Promise.reject(new TypeError('no'))", "TypeError", "no"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, runtime, map[string]string{c.file: c.code})
			typ, body := p.load(c.handler, nil)
			e := decodeError(t, typ, frame.TypeInitError, body)
			wantEqual(t, e.Type, c.kind)
			wantContains(t, e.Message, c.message)
			wantEqual(t, p.wait(), 1)
			wantContains(t, p.newLog(), "\tundefined\tERROR\tUncaught Exception \t{")
		})
	}
}

func TestNodeHandlerErrors(t *testing.T) { eachNode(t, testNodeHandlerErrors) }

func testNodeHandlerErrors(t *testing.T, runtime string) {
	p := node(t, runtime, `
class CustomError extends Error { constructor(m) { super(m); this.name = 'CustomError'; this.code = 'E7'; } }
exports.handler = async (event) => {
  console.log('before');
  if (event === 'raise') throw new CustomError('some error occurred');
  if (event === 'string') throw 'text';
  if (event === 'null') throw null;
  if (event === 'long') throw new Error('x'.repeat(20e6));
  if (event === 'bigint') return 1n;
  if (event === 'big') return 'x'.repeat(6291555);
  if (event === 'nearly') return 'x'.repeat(6291554);
  return 'ok';
};`)
	e := p.failure(`"raise"`)
	wantEqual(t, e.Type+": "+e.Message, "CustomError: some error occurred")
	wantEqual(t, e.RequestID, "req-1")
	wantEqual(t, e.Trace[0], "CustomError: some error occurred")
	wantContains(t, e.StackTrace[1], "at exports.handler (/var/task/index.js:5:32)")
	log := p.newLog()
	wantContains(t, log, "Z\treq-1\tINFO\tbefore\n", "Z\treq-1\tERROR\tInvoke Error \t{", `"errorType":"CustomError"`, `"code":"E7"`, `"stack":["CustomError: some error`)
	e = p.failure(`"string"`)
	wantEqual(t, e.Type+": "+e.Message, "string: text")
	wantEqual(t, p.failure(`"null"`).Message, "null")
	wantEqual(t, len(p.failure(`"long"`).Message) < 1<<20, true)
	wantEqual(t, p.failure(`"bigint"`).Type, "Runtime.MarshalError")
	wantEqual(t, p.failure(`"big"`).Type, "Function.ResponseSizeTooLarge")
	wantEqual(t, len(p.result(`"nearly"`)), 6291556)
	wantEqual(t, p.failure(`{`).Type, "Runtime.UnmarshalError")
	wantEqual(t, p.result("1"), `"ok"`)
}

func TestNodeCallbacks(t *testing.T) { eachNode(t, testNodeCallbacks) }

func testNodeCallbacks(t *testing.T, runtime string) {
	p := node(t, runtime, `
let late = '';
exports.handler = (event, context, callback) => {
  if (event === 'wait') { setTimeout(() => { late = 'done'; }, 50); callback(null, 'waited'); return; }
  if (event === 'late') { callback(null, late); return; }
  if (event === 'now') { context.callbackWaitsForEmptyEventLoop = false; setInterval(() => {}, 1000).unref(); setTimeout(() => {}, 600000); callback(null, 'now'); return; }
  if (event === 'error') { callback(new RangeError('bad')); return; }
  if (event === 'succeed') { setTimeout(() => context.succeed({ a: 1 }), 5); return; }
  if (event === 'fail') { context.fail('why'); return; }
  if (event === 'done') { context.done(null, 'done'); return; }
  if (event === 'sync throw') throw new Error('thrown');
};`)
	wantEqual(t, p.result(`"wait"`), `"waited"`)
	wantEqual(t, p.result(`"late"`), `"done"`)
	wantEqual(t, p.failure(`"error"`).Type, "RangeError")
	wantEqual(t, p.result(`"succeed"`), `{"a":1}`)
	e := p.failure(`"fail"`)
	wantEqual(t, e.Type+e.Message, "stringwhy")
	wantEqual(t, p.result(`"done"`), `"done"`)
	wantEqual(t, p.failure(`"sync throw"`).Message, "thrown")
	wantEqual(t, p.result(`"nothing called back"`), "null")
	wantEqual(t, p.result(`"now"`), `"now"`)
}

func TestNodePromiseThatNeverSettles(t *testing.T) { eachNode(t, testNodePromiseThatNeverSettles) }

func testNodePromiseThatNeverSettles(t *testing.T, runtime string) {
	p := node(t, runtime, `exports.handler = (event) => new Promise(() => {});`)
	wantEqual(t, p.result("1"), "null")
	wantEqual(t, p.result("1"), "null")
}

func TestNodeStreams(t *testing.T) { eachNode(t, testNodeStreams) }

func testNodeStreams(t *testing.T, runtime string) {
	p := node(t, runtime, `
const { pipeline } = require('stream/promises');
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event === 'early') throw new Error('early');
  if (event === 'http') stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { a: 'b' } });
  else stream.setContentType('text/plain');
  stream.write('one,');
  if (event === 'late') { await new Promise((r) => setTimeout(r, 5)); throw new RangeError('late'); }
  if (event === 'hang') return new Promise(() => {});
  if (event === 'big') await pipeline(async function* () { for (let i = 0; i < 3; i++) yield Buffer.alloc(3 << 20, 'x'); }, stream);
  else { stream.write(context.awsRequestId); stream.end(); }
  console.log('end');
});`)
	p.sendInvoke(frame.Invoke{Stream: true}, "1")
	begin, data, end := p.stream()
	wantEqual(t, begin.ContentType+"|"+data+"|"+string(end), "text/plain|one,req-1|")
	wantContains(t, p.newLog(), "\tINFO\tend\n")
	p.sendInvoke(frame.Invoke{}, `"http"`)
	begin, data, _ = p.stream()
	wantEqual(t, begin.ContentType, "application/vnd.awslambda.http-integration-response")
	wantEqual(t, data, `{"statusCode":201,"headers":{"a":"b"}}`+strings.Repeat("\x00", 8)+"one,req-1")
	p.sendInvoke(frame.Invoke{}, `"big"`)
	_, data, end = p.stream()
	wantEqual(t, data == "one,"+strings.Repeat("x", 9<<20), true)
	wantEqual(t, len(end), 0)
	wantEqual(t, p.failure(`"early"`).Message, "early")
	p.sendInvoke(frame.Invoke{}, `"late"`)
	_, data, end = p.stream()
	wantEqual(t, data, "one,")
	wantEqual(t, decodeError(t, frame.TypeStreamEnd, frame.TypeStreamEnd, end).Type, "RangeError")
	p.sendInvoke(frame.Invoke{}, `"hang"`)
	_, data, _ = p.stream()
	wantEqual(t, data, "one,")
	p.sendInvoke(frame.Invoke{}, "1") // and it still works
	_, data, _ = p.stream()
	wantEqual(t, data, "one,req-1")
}

func TestNodeUncaught(t *testing.T) { eachNode(t, testNodeUncaught) }

func testNodeUncaught(t *testing.T, runtime string) {
	cases := []struct {
		code, kind, message, title string
		status                     int
	}{
		{"setTimeout(() => { throw new RangeError('later'); }, 1);", "RangeError", "later", "Uncaught Exception", 129},
		{"Promise.reject(new Error('nobody cares'));", "Runtime.UnhandledPromiseRejection", "nobody cares", "Unhandled Promise Rejection", 128},
	}
	for _, c := range cases {
		t.Run(c.kind, func(t *testing.T) {
			p := node(t, runtime, `exports.handler = async () => { `+c.code+` await new Promise((r) => setTimeout(r, 60000)); };`)
			e := p.failure("1")
			wantEqual(t, e.Type, c.kind)
			wantContains(t, e.Message, c.message)
			wantEqual(t, p.wait(), c.status)
			wantContains(t, p.newLog(), "\treq-1\tERROR\t"+c.title+" \t{")
		})
	}
}

func TestNodeExitAndShutdown(t *testing.T) { eachNode(t, testNodeExitAndShutdown) }

func testNodeExitAndShutdown(t *testing.T, runtime string) {
	p := node(t, runtime, `exports.handler = async () => { process.stdout.write('bye'); process.exit(5); };`)
	p.sendInvoke(frame.Invoke{}, "1")
	wantEqual(t, p.wait(), 5)
	wantEqual(t, p.newLog(), "bye")

	p = node(t, runtime, `exports.handler = async () => {}; setInterval(() => {}, 1000);`)
	body, err := json.Marshal(frame.Shutdown{Reason: "spindown"})
	must(t, err)
	p.send(frame.Append(nil, frame.TypeShutdown, body))
	wantEqual(t, p.wait(), 0)
}

func TestNodeLogLevels(t *testing.T) { eachNode(t, testNodeLogLevels) }

func testNodeLogLevels(t *testing.T, runtime string) {
	p := node(t, runtime, `exports.handler = async () => {
  console.log({ a: [1] }); console.info('i %d', 1); console.warn('w'); console.error('e'); console.debug('d'); console.log('x'.repeat(200000));
};`)
	p.result("1")
	log := p.newLog()
	wantContains(t, log, "\tINFO\t{ a: [ 1 ] }\n", "\tINFO\ti 1\n", "\tWARN\tw\n", "\tERROR\te\n", "\tDEBUG\td\n", "\tINFO\t"+strings.Repeat("x", 200000)+"\n")
}

func TestNodeFramesInPieces(t *testing.T) { eachNode(t, testNodeFramesInPieces) }

func testNodeFramesInPieces(t *testing.T, runtime string) {
	p := node(t, runtime, "exports.handler = async (e) => e;")
	event := []byte(`{"n":1}`)
	meta := []byte(`{"request_id":"r","deadline_ms":0,"arn":"a"}`)
	for _, b := range append(frame.AppendInvoke(nil, meta, len(event)), event...) {
		p.send([]byte{b})
	}
	typ, body := p.receive()
	wantEqual(t, typ, frame.TypeResult)
	wantEqual(t, string(body), `{"n":1}`)
	big := `"` + strings.Repeat("é", 3_000_000) + `"`
	wantEqual(t, p.result(big) == big, true)
}

func TestNodeGenerators(t *testing.T) { eachNode(t, testNodeGenerators) }

func testNodeGenerators(t *testing.T, runtime string) {
	p := start(t, runtime, map[string]string{"index.mjs": `
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
export async function* handler(event, context) {
  if (event === 'early') throw new Error('early');
  if (event === 'empty') return;
  if (event === 'http') yield { statusCode: 201, headers: { a: 'b' } };
  yield 'ä,';
  await sleep(5);
  if (event === 'late') throw new RangeError('late');
  if (event === 'bad') yield 5;
  if (event === 'big') for (let i = 0; i < 3; i++) yield Buffer.alloc(3 << 20, 'x');
  yield new Uint8Array([98]);
  console.log('end');
}
`})
	p.mustLoad("index.handler")
	p.sendInvoke(frame.Invoke{Stream: true}, "1")
	begin, data, end := p.stream()
	wantEqual(t, begin.ContentType+"|"+data+"|"+string(end), "|ä,b|")
	wantContains(t, p.newLog(), "\tINFO\tend\n")
	p.sendInvoke(frame.Invoke{}, `"http"`)
	begin, data, _ = p.stream()
	wantEqual(t, begin.ContentType, "application/vnd.awslambda.http-integration-response")
	wantEqual(t, data, `{"statusCode":201,"headers":{"a":"b"}}`+strings.Repeat("\x00", 8)+"ä,b")
	p.sendInvoke(frame.Invoke{}, `"big"`)
	_, data, _ = p.stream()
	wantEqual(t, data == "ä,"+strings.Repeat("x", 9<<20)+"b", true)
	p.sendInvoke(frame.Invoke{}, `"empty"`)
	_, data, end = p.stream()
	wantEqual(t, data+string(end), "")
	wantEqual(t, p.failure(`"early"`).Message, "early")
	for event, kind := range map[string]string{`"late"`: "RangeError", `"bad"`: "Runtime.MarshalError"} {
		p.sendInvoke(frame.Invoke{}, event)
		_, data, end = p.stream()
		wantEqual(t, data, "ä,")
		wantEqual(t, decodeError(t, frame.TypeStreamEnd, frame.TypeStreamEnd, end).Type, kind)
	}
	for _, handler := range []string{"index.sync", "index.wrapped"} {
		p := start(t, runtime, map[string]string{"index.js": "exports.sync = function* () { yield 'a'; yield 'b'; }; exports.wrapped = async () => exports.sync();"}).mustLoad(handler)
		p.sendInvoke(frame.Invoke{}, "1")
		_, data, _ = p.stream()
		wantEqual(t, data, "ab")
	}
}
