package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestLoad(t *testing.T) {
	loads := make(chan *runtimetest.FakeProcess, 1)
	n := newNode(t, &runtimetest.Fake{Init: func(p *runtimetest.FakeProcess) *frame.Error { loads <- p; return nil }}, nil)
	n.create(nil)
	p := <-loads
	for k, want := range map[string]string{
		"COLOUR": "red", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_NAME": "f",
		"AWS_LAMBDA_FUNCTION_VERSION": "$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
		"_HANDLER": "main.handler", "LAMBDA_TASK_ROOT": "/var/task", "AWS_EXECUTION_ENV": "AWS_Lambda_fake", "TZ": ":UTC",
		"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "LAMBDA_RUNTIME_DIR": "/var/runtime", "AWS_LAMBDA_LOG_STREAM_NAME": p.Load.LogStream,
	} {
		if p.Load.Env[k] != want {
			t.Errorf("%s=%q, want %q", k, p.Load.Env[k], want)
		}
	}
	if p.Load.Handler != "main.handler" || p.Load.MemoryLimitMB != 128 || !strings.HasPrefix(p.Load.LogStream, time.Now().UTC().Format("2006/01/")) {
		t.Errorf("%+v", p.Load)
	}
	c := p.Config
	if !slices.Equal(c.Command, []string{"/run/mayfly-helper/init", "exec", "--", "/bin/x"}) || c.MemoryBytes != 128<<20 || c.MilliCPUs != 72 || c.PIDs == 0 {
		t.Errorf("%+v", c)
	}
	if b, err := os.ReadFile(filepath.Join(c.CodeDir, "main.py")); err != nil || string(b) != "code" {
		t.Errorf("code: %q, %v", b, err)
	}
	for _, e := range c.Env {
		if strings.HasPrefix(e, "AWS") && e != "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128" || strings.HasPrefix(e, "COLOUR") {
			t.Errorf("process environment has %s", e)
		}
	}
}

func TestInitFailures(t *testing.T) {
	var inits atomic.Int32
	fake := &runtimetest.Fake{Init: func(p *runtimetest.FakeProcess) *frame.Error {
		fmt.Fprintln(p.Log, "importing")
		inits.Add(1)
		switch p.Load.Handler {
		case "missing":
			return &frame.Error{Type: "Runtime.ImportModuleError", Message: "no module"}
		case "exits":
			p.Exit(2, false)
		case "oom":
			p.Exit(137, true)
		case "slow":
			<-p.Context.Done()
		case "slow once":
			if inits.Load() == 1 {
				<-p.Context.Done()
			}
		case "crashes once":
			if inits.Load() == 1 {
				p.Exit(2, false)
			}
		}
		return nil
	}}
	n := newNode(t, fake, func(c *Config) { c.InitTimeout = 200 * time.Millisecond })
	for handler, want := range map[string]string{
		"missing": `{"errorType":"Runtime.ImportModuleError","errorMessage":"no module"}`,
		"exits":   `{"errorType":"Runtime.ExitError","errorMessage":"Error: Runtime exited with error: exit status 2"}`,
		"oom":     `{"errorType":"Runtime.OutOfMemory","errorMessage":"Error: Runtime exited with error: signal: killed"}`,
		"slow":    `{"errorType":"Sandbox.Timedout","errorMessage":"Error: Task timed out after 0.40 seconds"}`,
	} {
		t.Run(handler, func(t *testing.T) {
			inits.Store(0)
			id, resp, err := n.tryCreate(func(s *agentv1.SandboxSpec) { s.Handler, s.Timeout = handler, durationpb.New(400*time.Millisecond) })
			if err != nil || string(resp.GetInitError()) != want {
				t.Fatalf("%q, %v", resp.GetInitError(), err)
			}
			if tail := string(resp.GetLogTail()); !strings.HasPrefix(tail, "INIT_START Runtime Version: fake 1.2") || !strings.Contains(tail, "importing\n") || !strings.Contains(tail, "INIT_REPORT") {
				t.Fatalf("tail %q", tail)
			}
			if want := map[bool]int32{true: 1, false: 2}[handler == "missing"]; inits.Load() != want {
				t.Fatalf("%d inits, want %d", inits.Load(), want)
			}
			n.gone(id)
		})
	}
	for _, handler := range []string{"slow once", "crashes once"} {
		t.Run(handler, func(t *testing.T) {
			inits.Store(0)
			id := n.create(func(s *agentv1.SandboxSpec) { s.Handler = handler })
			if resp, err := n.call(id, "1"); err != nil || string(resp.GetPayload()) != "1" {
				t.Fatalf("%v, %v", resp, err)
			}
		})
	}
}

