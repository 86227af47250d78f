package runtimes

import (
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

func ruby(tb testing.TB, code string) *process {
	tb.Helper()
	return start(tb, "ruby3.1", map[string]string{"app.rb": code}).mustLoad("app.handler")
}

func TestRubyHelloExample(t *testing.T) {
	code, err := os.ReadFile("../../docs/examples/hello-ruby/hello.rb")
	must(t, err)
	p := start(t, "ruby3.1", map[string]string{"hello.rb": string(code)}).mustLoad("hello.handler")
	wantEqual(t, p.result(`{}`), `{"statusCode":200,"body":"\"Hello World!\""}`)
	wantEqual(t, p.newLog(), "")
}

func TestRubyContextAndEnvironment(t *testing.T) {
	p := start(t, "ruby3.1", map[string]string{"lib/app.rb": `
COLOR = ENV["COLOR"]
module Shop
  class Orders
    def self.list(event:, context:)
      left = context.get_remaining_time_in_millis
      [COLOR, Dir.pwd, Process.uid, Time.now.zone, ENV["_X_AMZN_TRACE_ID"], context.function_name, context.function_version,
       context.invoked_function_arn, context.memory_limit_in_mb, context.aws_request_id, context.log_group_name, context.log_stream_name,
       left > 20000 && left <= 30000, context.client_context["custom"], context.identity["cognitoIdentityId"], __FILE__, event]
    end
  end
end
`})
	typ, body := p.load("lib/app.Shop::Orders.list", map[string]string{"COLOR": "grün", "TZ": "Asia/Tokyo"})
	if typ != frame.TypeReady {
		t.Fatalf("%d %s", typ, body)
	}
	p.sendInvoke(frame.Invoke{
		RequestID: "r-7", TraceID: "Root=1-2-3", ClientContext: `{"custom":{"a":1}}`, CognitoContext: `{"cognitoIdentityId":"id"}`,
	}, `{"ü":"日本"}`)
	typ, body = p.receive()
	wantEqual(t, typ, frame.TypeResult)
	wantEqual(t, string(body), `["grün","/var/task",1000,"JST","Root=1-2-3","fn","$LATEST","arn:aws:lambda:us-east-1:000000000000:function:fn",`+
		`128,"r-7","/aws/lambda/fn","2026/01/02/[$LATEST]abc",true,{"a":1},"id","/var/task/lib/app.rb",{"ü":"日本"}]`)
}

func TestRubyInitErrors(t *testing.T) {
	cases := []struct{ name, handler, code, kind, message string }{
		{"no file", "nope.handler", "", "Init<LoadError>", "cannot load such file -- /var/task/nope"},
		{"no gem", "app.handler", "require 'absent'", "Init<LoadError>", "cannot load such file -- absent"},
		{"syntax", "app.handler", "def handler(", "Init<SyntaxError>", "/var/task/app.rb:1: syntax error"},
		{"no dot", "app", "", "Init<ArgumentError>", "Invalid handler app, must be of form"},
		{"four parts", "app.A.b.c", "", "Init<ArgumentError>", "Invalid handler app.A.b.c, must be of form"},
		{"raises", "app.handler", "def f = raise(KeyError, 'broken')\nf", "Init<KeyError>", "broken"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, "ruby3.1", map[string]string{"app.rb": c.code})
			typ, body := p.load(c.handler, nil)
			e := decodeError(t, typ, frame.TypeInitError, body)
			wantEqual(t, e.Type, c.kind)
			wantContains(t, e.Message, c.message)
			wantEqual(t, p.wait(), 1)
			wantContains(t, p.newLog(), "[ERROR] "+c.kind+": ")
			for _, f := range e.StackTrace {
				if strings.Contains(f, "bootstrap.rb") {
					t.Errorf("frame of the platform: %s", f)
				}
			}
		})
	}
}

func TestRubyHandlerErrors(t *testing.T) {
	p := ruby(t, `
class Custom < StandardError; end
def deep(n) = deep(n + 1)
def handler(event:, context:)
  puts "before"
  case event
  when "raise" then raise Custom, "some error occurred"
  when "deep" then deep(0)
  when "long" then raise "x" * 20_000_000
  when "binary" then raise "\xff".b
  when "nan" then 0.0 / 0
  when "big" then "x" * 6291555
  when "nearly" then "x" * 6291554
  when "throw" then throw :nothing
  when "interrupt" then raise NotImplementedError
  else "ok"
  end
end
`)
	e := p.failure(`"raise"`)
	want := []string{"/var/task/app.rb:7:in `handler'"}
	wantEqual(t, e.Error, frame.Error{Type: "Function<Custom>", Message: "some error occurred", StackTrace: want})
	wantEqual(t, e.RequestID, "req-1")
	wantEqual(t, p.newLog(), "before\n[ERROR] Function<Custom>: some error occurred\n    from "+want[0]+"\n")
	wantEqual(t, p.failure(`"deep"`).Type, "Function<SystemStackError>")
	wantEqual(t, len(p.failure(`"long"`).Message) < 1<<20, true)
	wantEqual(t, p.failure(`"binary"`).Message, "\ufffd")
	wantEqual(t, p.failure(`"nan"`).Type, "Runtime.MarshalError")
	wantEqual(t, p.failure(`"big"`).Type, "Function.ResponseSizeTooLarge")
	wantEqual(t, len(p.result(`"nearly"`)), 6291556)
	wantEqual(t, p.failure(`"throw"`).Type, "Function<UncaughtThrowError>")
	wantEqual(t, p.failure(`"interrupt"`).Type, "Function<NotImplementedError>")
	wantEqual(t, p.failure(`{`).Type, "Runtime.UnmarshalError")
	wantEqual(t, p.result(`1`), `"ok"`) // and it still works
}

