package runtimes

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// javac compiles sources, by file name, with the image's own compiler and returns the class files.
func javac(tb testing.TB, sources map[string]string) map[string]string {
	tb.Helper()
	layer := map[string]string{}
	var names []string
	for name, text := range sources {
		layer["tmp/"+name] = text
		names = append(names, "/tmp/"+name)
	}
	command := append(strings.Fields("/usr/bin/java -m jdk.compiler/com.sun.tools.javac.Main -encoding UTF-8 -proc:none -d /tmp/out"), names...)
	cmd, home := overImage(tb, testImage(tb, "java17"), "0:0", layer, command...)
	if text, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, text)
	}
	classes := map[string]string{}
	out := os.DirFS(filepath.Join(home, "up/tmp/out"))
	must(tb, fs.WalkDir(out, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(out, path)
		classes[path] = string(b)
		return err
	}))
	return classes
}

// jar packs files.
func jar(tb testing.TB, files map[string]string) string {
	tb.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, text := range files {
		f, err := w.Create(name)
		must(tb, err)
		_, err = f.Write([]byte(text))
		must(tb, err)
	}
	must(tb, w.Close())
	return b.String()
}

// java starts a function of class app.Main with this body.
func java(tb testing.TB, body string) *process {
	tb.Helper()
	return start(tb, "java17", javac(tb, map[string]string{"Main.java": "package app;\nimport java.io.*; import java.util.*;\npublic class Main {\n" + body + "\n}\n"}))
}

func TestJavaHelloExample(t *testing.T) {
	code, err := os.ReadFile("../../docs/examples/hello-java/example/Hello.java")
	must(t, err)
	p := start(t, "java17", javac(t, map[string]string{"Hello.java": string(code)})).mustLoad("example.Hello::handle")
	wantEqual(t, p.result(`{}`), `{"greeting":"Hello from fn"}`)
	wantEqual(t, p.newLog(), "")
}

func TestJavaContextAndEnvironment(t *testing.T) {
	p := java(t, `
static final String COLOR = System.getenv("COLOR");
public interface Client { String getAppTitle(); }
public interface ClientContext { Client getClient(); Map<String, Object> getCustom(); Map<String, String> getEnvironment(); }
public interface Identity { String getIdentityId(); String getIdentityPoolId(); }
public interface Logger { void log(String text); void log(byte[] text); }
public interface Context {
  String getAwsRequestId(); String getLogGroupName(); String getLogStreamName(); String getFunctionName(); String getFunctionVersion();
  String getInvokedFunctionArn(); int getRemainingTimeInMillis(); int getMemoryLimitInMB(); Identity getIdentity(); ClientContext getClientContext();
  Logger getLogger(); Object getSomethingNew(); default String getMore() { return "more " + getFunctionName(); }
}
public Object handle(Map<String, Object> event, Context c) throws Exception {
  c.getLogger().log("logged"); c.getLogger().log("bytes\n".getBytes());
  int left = c.getRemainingTimeInMillis();
  ProcessBuilder sh = new ProcessBuilder("sh", "-c", "echo $COLOR"); sh.environment();
  String child = new String(sh.start().getInputStream().readAllBytes(), "UTF-8").trim();
  return Arrays.asList(COLOR, child, System.getProperty("user.dir"), TimeZone.getDefault().getID(), c.getFunctionName(), c.getFunctionVersion(),
    c.getInvokedFunctionArn(), c.getMemoryLimitInMB(), c.getAwsRequestId(), c.getLogGroupName(), c.getLogStreamName(), left > 20000 && left <= 30000,
    c.getClientContext().getCustom(), c.getClientContext().getClient().getAppTitle(), c.getClientContext().getEnvironment(), c.getIdentity().getIdentityId(),
    c.getSomethingNew(), c.getMore(), System.getProperty("com.amazonaws.xray.traceHeader"), event);
}`)
	typ, body := p.load("app.Main::handle", map[string]string{"COLOR": "grün", "TZ": "Asia/Tokyo"})
	if typ != frame.TypeReady {
		t.Fatalf("%d %s", typ, body)
	}
	p.sendInvoke(frame.Invoke{
		RequestID: "r-7", TraceID: "Root=1-2-3", ClientContext: `{"custom":{"a":1},"client":{"app_title":"T"},"env":{"b":"c"}}`,
		CognitoContext: `{"cognitoIdentityId":"id"}`,
	}, `{"ü":"日本"}`)
	typ, body = p.receive()
	wantEqual(t, typ, frame.TypeResult)
	wantEqual(t, string(body), `["grün","grün","/","Asia/Tokyo","fn","$LATEST","arn:aws:lambda:us-east-1:000000000000:function:fn",`+
		`128,"r-7","/aws/lambda/fn","2026/01/02/[$LATEST]abc",true,{"a":1},"T",{"b":"c"},"id",null,"more fn","Root=1-2-3",{"ü":"日本"}]`)
	wantEqual(t, p.newLog(), "logged\nbytes\n")
}