func TestEgress(t *testing.T) {
	made := make(chan sandbox.Egress, 1)
	n := newNode(t, &runtimetest.Fake{Init: func(p *runtimetest.FakeProcess) *frame.Error { made <- p.Config.Egress; return nil }}, nil)
	for policy, want := range map[mayflyv1.EgressPolicy]sandbox.Egress{
		mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED: sandbox.EgressNone, mayflyv1.EgressPolicy_EGRESS_POLICY_NONE: sandbox.EgressNone,
		mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET: sandbox.EgressInternet, mayflyv1.EgressPolicy_EGRESS_POLICY_ALL: sandbox.EgressAll,
	} {
		n.create(func(s *agentv1.SandboxSpec) { s.Egress = policy })
		if got := <-made; got != want {
			t.Errorf("%s: the sandbox has %q, want %q", policy, got, want)
		}
	}
}

func TestNodeWithoutEgress(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, func(c *Config) { c.EgressError = "no nf_tables" })
	if h := n.hello(); h.GetEgressError() != "no nf_tables" {
		t.Errorf("hello says %q", h.GetEgressError())
	}
	_, _, err := n.tryCreate(func(s *agentv1.SandboxSpec) { s.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET })
	if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_EGRESS_UNAVAILABLE) || !strings.Contains(err.Error(), "no nf_tables") {
		t.Errorf("with the policy internet: %v", err)
	}
	n.create(func(s *agentv1.SandboxSpec) { s.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_NONE })
}

func TestCreateErrors(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, func(c *Config) {
		c.Capacity = &mayflyv1.NodeResources{MemoryBytes: 300 << 20, MilliCpus: 150}
	})
	for name, c := range map[string]struct {
		change func(*agentv1.SandboxSpec)
		reason mayflyv1.ErrorReason
	}{
		"runtime":   {func(s *agentv1.SandboxSpec) { s.Runtime = "cobol" }, mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME},
		"path":      {func(s *agentv1.SandboxSpec) { s.Runtime = "../fake" }, mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME},
		"code":      {func(s *agentv1.SandboxSpec) { s.CodeDigest = "sha256:" + strings.Repeat("0", 64) }, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND},
		"memory":    {func(s *agentv1.SandboxSpec) { s.MemoryBytes = 301 << 20 }, mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY},
		"cpu":       {func(s *agentv1.SandboxSpec) { s.MilliCpus = 151 }, mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY},
		"no memory": {func(s *agentv1.SandboxSpec) { s.MemoryBytes = 0 }, mayflyv1.ErrorReason_ERROR_REASON_INVALID_MEMORY},
		"no time":   {func(s *agentv1.SandboxSpec) { s.Timeout = nil }, mayflyv1.ErrorReason_ERROR_REASON_INVALID_TIMEOUT},
		"no name":   {func(s *agentv1.SandboxSpec) { s.Function = "" }, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT},
	} {
		if _, _, err := n.tryCreate(c.change); !fault.Is(err, c.reason) {
			t.Errorf("%s: %v", name, err)
		}
		n.clean()
	}
	first, second := n.create(nil), n.create(nil)
	if _, _, err := n.tryCreate(nil); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY) {
		t.Errorf("a third one: %v", err)
	}
	if _, err := n.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: first, Grant: &agentv1.Grant{Term: 1, Sequence: 1}, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if s := n.plane.reported(t, first, agentv1.SandboxState_SANDBOX_STATE_GONE); s.GetReason() != "test" {
		t.Errorf("reason %q", s.GetReason())
	}
	if _, err := n.CreateSandbox(t.Context(), &agentv1.CreateSandboxRequest{SandboxId: second, Spec: n.spec()}); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS) {
		t.Errorf("the same id: %v", err)
	}
	if _, err := n.call(second, "1"); err != nil {
		t.Errorf("after a second create of its id: %v", err)
	}
	n.create(nil)
	if _, err := n.CreateSandbox(t.Context(), &agentv1.CreateSandboxRequest{SandboxId: "../x", Spec: n.spec()}); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT) {
		t.Errorf("%v", err)
	}
}

// The runtime fails before or after each of its effects: the caller learns it, and nothing is left.
func TestRuntimeFaults(t *testing.T) {
	var mu sync.Mutex
	fails := map[string]int{}
	fake := &runtimetest.Fake{Fault: func(op runtimetest.FakeOp) error {
		mu.Lock()
		defer mu.Unlock()
		key := fmt.Sprint(op.Name, " ", op.After)
		if fails[key] > 0 {
			fails[key]--
			return errors.New("fault: " + key)
		}
		return nil
	}}
	n := newNode(t, fake, nil)
	for _, key := range []string{"create false", "create true", "destroy false", "destroy true"} {
		mu.Lock()
		fails[key] = 1
		mu.Unlock()
		id, _, err := n.tryCreate(nil)
		if strings.HasPrefix(key, "create") != (err != nil) {
			t.Errorf("%s: %v", key, err)
		}
		if err == nil {
			fake.Kill(id)
		}
		n.gone(id)
		n.clean()
	}
}

