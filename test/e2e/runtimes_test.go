package e2e

import (
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// language is how the functions of TestRuntimes look in one language. The good one answers with event.x, the request
// id, the function's name, version and memory, GREETING, and whether the time left is over 0; fails on event.fail.
type language struct {
	handler  string
	files    map[string]string
	failure  functionError
	inTrace  string
	noMethod string
	// missing are types of errors: of a handler, of a module that the function needs, of the function's own module.
	missing [3]string
	broken  map[string]string
	noFile  string
}

func pythonLanguage() language {
	return language{
		handler: "main.handler",
		files: map[string]string{"main.py": `
import os, vendored, packed
def handler(event, context):
    print("seen", event["x"])
    if event.get("fail"): raise LookupError("no " + event["fail"])
    return [event["x"], context.aws_request_id, context.function_name, context.function_version, int(context.memory_limit_in_mb),
            os.environ["GREETING"], context.get_remaining_time_in_millis() > 0, vendored.X + packed.X]
`, "vendor/vendored.py": "X = 'v'\n", "python/packed.py": "X = 'p'\n"},
		failure: functionError{ErrorType: "LookupError", ErrorMessage: "no luck"}, inTrace: "main.py", noMethod: "main.other",
		missing: [3]string{"Runtime.HandlerNotFound", "Runtime.ImportModuleError", "Runtime.ImportModuleError"},
		broken:  map[string]string{"main.py": "import not_there\ndef handler(e, c): pass\n"}, noFile: "other.handler",
	}
}

func nodeLanguage() language {
	return language{
		handler: "index.handler",
		files: map[string]string{"package.json": `{"type":"module"}`, "index.js": `
import dep from 'dep';
import { createRequire } from 'module';
const vendored = createRequire(import.meta.url)('vendored');
export const handler = async (event, context) => {
  console.log("seen", event.x);
  if (event.fail) throw new TypeError("no " + event.fail);
  return [event.x, context.awsRequestId, context.functionName, context.functionVersion, Number(context.memoryLimitInMB),
    process.env.GREETING, context.getRemainingTimeInMillis() > 0, vendored + dep];
};`, "vendor/vendored/index.cjs": "module.exports = 'v';", "vendor/vendored/package.json": `{"main":"index.cjs"}`, "node_modules/dep/index.js": "module.exports = 'p';"},
		failure: functionError{ErrorType: "TypeError", ErrorMessage: "no luck"}, inTrace: "index.js", noMethod: "index.other",
		missing: [3]string{"Runtime.HandlerNotFound", "Runtime.ImportModuleError", "Runtime.ImportModuleError"},
		broken:  map[string]string{"index.js": "require('not-there'); exports.handler = async () => 1;"}, noFile: "other.handler",
	}
}

func rubyLanguage() language {
	return language{
		handler: "main.Shop.handler",
		files: map[string]string{"main.rb": `
require "vendored"
require "packed"
class Shop
  def self.handler(event:, context:)
    puts "seen #{event["x"]}"
    raise KeyError, "no #{event["fail"]}" if event["fail"]
    [event["x"], context.aws_request_id, context.function_name, context.function_version, context.memory_limit_in_mb,
     ENV["GREETING"], context.get_remaining_time_in_millis > 0, VENDORED + PACKED]
  end
end
`, "vendor/vendored.rb": "VENDORED = 'v'\n", "packed.rb": "PACKED = 'p'\n"},
		failure: functionError{ErrorType: "Function<KeyError>", ErrorMessage: "no luck"}, inTrace: "main.rb", noMethod: "main.Shop.other",
		missing: [3]string{"Function<NoMethodError>", "Init<LoadError>", "Init<LoadError>"},
		broken:  map[string]string{"main.rb": "require 'not_there'\n"}, noFile: "other.handler",
	}
}

func javaLanguage(t *testing.T) language {
	t.Helper()
	classes := javac(t, map[string]string{"Shop.java": `
package shop;
import java.util.*;
public class Shop {
  public interface Context { String getAwsRequestId(); String getFunctionName(); String getFunctionVersion(); int getMemoryLimitInMB(); int getRemainingTimeInMillis(); }
  public static class Order { private Object x; private String fail; public void setX(Object v) { x = v; } public void setFail(String v) { fail = v; } }
  public List<Object> handle(Order order, Context context) {
    System.out.println("seen " + order.x);
    if (order.fail != null) throw new NoSuchElementException("no " + order.fail);
    return List.of(order.x, context.getAwsRequestId(), context.getFunctionName(), context.getFunctionVersion(), context.getMemoryLimitInMB(),
      System.getenv("GREETING"), context.getRemainingTimeInMillis() > 0, "v" + Packed.X);
  }
}`, "Packed.java": "package shop; class Packed { static final String X = String.valueOf('p'); }"})
	packed := "shop/Packed.class"
	own := map[string]string{"lib/packed.jar": string(zipOf(t, map[string]string{packed: classes[packed]}))}
	broken := map[string]string{}
	for name, class := range classes {
		if name != packed {
			own[name] = class
			broken[name] = class
		}
	}
	return language{
		handler: "shop.Shop::handle", files: own,
		failure: functionError{ErrorType: "java.util.NoSuchElementException", ErrorMessage: "no luck"}, inTrace: "Shop.java", noMethod: "shop.Shop::other",
		missing: [3]string{"java.lang.Exception", "java.lang.NoClassDefFoundError", "java.lang.ClassNotFoundException"},
		broken:  broken, noFile: "shop.Other::handle",
	}
}

// javac compiles with the compiler of the runtime's image, in a mount namespace that ends with it.
func javac(t *testing.T, sources map[string]string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	args := []string{
		"--mount", "sh", "-c", `mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/up,workdir=$2/work" "$2/root" && mount --rbind /proc "$2/root/proc" &&
root=$2/root && shift 2 && exec chroot "$root" /usr/bin/java -m jdk.compiler/com.sun.tools.javac.Main -d /tmp/out "$@"`,
		"sh", filepath.Join(runtimesDir, "java17", "current", "rootfs"), dir,
	}
	for _, d := range []string{"up/tmp", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range sources {
		if err := os.WriteFile(filepath.Join(dir, "up/tmp", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "/tmp/"+name)
	}
	if out, err := exec.Command("unshare", args...).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	classes := map[string]string{}
	out := os.DirFS(filepath.Join(dir, "up/tmp/out"))
	err := fs.WalkDir(out, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(out, path)
		classes[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return classes
}

func TestRuntimes(t *testing.T) {
	for runtime, l := range map[string]language{
		"python3.11": pythonLanguage(), "python3.13": pythonLanguage(), "nodejs18": nodeLanguage(), "nodejs20": nodeLanguage(),
		"ruby3.1": rubyLanguage(), "java17": javaLanguage(t),
	} {
		t.Run(runtime, func(t *testing.T) { l.test(t, runtime) })
	}
}

func (l language) test(t *testing.T, runtime string) {
	t.Helper()
	name := strings.ReplaceAll(runtime, ".", "-")
	good := function{name: name, runtime: runtime, handler: l.handler, files: l.files, env: map[string]string{"GREETING": "hé"}, memoryMB: 128}
	shared.deploy(t, good)
	resp := shared.invoke(t, name, `{"x":21}`)
	sameJSON(t, string(resp.GetPayload()), `[21,"`+resp.GetRequestId()+`","`+name+`","$LATEST",128,"hé",true,"vp"]`)
	if !strings.Contains(string(resp.GetLogTail()), "seen 21") {
		t.Errorf("log tail: %s", resp.GetLogTail())
	}
	e := shared.failure(t, name, `{"x":1,"fail":"luck"}`)
	if e.ErrorType != l.failure.ErrorType || e.ErrorMessage != l.failure.ErrorMessage || !strings.Contains(strings.Join(e.StackTrace, "\n"), l.inTrace) {
		t.Errorf("%+v", e)
	}
	for i, change := range []func(f *function){
		func(f *function) { f.name, f.handler = name+"-no-handler", l.noMethod },
		func(f *function) { f.name, f.files = name+"-no-module", l.broken },
		func(f *function) { f.name, f.handler = name+"-no-file", l.noFile },
	} {
		f := good
		change(&f)
		shared.deploy(t, f)
		if e := shared.failure(t, f.name, `{"x":1}`); e.ErrorType != l.missing[i] || e.ErrorMessage == "" {
			t.Errorf("%s: %+v", f.name, e)
		}
	}
}

// TestGeneratorsStreamOverHTTP has status and headers from the first part, and the rest as the body.
func TestGeneratorsStreamOverHTTP(t *testing.T) {
	url := &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM}
	source := map[string]string{"main.py": `
def handler(event, context):
    yield {"statusCode": 203, "headers": {"x-part": "one"}}
    for i in range(3): yield f"line {i}\n"
`, "main.mjs": `
export async function* handler(event) {
  yield { statusCode: 203, headers: { 'x-part': 'one' } };
  for (let i = 0; i < 3; i++) yield ` + "`line ${i}\n`" + `;
}`}
	for _, runtime := range []string{"python3.11", "python3.13", "nodejs18", "nodejs20"} {
		t.Run(runtime, func(t *testing.T) {
			name := "gen-" + strings.ReplaceAll(runtime, ".", "-")
			shared.deploy(t, function{name: name, runtime: runtime, handler: "main.handler", files: source, url: url})
			resp, err := http.Get("http://" + shared.http + "/fn/" + name + "/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 203 || resp.Header.Get("X-Part") != "one" || string(body) != "line 0\nline 1\nline 2\n" {
				t.Errorf("%d %v %q %v", resp.StatusCode, resp.Header, body, err)
			}
		})
	}
}

// TestRuntimeNamesAgree: the API, the command line and the builder each have a list.
func TestRuntimeNamesAgree(t *testing.T) {
	_, err := shared.functions().CreateFunction(t.Context(), &mayflyv1.CreateFunctionRequest{
		Name: "nope", Configuration: &mayflyv1.FunctionConfiguration{Runtime: "nope", Handler: "a.b"}, Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zipOf(t, nil)},
	})
	_, builder, _ := shared.cli("", "runtime", "build", "nope", "--runtimes-dir", t.TempDir())
	_, cli, _ := shared.cli("", "runtime", "build")
	for _, text := range []string{status.Convert(err).Message(), builder, cli} {
		names := slices.Sorted(slices.Values(regexp.MustCompile(`(python|nodejs|ruby|java)[0-9.]*[0-9]|provided`).FindAllString(text, -1)))
		if want := []string{"java17", "nodejs18", "nodejs20", "provided", "python3.11", "python3.13", "ruby3.1"}; !slices.Equal(names, want) {
			t.Errorf("%v in %q, want %v", names, text, want)
		}
	}
}

// buildDir is a directory for images without any, that has the packages which the tests downloaded before.
func buildDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mfr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(runtimesDir, ".cache"), filepath.Join(dir, ".cache")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRuntimeIsBuiltWhenAFunctionNeedsIt(t *testing.T) {
	dir := buildDir(t)
	in := own(t, "--runtimes-dir", dir)
	_, err := in.functions().CreateFunction(t.Context(), &mayflyv1.CreateFunctionRequest{
		Name: "first", Configuration: &mayflyv1.FunctionConfiguration{Runtime: "ruby3.1", Handler: "main.handler", Timeout: durationpb.New(10 * time.Second)},
		Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zipOf(t, map[string]string{"main.rb": "def handler(event:, context:) = RUBY_VERSION[0, 3]\n"})},
	})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		got, err := in.functions().GetFunction(t.Context(), &mayflyv1.GetFunctionRequest{Name: "first"})
		if err != nil {
			t.Fatal(err)
		}
		f := got.GetFunction()
		if f.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE {
			break
		}
		if reasons[f.GetStateReason()] = true; f.GetState() != mayflyv1.FunctionState_FUNCTION_STATE_PENDING || time.Now().After(deadline) {
			t.Fatalf("%v: %s", f.GetState(), f.GetStateReason())
		}
	}
	if !slices.ContainsFunc(keysOf(reasons), func(r string) bool { return strings.HasPrefix(r, "the runtime ruby3.1 is being built on ") }) {
		t.Errorf("while it was pending its reasons were %q", keysOf(reasons))
	}
	if got := string(in.invoke(t, "first", "{}").GetPayload()); got != `"3.1"` {
		t.Errorf("%s", got)
	}
	if out := in.mustCLI(t, "runtime", "list"); !strings.Contains(out, "ruby3.1") || strings.Contains(out, "java17") {
		t.Errorf("%s", out)
	}
}

func keysOf(m map[string]bool) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// TestNewRuntimeImageRollsOut makes an image current that has another digest: running sandboxes stay on theirs.
func TestNewRuntimeImageRollsOut(t *testing.T) {
	dir := buildDir(t)
	in := own(t, "--runtimes-dir", dir)
	shared.mustCLI(t, "runtime", "build", "python3.11", "--runtimes-dir", dir)
	f := python("roll", "import time, uuid\nme = str(uuid.uuid4())\ndef handler(e, c):\n    if e: print('busy')\n    time.sleep(e.get('s', 0))\n    return me\n")
	in.deploy(t, f)
	first := in.invoke(t, "roll", "{}")

	home := filepath.Join(dir, "python3.11")
	before, err := os.Readlink(filepath.Join(home, "current"))
	if err != nil {
		t.Fatal(err)
	}
	after := strings.Repeat("0", 64)
	makeCurrent(t, home, before, after)
	if again := in.invoke(t, "roll", "{}"); string(again.GetPayload()) != string(first.GetPayload()) {
		t.Error("the running sandbox was replaced")
	}
	busy := make(chan string)
	go func() {
		resp, err := in.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "roll", Payload: []byte(`{"s":5}`)})
		if err != nil {
			t.Error(err)
		}
		busy <- string(resp.GetPayload())
	}()
	for deadline := time.Now().Add(readyWithin); !strings.Contains(in.mustCLI(t, "logs", "roll", "--since", "10m"), "busy"); {
		if time.Now().After(deadline) {
			t.Fatal("the call of the first sandbox did not begin")
		}
	}
	second := in.invoke(t, "roll", "{}")
	if string(second.GetPayload()) == string(first.GetPayload()) || <-busy != string(first.GetPayload()) {
		t.Error("the second call had no sandbox of its own")
	}
	logs := in.mustCLI(t, "logs", "roll", "--since", "10m")
	for _, digest := range []string{before, after} {
		if !strings.Contains(logs, "Runtime Image: sha256:"+digest) {
			t.Errorf("no sandbox on image %s:\n%s", digest, logs)
		}
	}
	if _, err := os.Stat(filepath.Join(home, before)); err != nil {
		t.Errorf("the old image, which is in use: %v", err)
	}
	in.mustCLI(t, "function", "delete", "roll")
	for deadline := time.Now().Add(readyWithin); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(home, before)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the old image is still there")
		}
	}
}

// makeCurrent publishes a copy of an image under another digest, as a build does.
func makeCurrent(t *testing.T, home, before, after string) {
	t.Helper()
	manifest := filepath.Join(home, after, "manifest.json")
	if out, err := exec.Command("cp", "-al", filepath.Join(home, before), filepath.Join(home, after)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	m["digest"] = "sha256:" + after
	b, err = json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return os.Remove(manifest) }, // it is the same file as the other image's
		func() error { return os.WriteFile(manifest, b, 0o644) },
		func() error { return os.Symlink(after, filepath.Join(home, "next")) },
		func() error { return os.Rename(filepath.Join(home, "next"), filepath.Join(home, "current")) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}