func TestJavaSignatures(t *testing.T) {
	p := javac(t, map[string]string{"Main.java": `
package app;
import java.io.*;
import java.util.*;
import java.math.*;
public class Main {
  public enum Size { SMALL, LARGE }
  public record Item(String name, int count, List<Double> prices) { }
  public static class Order {
    private String id; private List<Item> items; private boolean paid; public Size size; public byte[] data;
    public String getId() { return id; } public void setId(String v) { id = v; }
    public List<Item> getItems() { return items; } public void setItems(List<Item> v) { items = v; }
    public boolean isPaid() { return paid; } public void setPaid(boolean v) { paid = v; }
  }
  public Map<String, Object> map(Map<String, Object> e, Map<String, Object> context) { return Map.of("x", e.get("x"), "id", context.get("awsRequestId")); }
  public String string(String s) { return s + "!"; }
  public int number(int n) { return n + 1; }
  public long[] longs(List<Long> all) { return all.stream().mapToLong(Long::longValue).toArray(); }
  public static Order bean(Order o) { o.setId(o.getId() + "2"); return o; }
  public Object any(Object o) { return o; }
  public Object nothing() { return null; }
  public void none(String s) { }
  public void streams(InputStream in, OutputStream out) throws IOException { out.write("raw:".getBytes()); in.transferTo(out); }
  public void all(InputStream in, OutputStream out, Map<String, Object> context) throws IOException { out.write(context.get("functionName").toString().getBytes()); }
  public Object over(String s) { return "one"; }
  public Object over(String s, Map<String, Object> context) { return "two"; }
  public Object wide(Map<String, Object> m) { return new Object[] { 'c', 1.5f, Double.NaN, new BigDecimal("1.10"), new BigInteger("12345678901234567890"),
    Optional.of("o"), Optional.empty(), Size.SMALL, new int[][] {{1}}, "\u0001\"\\\ud800", new Date(5), java.time.LocalDate.of(2026, 1, 2) }; }
}`})
	for _, c := range []struct{ method, event, want string }{
		{"map", `{"x":[1,{"y":null}]}`, ""},
		{"string", `"ä\u00f6\n😀"`, `"äö\n😀!"`},
		{"string", `5`, `"5!"`},
		{"number", `41`, `42`},
		{"longs", `[1, 9007199254740993]`, `[1,9007199254740993]`},
		{
			"bean", `{"id":"a","paid":true,"size":"LARGE","data":"AQI=","unknown":{},"items":[{"name":"n","count":2,"prices":[1,2.5]}]}`,
			`{"size":"LARGE","data":"AQI=","id":"a2","items":[{"name":"n","count":2,"prices":[1.0,2.5]}],"paid":true}`,
		},
		{"any", `{"a":[1,12345678901,123456789012345678901,1.5,true,null,"s"],"b":{}}`, `{"a":[1,12345678901,123456789012345678901,1.5,true,null,"s"],"b":{}}`},
		{"nothing", `{}`, `null`},
		{"none", `"x"`, `null`},
		{"streams", `{"a": 1}`, `raw:{"a": 1}`},
		{"all", `1`, `fn`},
		{"over", `"x"`, `"two"`},
		{"wide", `{}`, `["c",1.5,"NaN",1.10,12345678901234567890,"o",null,"SMALL",[[1]],"\u0001\"\\\ud800",5,"2026-01-02"]`},
	} {
		t.Run(c.method, func(t *testing.T) {
			got := start(t, "java17", p).mustLoad("app.Main::" + c.method).result(c.event)
			if c.want == "" {
				var answer map[string]any
				must(t, json.Unmarshal([]byte(got), &answer))
				wantEqual(t, answer, map[string]any{"id": "req-1", "x": []any{1.0, map[string]any{"y": nil}}})
				return
			}
			wantEqual(t, got, c.want)
		})
	}
}