func TestCallerOfCreateGoes(t *testing.T) {
	loading := make(chan struct{})
	fake := &runtimetest.Fake{Init: func(p *runtimetest.FakeProcess) *frame.Error {
		close(loading)
		<-p.Context.Done()
		return nil
	}}
	n := newNode(t, fake, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-loading
		cancel()
	}()
	id := uuid.NewString()
	if _, err := n.CreateSandbox(ctx, &agentv1.CreateSandboxRequest{SandboxId: id, Spec: n.spec()}); err == nil {
		t.Fatal("no error")
	}
	n.gone(id)
}

func TestBootstrapNeverSaysHello(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, func(c *Config) {
		c.CreateTimeout = 100 * time.Millisecond
		c.Runtime = &mute{Fake: c.Runtime.(*runtimetest.Fake)}
	})
	id, _, err := n.tryCreate(nil)
	if err == nil {
		t.Fatal("no error")
	}
	n.gone(id)
}

// mute makes sandboxes that find no socket.
type mute struct{ *runtimetest.Fake }

func (m *mute) Create(ctx context.Context, c sandbox.Config) error {
	c.SocketDir = "/nowhere"
	return m.Fake.Create(ctx, c)
}

// A function that answers and exits at once has answered.
func TestAnswerThenExit(t *testing.T) {
	fake := &runtimetest.Fake{Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, _ []byte) runtimetest.FakeAnswer {
		p.SendRaw(frame.Append(nil, frame.TypeResult, []byte("last words")))
		p.Exit(1, false)
		return runtimetest.FakeAnswer{}
	}}
	n := newNode(t, fake, nil)
	for range 50 {
		id := n.create(nil)
		if resp, err := n.call(id, ""); err != nil || string(resp.GetPayload()) != "last words" {
			t.Fatalf("%v, %v", resp, err)
		}
		n.gone(id)
	}
}

func TestExitWhileIdle(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, nil)
	id := n.create(nil)
	n.fake.Kill(id)
	s := n.plane.reported(t, id, agentv1.SandboxState_SANDBOX_STATE_GONE)
	if s.GetReason() != "exited with status 137" || s.GetFunction() != "f" {
		t.Errorf("%v", s)
	}
	n.gone(id)
	if _, err := n.call(id, ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE) {
		t.Error(err)
	}
}

func TestDestroyedWhileBusy(t *testing.T) {
	started := make(chan string, 1)
	fake := &runtimetest.Fake{Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, _ []byte) runtimetest.FakeAnswer {
		started <- p.Config.ID
		<-p.Context.Done()
		return runtimetest.FakeAnswer{}
	}}
	n := newNode(t, fake, nil)
	runLost(t, n, started, func(id string) {
		_, _ = n.DestroySandbox(context.Background(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: &agentv1.Grant{Term: 9}})
	})
	runLost(t, n, started, func(string) { _ = n.stop() })
	if _, _, err := n.tryCreate(nil); err == nil {
		t.Error("a sandbox after the end")
	}
}

func runLost(t *testing.T, n *node, started chan string, end func(string)) {
	t.Helper()
	id := n.create(nil)
	result := make(chan error, 1)
	go func() {
		_, err := n.call(id, "")
		result <- err
	}()
	<-started
	end(id)
	if err := <-result; !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST) {
		t.Fatalf("%v", err)
	}
	n.gone(id)
}

func TestSessionsComeAndGo(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, nil)
	id := n.create(nil)
	n.plane.mu.Lock()
	n.plane.refuse = 2
	_ = n.plane.current.Close()
	n.plane.mu.Unlock()
	h := <-n.plane.attached
	if len(h.GetSandboxes()) != 1 || h.GetSandboxes()[0].GetSandboxId() != id || h.GetSandboxes()[0].GetState() != agentv1.SandboxState_SANDBOX_STATE_IDLE {
		t.Fatalf("%v", h)
	}
	if len(h.GetRuntimes()) != 1 || h.GetRuntimes()[0].GetRuntime() != "fake" || h.GetRuntimes()[0].GetVersion() != "1.2" || h.GetInstanceId() == "" {
		t.Fatalf("%v", h)
	}
	if _, err := n.call(id, "1"); err != nil {
		t.Fatal(err)
	}
	writeImage(t, n.dir, "second")
	n.plane.mu.Lock()
	session := n.plane.current
	n.plane.mu.Unlock()
	for r := range session.reports {
		if len(r.GetRuntimes()) == 2 {
			if r.GetUsed().GetMemoryBytes() != 128<<20 || r.GetUsed().GetMilliCpus() != 72 {
				t.Fatalf("%v", r)
			}
			break
		}
	}
}

