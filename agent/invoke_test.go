package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestInvoke(t *testing.T) {
	seen := make(chan frame.Invoke, 10)
	fake := &runtimetest.Fake{Peak: 31 << 20, Handler: func(p *runtimetest.FakeProcess, in frame.Invoke, event []byte) runtimetest.FakeAnswer {
		seen <- in
		fmt.Fprintln(p.Log, "hello")
		return runtimetest.FakeAnswer{Result: append([]byte("got "), event...)}
	}}
	n := newNode(t, fake, nil)
	id := n.create(nil)
	for range 3 {
		r := request(id, `{"a":1}`)
		r.InitDuration = durationpb.New(110 * time.Millisecond)
		r.TraceId, r.ClientContext = "Root=1", `{"x":"é"}`
		resp, err := n.Invoke(t.Context(), r, nil)
		if err != nil || string(resp.GetPayload()) != `got {"a":1}` || resp.GetFunctionError() != "" || resp.GetSandboxGone() {
			t.Fatalf("%v, %v", resp, err)
		}
		tail := string(resp.GetLogTail())
		for _, want := range []string{"START RequestId: req-1 Version: $LATEST\nhello\nEND RequestId: req-1\nREPORT RequestId: req-1\tDuration: ", "Max Memory Used: 31 MB\tInit Duration: 110.00 ms\t\n"} {
			if !strings.Contains(tail, want) {
				t.Fatalf("tail %q has no %q", tail, want)
			}
		}
		if r := resp.GetReport(); r.GetMemoryMb() != 128 || r.GetMaxMemoryUsedMb() != 31 || r.GetDuration().AsDuration() <= 0 {
			t.Fatalf("report %v", r)
		}
		in := <-seen
		if in.RequestID != "req-1" || in.ARN != "arn:f" || in.TraceID != "Root=1" || in.ClientContext != `{"x":"é"}` || time.Until(time.UnixMilli(in.DeadlineMS)) < 10*time.Second {
			t.Fatalf("%+v", in)
		}
	}
	if resp, err := n.call(id, ""); err != nil || string(resp.GetPayload()) != "got {}" {
		t.Fatalf("empty payload: %v, %v", resp, err)
	}
	n.plane.reported(t, id, agentv1.SandboxState_SANDBOX_STATE_IDLE)
}