// What a package with the vendor's interfaces looks like: they are in its lib folder, or in the package itself.
func TestJavaVendorInterfaces(t *testing.T) {
	const vendor = "com/amazonaws/services/lambda/runtime/"
	all := javac(t, map[string]string{
		"Context.java":              "package com.amazonaws.services.lambda.runtime; public interface Context { String getAwsRequestId(); LambdaLogger getLogger(); int getRemainingTimeInMillis(); }",
		"LambdaLogger.java":         "package com.amazonaws.services.lambda.runtime; public interface LambdaLogger { void log(String m); void log(byte[] m); default void log(String m, int level) { log(m); } }",
		"RequestHandler.java":       "package com.amazonaws.services.lambda.runtime; public interface RequestHandler<I, O> { O handleRequest(I input, Context context); }",
		"RequestStreamHandler.java": "package com.amazonaws.services.lambda.runtime; import java.io.*; public interface RequestStreamHandler { void handleRequest(InputStream in, OutputStream out, Context context) throws IOException; }",
		"Typed.java": `package app; import com.amazonaws.services.lambda.runtime.*; import java.util.*;
public class Typed implements RequestHandler<Typed.In, Map<String, Object>> {
  public static class In { private int n; public void setN(int v) { n = v; } }
  @Override public Map<String, Object> handleRequest(In in, Context c) { c.getLogger().log("typed", 1); return Map.of("n", in.n * 2); }
}`,
		"Streamed.java": `package app; import com.amazonaws.services.lambda.runtime.*; import java.io.*;
public class Streamed implements RequestStreamHandler {
  @Override public void handleRequest(InputStream in, OutputStream out, Context c) throws IOException { in.transferTo(out); out.write(c.getAwsRequestId().getBytes()); }
}`,
		"Only.java": "package app; import com.amazonaws.services.lambda.runtime.*; public class Only { public String run(Context c) { return c.getAwsRequestId(); } }",
	})
	api, own := map[string]string{}, map[string]string{}
	for name, class := range all {
		if strings.HasPrefix(name, vendor) {
			api[name] = class
		} else {
			own[name] = class
		}
	}
	own["lib/aws-lambda-java-core.jar"] = jar(t, api)
	for handler, want := range map[string]string{"app.Typed": `{"n":8}`, "app.Typed::handleRequest": `{"n":8}`, "app.Streamed": `{"n":4}req-1`, "app.Only::run": `"req-1"`} {
		t.Run(handler, func(t *testing.T) {
			wantEqual(t, start(t, "java17", own).mustLoad(handler).result(`{"n":4}`), want)
		})
	}
	t.Run("one jar", func(t *testing.T) {
		p := start(t, "java17", map[string]string{"app.jar": jar(t, all)}).mustLoad("app.Typed")
		wantEqual(t, p.result(`{"n":4}`), `{"n":8}`)
		wantEqual(t, p.newLog(), "typed\n")
	})
}

