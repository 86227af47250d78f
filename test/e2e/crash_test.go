package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// TestNothingAcknowledgedIsLost kills everything at random moments while functions are made, and looks for each
// one that was acknowledged.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	in := own(t)
	code := zipOf(t, map[string]string{"main.py": "def handler(e, c): return c.function_name"})
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	const rounds = 4
	for round := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("f-%d-%d-%d", round, w, i)
					_, err := in.functions().CreateFunction(ctx, &mayflyv1.CreateFunctionRequest{
						Name: name, Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "main.handler"},
						Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: code},
					})
					if err == nil {
						mu.Lock()
						acknowledged[name] = true
						mu.Unlock()
					}
				}
			})
		}
		time.Sleep(time.Duration(200+rand.IntN(800)) * time.Millisecond)
		if err := in.kill(); err != nil {
			t.Fatal(err)
		}
		stop()
		writers.Wait()
		if err := in.launch(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) < rounds {
		t.Fatalf("only %d functions were acknowledged", len(acknowledged))
	}
	for name := range acknowledged {
		in.waitActive(t, name)
	}
	for name := range acknowledged {
		if got := string(in.invoke(t, name, "{}").GetPayload()); got != `"`+name+`"` {
			t.Fatalf("%s answered %s", name, got)
		}
		break
	}
	t.Logf("%d acknowledged functions survived %d kills", len(acknowledged), rounds)
}

// TestKilledAgentLeavesNothing: what sandboxes left on the host when everything was killed is gone after the next start and stop.
func TestKilledAgentLeavesNothing(t *testing.T) {
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	in, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	in.deploy(t, python("left", "import time\ndef handler(e, c):\n    time.sleep(e.get('s', 0))\n    return 1"))
	in.invoke(t, "left", "{}")
	go in.invocations().Invoke(context.Background(), &mayflyv1.InvokeRequest{Function: "left", Payload: []byte(`{"s":5}`)}) // it dies with the server
	time.Sleep(200 * time.Millisecond)
	if err := in.kill(); err != nil {
		t.Fatal(err)
	}
	if err := in.launch(); err != nil {
		t.Fatal(err)
	}
	if got := string(in.invoke(t, "left", "{}").GetPayload()); got != "1" {
		t.Errorf("after the restart: %s", got)
	}
	if err := in.tearDown(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, dir)
}

func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+dir+"/") {
			t.Errorf("mounted still: %s", line)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cmdline, err := os.ReadFile(p); err == nil && strings.Contains(string(cmdline), dir+"/") {
			t.Errorf("running still: %s", strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
}

func TestSandboxCrashCostsOnlyItself(t *testing.T) {
	shared.deploy(t, python("steady", "def handler(e, c): return 'steady'"))
	shared.deploy(t, python("crashing", "import os\ndef handler(e, c): os._exit(1)"))
	for range 3 {
		if e := shared.failure(t, "crashing", "{}"); e.ErrorType != "Runtime.ExitError" {
			t.Errorf("%+v", e)
		}
		if got := string(shared.invoke(t, "steady", "{}").GetPayload()); got != `"steady"` {
			t.Error(got)
		}
	}
}

func TestFullDiskRefusesWritesAndServesInvocations(t *testing.T) {
	in := own(t)
	in.deploy(t, python("before", "def handler(e, c): return 1"))
	in.extra = []string{"--min-free-bytes", "1000TB"}
	if err := in.up.stop(15); err != nil {
		t.Fatal(err)
	}
	if err := in.launch(); err != nil {
		t.Fatal(err)
	}
	_, err := in.functions().CreateFunction(t.Context(), &mayflyv1.CreateFunctionRequest{
		Name: "after", Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "main.handler"},
		Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zipOf(t, map[string]string{"main.py": "x = 1"})},
	})
	if reasonOf(err) != "DISK_FULL" {
		t.Errorf("a write on a full disk: %v", err)
	}
	if got := string(in.invoke(t, "before", "{}").GetPayload()); got != "1" {
		t.Error(got)
	}
}
