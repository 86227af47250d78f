package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// scale is the size of the load tests: `make test-long` raises it.
func scale(short, long int) int {
	if os.Getenv("MAYFLY_TEST_LONG") != "" {
		return long
	}
	return short
}

func TestThousandCallsAtOnce(t *testing.T) {
	shared.deploy(t, python("busy", "import time\ndef handler(e, c):\n    time.sleep(0.02)\n    return e['n']"))
	shared.mustCLI(t, "function", "concurrency", "set", "busy", "20")
	var served, throttled, wrong int
	var mu sync.Mutex
	var callers sync.WaitGroup
	for n := range 1000 {
		callers.Go(func() {
			resp, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "busy", Payload: fmt.Appendf(nil, `{"n":%d}`, n)})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && string(resp.GetPayload()) == strconv.Itoa(n):
				served++
			case reasonOf(err) == "FUNCTION_CONCURRENCY_EXCEEDED", reasonOf(err) == "QUEUE_FULL":
				throttled++
			default:
				wrong++
				t.Logf("call %d: %v %v", n, resp, err)
			}
		})
	}
	callers.Wait()
	if wrong > 0 || served == 0 || served+throttled != 1000 {
		t.Errorf("%d served, %d throttled, %d wrong", served, throttled, wrong)
	}
	t.Logf("%d served, %d throttled", served, throttled)
}

func TestManyFunctions(t *testing.T) {
	in := own(t)
	total := scale(150, 1000)
	code := zipOf(t, map[string]string{"main.py": "def handler(e, c): return c.function_name"})
	work := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := range work {
				name := fmt.Sprintf("many-%d", i)
				_, err := in.functions().CreateFunction(t.Context(), &mayflyv1.CreateFunctionRequest{
					Name: name, Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "main.handler"},
					Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: code},
				})
				if err != nil {
					t.Error(err)
					continue
				}
				resp, err := in.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: name})
				if err != nil || string(resp.GetPayload()) != `"`+name+`"` {
					t.Errorf("%s: %v %v", name, resp, err)
				}
			}
		})
	}
	for i := range total {
		work <- i
	}
	close(work)
	workers.Wait()
}

// TestServerAndAgentApart runs the two in processes of their own, as on two machines.
func TestServerAndAgentApart(t *testing.T) {
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	in := &instance{dir: dir, api: freeAddress(), http: freeAddress(), raft: freeAddress(), config: filepath.Join(dir, "config")}
	server, err := startProcess(in.logPath(), in.env(), "server", "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"),
		"--api-address", in.api, "--http-address", in.http, "--raft-address", in.raft)
	if err != nil {
		t.Fatal(err)
	}
	in.up = server
	defer func() { _ = server.stop(15) }()
	if err := in.waitReady(server); err != nil {
		t.Fatal(err)
	}
	if err := in.connect(); err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(dir, "identity")
	in.mustCLI(t, "node", "enroll", "worker-1", "--identity", identity)
	startAgent := func() *process {
		agent, err := startProcess(filepath.Join(dir, "agent.log"), in.env(), "agent", "--state-dir", filepath.Join(dir, "w"), "--run-dir", filepath.Join(dir, "wr"),
			"--runtimes-dir", runtimesDir, "--server", in.api, "--identity", identity)
		if err != nil {
			t.Fatal(err)
		}
		return agent
	}
	agent := startAgent()
	defer func() {
		_ = agent.stop(15)
		in.cli("", "down", "--state-dir", filepath.Join(dir, "w"), "--run-dir", filepath.Join(dir, "wr"))
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "agent.log"))
			t.Logf("agent:\n%s\nserver:\n%s", log, in.logTail())
		}
	}()
	in.deploy(t, python("apart", "def handler(e, c): return len(e.get('p', ''))"))
	if got := string(in.invoke(t, "apart", `{"p":"abc"}`).GetPayload()); got != "3" {
		t.Error(got)
	}
	large := make([]byte, 5<<20)
	for i := range large {
		large[i] = 'x'
	}
	if got := string(in.invoke(t, "apart", `{"p":"`+string(large)+`"}`).GetPayload()); got != strconv.Itoa(len(large)) {
		t.Error(got)
	}
	// the agent dies and comes back: the next invocation is served again
	if err := agent.stop(9); err != nil {
		t.Fatal(err)
	}
	agent = startAgent()
	if got := string(in.invoke(t, "apart", `{"p":"abcd"}`).GetPayload()); got != "4" {
		t.Error(got)
	}
}