func TestJavaInitErrors(t *testing.T) {
	classes := javac(t, map[string]string{"Main.java": `package app;
public class Main {
  public static class Static { static { boom(); } static void boom() { throw new IllegalStateException("early"); } public String handle(String s) { return s; } }
  public static class Built { public Built() throws java.io.IOException { throw new java.io.IOException("no disk"); } public String handle(String s) { return s; } }
  public static class Closed { private Closed() { } public String handle(String s) { return s; } }
  public static class Missing { Gone gone = new Gone(); public String handle(String s) { return s; } }
  static class Gone { }
  String hidden(String s) { return s; }
  public String many(String a, String b) { return a; }
}`})
	delete(classes, "app/Main$Gone.class")
	for _, c := range []struct{ handler, kind, message string }{
		{"app.Absent::handle", "java.lang.ClassNotFoundException", "Class not found: app.Absent"},
		{"app.Main::absent", "java.lang.Exception", "No public method named absent with appropriate method signature found on class app.Main"},
		{"app.Main::hidden", "java.lang.Exception", "No public method named hidden"},
		{"app.Main::many", "java.lang.Exception", "No public method named many"},
		{"app.Main", "java.lang.Exception", "No public method named handleRequest"},
		{"app.Main::", "Runtime.MalformedHandlerName", "Bad handler 'app.Main::'"},
		{"mayfly.Bootstrap::main", "java.lang.ClassNotFoundException", "Class not found: mayfly.Bootstrap"},
		{"app.Main$Static::handle", "java.lang.IllegalStateException", "early"},
		{"app.Main$Built::handle", "java.io.IOException", "no disk"},
		{"app.Main$Closed::handle", "java.lang.Exception", "has no public zero-argument constructor"},
		{"app.Main$Missing::handle", "java.lang.NoClassDefFoundError", "app/Main$Gone"},
	} {
		t.Run(c.handler, func(t *testing.T) {
			p := start(t, "java17", classes)
			typ, body := p.load(c.handler, nil)
			e := decodeError(t, typ, frame.TypeInitError, body)
			wantEqual(t, e.Type, c.kind)
			wantContains(t, e.Message, c.message)
			wantEqual(t, p.wait(), 1)
			wantContains(t, p.newLog(), "[ERROR] "+c.kind+": ")
		})
	}
}

func TestJavaHandlerErrors(t *testing.T) {
	p := java(t, `
static class Custom extends RuntimeException { Custom(String m, Throwable cause) { super(m, cause); } }
static class Self { public Self getSelf() { return this; } }
static int deep(int n) { return deep(n + 1) + 1; }
public Object handle(String event) throws Exception {
  System.out.println("before");
  switch (event) {
    case "raise": throw new Custom("some error occurred", new IOException("cause"));
    case "deep": return deep(0);
    case "long": throw new Exception("x".repeat(8_000_000));
    case "null": throw new NullPointerException();
    case "self": return new Self();
    case "big": return "x".repeat(6291555);
    case "nearly": return "x".repeat(6291554);
    case "memory": return new long[1 << 28];
    default: return "ok";
  }
}`).mustLoad("app.Main::handle")
	typ, body := p.invoke(`"raise"`)
	var e struct {
		functionError
		Cause functionError `json:"cause"`
	}
	wantEqual(t, typ, frame.TypeError)
	must(t, json.Unmarshal(body, &e))
	trace := []string{"app.Main.handle(Main.java:11)"}
	wantEqual(t, e.Error, frame.Error{Type: "app.Main$Custom", Message: "some error occurred", StackTrace: trace})
	wantEqual(t, e.RequestID, "req-1")
	wantEqual(t, e.Cause.Error, frame.Error{Type: "java.io.IOException", Message: "cause", StackTrace: trace})
	wantEqual(t, p.newLog(), "before\n[ERROR] app.Main$Custom: some error occurred\n\tat "+trace[0]+"\nCaused by: java.io.IOException: cause\n\tat "+trace[0]+"\n")
	for event, want := range map[string]string{
		`"deep"`: "java.lang.StackOverflowError", `"null"`: "java.lang.NullPointerException", `"self"`: "java.lang.RuntimeException",
		`"big"`: "Function.ResponseSizeTooLarge", `"memory"`: "java.lang.OutOfMemoryError", `{`: "java.lang.RuntimeException", `{"a":1}`: "java.lang.RuntimeException",
		"\"\x01\"": "java.lang.RuntimeException", `[01]`: "java.lang.RuntimeException", `1 2`: "java.lang.RuntimeException", strings.Repeat("[", 600): "java.lang.RuntimeException",
	} {
		wantEqual(t, event[:min(len(event), 10)]+p.failure(event).Type, event[:min(len(event), 10)]+want)
	}
	wantEqual(t, p.failure(`{"a":1}`).Message, "An error occurred during JSON parsing")
	wantEqual(t, len(p.failure(`"long"`).Message) < 1<<20, true)
	wantEqual(t, len(p.result(`"nearly"`)), 6291556)
	wantEqual(t, p.result(`"x"`), `"ok"`) // and it still works
}