// Each way in which a function can fail, what its caller gets, and whether the sandbox survives.
func TestFailures(t *testing.T) {
	big := bytes.Repeat([]byte("x"), maxResponse+1)
	handler := func(p *runtimetest.FakeProcess, _ frame.Invoke, event []byte) runtimetest.FakeAnswer {
		fmt.Fprintln(p.Log, "working on", string(event))
		switch string(event) {
		case "error":
			return runtimetest.FakeAnswer{Error: &frame.Error{Type: "ValueError", Message: "bad \"value\"", StackTrace: []string{"line 1"}}}
		case "exit 0":
			p.Exit(0, false)
		case "exit 3":
			p.Exit(3, false)
		case "killed":
			p.Exit(137, false)
		case "segfault":
			p.Exit(139, false)
		case "oom":
			p.Exit(137, true)
		case "hang", "hang up":
			if string(event) == "hang up" {
				p.Disconnect()
			}
			<-p.Context.Done()
		case "large":
			return runtimetest.FakeAnswer{Result: big}
		case "huge":
			p.SendRaw(frame.Append(nil, frame.TypeResult, make([]byte, frame.MaxBody+5)))
			return runtimetest.FakeAnswer{Result: []byte("late")}
		case "nonsense":
			p.SendRaw([]byte{0, 0, 0, 1, 99})
			<-p.Context.Done()
		}
		return runtimetest.FakeAnswer{Result: []byte("ok")}
	}
	n := newNode(t, &runtimetest.Fake{Handler: handler}, nil)
	const exited = "RequestId: req-1 Error: Runtime exited "
	for _, c := range []struct {
		event, errorType, message string
		gone                      bool
		log                       string
	}{
		{"error", "ValueError", "bad \"value\"", false, "END"},
		{"exit 0", errorExit, exited + "without providing a reason", true, "Runtime.ExitError"},
		{"exit 3", errorExit, exited + "with error: exit status 3", true, "exit status 3 (Runtime.ExitError)"},
		{"killed", errorExit, exited + "with error: signal: killed", true, "Status: error\tError Type: Runtime.ExitError"},
		{"segfault", errorExit, exited + "with error: signal: segmentation fault", true, ""},
		{"oom", errorOutOfMemory, exited + "with error: signal: killed", true, "Max Memory Used: 128 MB\tStatus: error\tError Type: Runtime.OutOfMemory"},
		{"hang", errorTimeout, "RequestId: req-1 Error: Task timed out after 0.30 seconds", true, "req-1 Task timed out after 0.30 seconds\nEND RequestId: req-1\nREPORT"},
		{"hang up", errorExit, exited + "without providing a reason", true, ""},
		{"nonsense", errorExit, exited + "without providing a reason", true, ""},
		{"large", errorTooLarge, "Response payload size exceeded maximum allowed payload size (6291556 bytes).", false, "END"},
	} {
		t.Run(c.event, func(t *testing.T) {
			id := n.create(func(s *agentv1.SandboxSpec) { s.Timeout = durationpb.New(20 * time.Second) })
			if c.event == "hang" {
				id = n.create(func(s *agentv1.SandboxSpec) { s.Timeout = durationpb.New(300 * time.Millisecond) })
			}
			resp, err := n.call(id, c.event)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Type       string   `json:"errorType"`
				Message    string   `json:"errorMessage"`
				RequestID  string   `json:"requestId"`
				StackTrace []string `json:"stackTrace"`
			}
			if err := json.Unmarshal(resp.GetPayload(), &got); err != nil {
				t.Fatalf("%v: %q", err, resp.GetPayload())
			}
			if resp.GetFunctionError() != unhandled || got.Type != c.errorType || got.Message != c.message || resp.GetSandboxGone() != c.gone {
				t.Fatalf("gone %v, error %q: %+v", resp.GetSandboxGone(), resp.GetFunctionError(), got)
			}
			if c.event == "error" && (got.RequestID != "req-1" || len(got.StackTrace) != 1) {
				t.Fatalf("%+v", got)
			}
			if tail := string(resp.GetLogTail()); !strings.Contains(tail, c.log) || !strings.Contains(tail, "\nworking on "+c.event+"\n") {
				t.Fatalf("log: %q", tail)
			}
			if c.gone {
				n.plane.reported(t, id, agentv1.SandboxState_SANDBOX_STATE_GONE)
				n.gone(id)
				return
			}
			if resp, err := n.call(id, "fine"); err != nil || string(resp.GetPayload()) != "ok" {
				t.Fatalf("the next invocation: %v, %v", resp, err)
			}
		})
	}
	t.Run("huge", func(t *testing.T) { // more than a frame may have; then an answer that nobody asked for
		id := n.create(nil)
		resp, err := n.call(id, "huge")
		if err != nil || !bytes.Contains(resp.GetPayload(), []byte(errorTooLarge)) {
			t.Fatalf("%v, %v", resp, err)
		}
		p := n.named(id)
		for range 1000 { // until the unasked answer is there, which may take a moment
			if p.attempt.link.quiet() != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := n.call(id, "next"); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE) {
			t.Fatalf("the stale answer was taken for the next one: %v", err)
		}
		n.gone(id)
	})
}

func TestStreams(t *testing.T) {
	fake := &runtimetest.Fake{Handler: func(_ *runtimetest.FakeProcess, in frame.Invoke, event []byte) runtimetest.FakeAnswer {
		a := runtimetest.FakeAnswer{Chunks: [][]byte{[]byte("one "), []byte("two")}}
		switch string(event) {
		case "breaks":
			a.Error = &frame.Error{Type: "E", Message: "m"}
		case "breaks at once":
			a = runtimetest.FakeAnswer{Chunks: [][]byte{}, Error: &frame.Error{Type: "E", Message: "m"}}
		case "large":
			a.Chunks = slices.Repeat([][]byte{make([]byte, 1<<20)}, 7)
		case "asked":
			a.Chunks = [][]byte{fmt.Append(nil, in.Stream)}
		}
		return a
	}}
	n := newNode(t, fake, nil)
	id := n.create(nil)
	stream := func(event string, fail error) (string, *agentv1.InvokeResponse) {
		t.Helper()
		r := request(id, event)
		r.Stream = true
		var got strings.Builder
		resp, err := n.Invoke(t.Context(), r, func(b []byte) error {
			got.Write(b)
			return fail
		})
		if err != nil {
			t.Fatal(err)
		}
		return got.String(), resp
	}
	if got, resp := stream("", nil); got != "one two" || !resp.GetStreamed() || len(resp.GetPayload()) != 0 {
		t.Fatalf("%q, %v", got, resp)
	}
	if got, _ := stream("asked", nil); got != "true" {
		t.Fatal("the function doesn't know that it may stream")
	}
	if got, resp := stream("", errors.New("the caller has gone")); got != "one " || resp.GetFunctionError() != "" {
		t.Fatalf("%q, %v", got, resp)
	}
	if got, resp := stream("breaks", nil); got != "one two" || resp.GetFunctionError() != unhandled || !bytes.Contains(resp.GetPayload(), []byte(`"errorType":"E"`)) {
		t.Fatalf("%q, %v", got, resp)
	}
	if got, resp := stream("breaks at once", nil); got != "" || resp.GetFunctionError() != unhandled || resp.GetStreamed() {
		t.Fatalf("%q, %v", got, resp)
	}
	if got, _ := stream("large", nil); len(got) != 7<<20 {
		t.Fatalf("%d bytes", len(got))
	}
	if resp, err := n.call(id, ""); err != nil || string(resp.GetPayload()) != "one two" || resp.GetStreamed() {
		t.Fatalf("buffered: %v, %v", resp, err)
	}
	if resp, err := n.call(id, "large"); err != nil || !bytes.Contains(resp.GetPayload(), []byte(errorTooLarge)) || resp.GetSandboxGone() {
		t.Fatalf("buffered, too large: %v, %v", resp.GetFunctionError(), err)
	}
}