// As in Lambda, a method is looked for when it is called.
func TestRubyMissingMethodAndClass(t *testing.T) {
	for handler, want := range map[string]string{
		"app.absent": "Function<NoMethodError>", "app.Absent.list": "Function<NameError>", "app.Thing.absent": "Function<NoMethodError>", "app.odd": "Function<ArgumentError>",
	} {
		t.Run(handler, func(t *testing.T) {
			p := start(t, "ruby3.1", map[string]string{"app.rb": "class Thing; end\ndef odd; end\n"}).mustLoad(handler)
			wantEqual(t, p.failure("1").Type, want)
		})
	}
}

func TestRubyValues(t *testing.T) {
	p := ruby(t, "def handler(event:, context:) = event\n")
	for _, v := range []string{`null`, `true`, `"äöü 😀"`, `1.5`, `[1,{"a":[]}]`, `{}`} {
		wantEqual(t, p.result(v), v)
	}
	big := `"` + strings.Repeat("é", 3_000_000) + `"`
	wantEqual(t, p.result(big) == big, true)
	wantEqual(t, p.newLog(), "")
}

func TestRubyExitAndShutdown(t *testing.T) {
	for code, want := range map[string]int{"exit 3": 3, "exit": 0, "exit! 7": 7, "abort": 1} {
		t.Run(code, func(t *testing.T) {
			p := ruby(t, "def handler(event:, context:)\n  Thread.new { sleep }\n  print 'unfinished'\n  "+code+"\nend\n")
			p.sendInvoke(frame.Invoke{}, "1")
			if _, _, err := frame.Read(p.conn); err == nil {
				t.Error("a process that exits must not answer")
			}
			wantEqual(t, p.wait(), want)
			wantEqual(t, p.newLog(), "unfinished")
		})
	}
	p := ruby(t, "at_exit { puts 'bye' }\ndef handler(event:, context:); end\n")
	body, err := json.Marshal(frame.Shutdown{Reason: "spindown"})
	must(t, err)
	p.send(frame.Append(nil, frame.TypeShutdown, body))
	wantEqual(t, p.wait(), 0)
	wantEqual(t, p.newLog(), "bye\n")
}

func TestRubyForkedChildDoesNotAnswer(t *testing.T) {
	p := ruby(t, "def handler(event:, context:)\n  pid = fork\n  return 'child' unless pid\n  Process.wait(pid)\n  'parent'\nend\n")
	for range 3 {
		wantEqual(t, p.result("1"), `"parent"`)
	}
}

func TestRubyFramesInPieces(t *testing.T) {
	p := ruby(t, "def handler(event:, context:) = event\n")
	event := []byte(`{"n":1}`)
	meta := []byte(`{"request_id":"r","deadline_ms":0,"arn":"a"}`)
	call := append(frame.AppendInvoke(nil, meta, len(event)), event...)
	for _, b := range call {
		p.send([]byte{b})
	}
	_, body := p.receive()
	wantEqual(t, string(body), `{"n":1}`)
	p.send(append(append([]byte{}, call...), call...)) // two at once
	p.receive()
	typ, _ := p.receive()
	wantEqual(t, typ, frame.TypeResult)
}

func TestRubyModulesAndGems(t *testing.T) {
	gem := func(dir, name string) map[string]string {
		return map[string]string{
			dir + "/specifications/" + name + "-1.0.gemspec":   "Gem::Specification.new { |s| s.name = '" + name + "'; s.version = '1.0'; s.summary = 's'; s.authors = ['a']; s.require_paths = ['lib'] }",
			dir + "/gems/" + name + "-1.0/lib/" + name + ".rb": "module " + strings.ToUpper(name[:1]) + name[1:] + "; HERE = __FILE__; end",
		}
	}
	files := map[string]string{
		"app.rb": `
require "helper"; require "vendored"; require "bundled"; require "plain"
require "net/http"; require "openssl"; require "yaml"; require "set"; require "bigdecimal"; require "digest"; require "logger"; require "csv"
def handler(event:, context:)
  store = OpenSSL::X509::Store.new.tap(&:set_default_paths)
  [HELPER, VENDORED, Bundled::HERE, Plain::HERE, File.exist?(OpenSSL::X509::DEFAULT_CERT_FILE), YAML.load("a: 1"), store.class.name]
end
`,
		"helper.rb": "HELPER = 1\n", "vendor/vendored.rb": "VENDORED = 2\n",
	}
	for _, more := range []map[string]string{gem("vendor/bundle/ruby/3.1.0", "bundled"), gem("vendor", "plain")} {
		maps.Copy(files, more)
	}
	p := start(t, "ruby3.1", files).mustLoad("app.handler")
	wantEqual(t, p.result("1"), `[1,2,"/var/task/vendor/bundle/ruby/3.1.0/gems/bundled-1.0/lib/bundled.rb",`+
		`"/var/task/vendor/gems/plain-1.0/lib/plain.rb",true,{"a":1},"OpenSSL::X509::Store"]`)
}