func TestJavaExitAndShutdown(t *testing.T) {
	const body = `
static { Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("bye"))); }
public Object handle(String event) {
  new Thread(() -> { try { Thread.sleep(600000); } catch (InterruptedException e) { } }).start();
  if (event.equals("exit")) System.exit(3);
  return event;
}`
	p := java(t, body).mustLoad("app.Main::handle")
	p.sendInvoke(frame.Invoke{}, `"exit"`)
	wantEqual(t, p.wait(), 3)
	wantEqual(t, p.newLog(), "bye\n")
	p = java(t, body).mustLoad("app.Main::handle")
	wantEqual(t, p.result(`"stay"`), `"stay"`)
	p.send(frame.Append(nil, frame.TypeShutdown, []byte(`{"reason":"spindown"}`)))
	wantEqual(t, p.wait(), 0)
	wantEqual(t, p.newLog(), "bye\n")
}

func TestJavaFramesInPieces(t *testing.T) {
	p := java(t, "public Object handle(Object o) { return o; }").mustLoad("app.Main::handle")
	event := []byte(`{"n":1}`)
	call := append(frame.AppendInvoke(nil, []byte(`{"request_id":"r","deadline_ms":0,"arn":"a"}`), len(event)), event...)
	for _, b := range call {
		p.send([]byte{b})
	}
	_, body := p.receive()
	wantEqual(t, string(body), `{"n":1}`)
	p.send(append(append([]byte{}, call...), call...)) // two at once
	p.receive()
	typ, _ := p.receive()
	wantEqual(t, typ, frame.TypeResult)
	big := `"` + strings.Repeat("é", 3_000_000) + `"`
	wantEqual(t, p.result(big) == big, true)
}

func TestJavaPlatform(t *testing.T) {
	p := java(t, `
public Object handle(Object o) throws Exception {
  var trust = javax.net.ssl.TrustManagerFactory.getInstance(javax.net.ssl.TrustManagerFactory.getDefaultAlgorithm());
  trust.init((java.security.KeyStore) null);
  int cas = ((javax.net.ssl.X509TrustManager) trust.getTrustManagers()[0]).getAcceptedIssuers().length;
  var store = java.security.KeyStore.getInstance(new File("/etc/ssl/certs/java/cacerts"), "changeit".toCharArray());
  javax.net.ssl.SSLContext.getDefault();
  java.net.http.HttpClient.newHttpClient();
  return List.of(cas > 100, store.size() == cas, java.time.ZoneId.of("Europe/Berlin").getId(), System.getProperty("file.encoding"),
    Runtime.getRuntime().maxMemory() >> 20 <= 64, new File("/tmp/hsperfdata_sandbox").exists());
}`).mustLoad("app.Main::handle")
	wantEqual(t, p.result("1"), `[true,true,"Europe/Berlin","UTF-8",true,false]`)
}