func TestRefusals(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{}, 1)
	fake := &runtimetest.Fake{Handler: func(*runtimetest.FakeProcess, frame.Invoke, []byte) runtimetest.FakeAnswer {
		started <- struct{}{}
		<-release
		return runtimetest.FakeAnswer{Result: []byte("done")}
	}}
	n := newNode(t, fake, nil)
	id := n.create(nil)
	refused := func(r *agentv1.InvokeRequest) {
		t.Helper()
		if _, err := n.Invoke(t.Context(), r, nil); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE) {
			t.Errorf("%v", err)
		}
	}
	refused(request(uuid.NewString(), ""))
	low := request(id, "")
	low.Grant = &agentv1.Grant{Term: 1}
	refused(low)
	if _, err := n.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: low.Grant}); err == nil {
		t.Error("destroyed under an old grant")
	}
	if _, err := n.Invoke(t.Context(), request(id, strings.Repeat("x", maxResponse+1)), nil); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE) {
		t.Errorf("%v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		// The caller goes, the function finishes.
		if resp, err := n.Invoke(cancelled, request(id, ""), nil); err != nil || string(resp.GetPayload()) != "done" {
			t.Errorf("%v, %v", resp, err)
		}
	})
	<-started
	cancel()
	refused(request(id, ""))
	close(release)
	all.Wait()
	if _, err := n.Invoke(cancelled, request(id, ""), nil); err == nil {
		t.Error("invoked for a caller that had gone")
	}
	high := request(id, "")
	high.Grant = &agentv1.Grant{Term: 2}
	if _, err := n.Invoke(t.Context(), high, nil); err != nil {
		t.Error(err)
	}
	<-started
	refused(request(id, ""))
}

func TestLargeEvents(t *testing.T) {
	n := newNode(t, &runtimetest.Fake{}, nil)
	id := n.create(nil)
	for _, size := range []int{1, copyLimit, copyLimit + 1, sendLimit + 1, 1 << 20, 10, maxResponse} {
		event := strings.Repeat("x", size)
		if resp, err := n.call(id, event); err != nil || string(resp.GetPayload()) != event {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
}

func TestFunctionError(t *testing.T) {
	for in, want := range map[string]string{
		`{"errorType":"T","errorMessage":"m"}`: `{"errorType":"T","errorMessage":"m","requestId":"r"}`,
		` {"trace":[{"a":1}]} `:                `{"trace":[{"a":1}],"requestId":"r"}`,
		`{}`:                                   `{"requestId":"r"}`,
		`{"requestId":""}`:                     `{"requestId":""}`,
		"oh\xff":                               `{"errorMessage":"oh�","errorType":"Runtime.Unknown","requestId":"r"}`,
		``:                                     `{"errorMessage":"","errorType":"Runtime.Unknown","requestId":"r"}`,
		`[1]`:                                  `{"errorMessage":"[1]","errorType":"Runtime.Unknown","requestId":"r"}`,
	} {
		if got, _ := functionError([]byte(in), "r"); string(got) != want || !json.Valid(got) {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func BenchmarkInvoke(b *testing.B) {
	n := newNode(b, &runtimetest.Fake{}, nil)
	id := n.create(nil)
	r := request(id, `{"key":"value"}`)
	r.LogTail = false
	r.RequestId = uuid.NewString()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.Invoke(context.Background(), r, nil); err != nil {
			b.Fatal(err)
		}
	}
}