// A sandbox that ends after the hello was written and before the session is there is reported then.
func TestGoneWhileAttaching(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, nil)
	id := n.create(nil)
	n.plane.mu.Lock()
	n.plane.during = func(h *agentv1.Hello) {
		if len(h.GetSandboxes()) == 1 {
			n.fake.Kill(id)
			n.gone(id)
		}
	}
	_ = n.plane.current.Close()
	n.plane.mu.Unlock()
	<-n.plane.attached
	n.plane.reported(t, id, agentv1.SandboxState_SANDBOX_STATE_GONE)
}

func TestLeftoversOfAnEarlierAgent(t *testing.T) {
	fake := &runtimetest.Fake{}
	old := sandbox.Config{ID: uuid.NewString(), RootFS: "/", SocketDir: "/nowhere", Command: []string{"sleep"}, MemoryBytes: 1, MilliCPUs: 1, PIDs: 1}
	if err := fake.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, fake, func(c *Config) {
		if err := os.MkdirAll(filepath.Join(c.RunDir, sandboxesDir, "old"), 0o700); err != nil {
			t.Fatal(err)
		}
	})
	n.clean()
}

func TestReadLogs(t *testing.T) {
	fake := &runtimetest.Fake{Handler: func(p *runtimetest.FakeProcess, in frame.Invoke, _ []byte) runtimetest.FakeAnswer {
		fmt.Fprintln(p.Log, "text of", in.RequestID)
		return runtimetest.FakeAnswer{Result: []byte("1")}
	}}
	n := newNode(t, fake, nil)
	ids := []string{n.create(nil), n.create(nil)}
	for i := range 10 {
		r := request(ids[i%2], "")
		r.RequestId = fmt.Sprint("r", i)
		if _, err := n.Invoke(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	q := &agentv1.ReadLogsRequest{Query: &mayflyv1.ReadLogsRequest{Namespace: "default", Function: "f", Filter: "text of"}}
	err := n.ReadLogs(t.Context(), q, func(r *mayflyv1.ReadLogsResponse) error {
		for _, l := range r.GetLines() {
			got = append(got, l.GetRequestId()+" "+l.GetText())
		}
		return nil
	})
	if err != nil || len(got) != 10 || got[3] != "r3 text of r3" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestPrepare(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, nil)
	if _, err := n.Prepare(t.Context(), &agentv1.PrepareRequest{Runtime: "fake", CodeDigest: n.digest}); err != nil || n.code.Bytes() == 0 {
		t.Fatalf("%v, %d bytes", err, n.code.Bytes())
	}
	if _, err := n.Prepare(t.Context(), &agentv1.PrepareRequest{Runtime: "none", CodeDigest: n.digest}); err == nil {
		t.Fatal("no such runtime")
	}
}

// Many callers, sandboxes that die at random: every call ends as it should and nothing is left.
func TestManyCallers(t *testing.T) {
	fake := &runtimetest.Fake{Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, event []byte) runtimetest.FakeAnswer {
		if string(event) == "7" {
			p.Exit(1, false)
		}
		return runtimetest.FakeAnswer{Result: event}
	}}
	n := newNode(t, fake, nil)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			id := n.create(nil)
			for i := range 60 {
				want := fmt.Sprint(i % 10)
				resp, err := n.call(id, want)
				switch {
				case err != nil:
					t.Errorf("call: %v", err)
				case want == "7":
					if !resp.GetSandboxGone() {
						t.Error("the sandbox survived its process")
					}
					id = n.create(nil)
				case string(resp.GetPayload()) != want:
					t.Errorf("%q, want %q", resp.GetPayload(), want)
				}
			}
		})
	}
	all.Wait()
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := newNode(t, &runtimetest.Fake{}, func(c *Config) { c.Metrics = registry })
	id := n.create(nil)
	if _, err := n.call(id, ""); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(families)
	for _, want := range []string{`name:"mayfly_agent_sandboxes"`, `name:"mayfly_agent_cold_start_seconds"`, `name:"mayfly_agent_invocations_total"`, `name:"mayfly_agent_code_bytes"`} {
		if !strings.Contains(strings.ReplaceAll(text, "  ", " "), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{NodeID: "i", NodeName: "n", StateDir: t.TempDir(), RunDir: "/tmp/x", Runtime: &runtimetest.Fake{}}
	for name, change := range map[string]func(*Config){
		"id": func(c *Config) { c.NodeID = "" }, "state": func(c *Config) { c.StateDir = "" }, "runtime": func(c *Config) { c.Runtime = nil },
		"long": func(c *Config) { c.RunDir = "/" + strings.Repeat("x", maxRunDir) },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if c := good.withDefaults(); c.Capacity.GetMemoryBytes() < 1<<28 || c.Capacity.GetMilliCpus() < 8000 {
		t.Errorf("%v", c.Capacity)
	}
}
