package agent

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// The time that a runtime has asked for is its own, with the reason as Lambda words it.
func TestShutdownReasons(t *testing.T) {
	reasons := make(chan string, 1)
	fake := &runtimetest.Fake{
		Ready:    frame.Ready{ShutdownMS: 2000},
		Shutdown: func(_ *runtimetest.FakeProcess, reason string) { reasons <- reason },
		Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, event []byte) runtimetest.FakeAnswer {
			switch string(event) {
			case "exits":
				p.SendRaw(frame.Append(nil, frame.TypeExit, []byte(`{"status":3}`)))
			case "extension":
				p.SendRaw(frame.Append(nil, frame.TypeExit, []byte(`{"status":1,"error":{"errorType":"Extension.Crash","errorMessage":"Error: it crashed"}}`)))
			}
			return runtimetest.FakeAnswer{Result: event}
		},
	}
	n := newNode(t, fake, nil)
	for _, c := range []struct{ event, reason, payload string }{
		{"", "spindown", ""},
		{"exits", "failure", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: req-1 Error: Runtime exited with error: exit status 3"}`},
		{"extension", "failure", `{"errorType":"Extension.Crash","errorMessage":"RequestId: req-1 Error: it crashed"}`},
	} {
		t.Run(c.event, func(t *testing.T) {
			id := n.create(nil)
			if c.event == "" {
				if _, err := n.DestroySandbox(context.Background(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: &agentv1.Grant{Term: 1, Sequence: 1}}); err != nil {
					t.Fatal(err)
				}
			} else if resp, err := n.call(id, c.event); err != nil || string(resp.GetPayload()) != c.payload || !resp.GetSandboxGone() {
				t.Fatalf("%v, %v", resp, err)
			}
			if got := <-reasons; got != c.reason {
				t.Errorf("reason %q, want %q", got, c.reason)
			}
			n.gone(id)
		})
	}
}

func TestShutdownAfterTimeout(t *testing.T) {
	reasons := make(chan string, 1)
	release := make(chan struct{})
	fake := &runtimetest.Fake{
		Ready:    frame.Ready{ShutdownMS: 2000},
		Shutdown: func(_ *runtimetest.FakeProcess, reason string) { reasons <- reason },
		Handler: func(p *runtimetest.FakeProcess, _ frame.Invoke, _ []byte) runtimetest.FakeAnswer {
			<-release
			return runtimetest.FakeAnswer{}
		},
	}
	n := newNode(t, fake, nil)
	id := n.create(func(s *agentv1.SandboxSpec) { s.Timeout = durationpb.New(50 * time.Millisecond) })
	resp, err := n.call(id, "1")
	close(release) // the caller had its answer while the sandbox still shut down
	if err != nil || resp.GetFunctionError() != unhandled || !resp.GetSandboxGone() {
		t.Fatalf("%v, %v", resp, err)
	}
	if got := <-reasons; got != "timeout" {
		t.Errorf("reason %q", got)
	}
	n.gone(id)
}

// A runtime that asked for time and doesn't end is killed when it is over.
func TestShutdownHasALimit(t *testing.T) {
	fake := &runtimetest.Fake{
		Ready:    frame.Ready{ShutdownMS: 50},
		Shutdown: func(p *runtimetest.FakeProcess, _ string) { <-p.Context.Done() },
	}
	n := newNode(t, fake, nil)
	id := n.create(nil)
	started := time.Now()
	if _, err := n.DestroySandbox(context.Background(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: &agentv1.Grant{Term: 1, Sequence: 1}}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took < 50*time.Millisecond {
		t.Errorf("it was killed after %s", took)
	}
}
