package runtimeapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

type telemetryRecord struct {
	Time   time.Time
	Type   string
	Record json.RawMessage
}

// listener is an extension's server for telemetry.
type listener struct {
	got    chan telemetryRecord
	refuse atomic.Bool
	port   string
}

func newListener(t *testing.T) *listener {
	t.Helper()
	l := &listener{got: make(chan telemetryRecord, 10_000)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.refuse.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(r.Body)
		var all []telemetryRecord
		if err := json.Unmarshal(body, &all); err != nil || r.Method != http.MethodPost || r.URL.Path != "/here" {
			t.Errorf("%s %s %q: %v", r.Method, r.URL, body, err)
		}
		for _, e := range all {
			l.got <- e
		}
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	l.port = u.Port()
	return l
}

// expect waits for the next event, which must be of a type.
func (l *listener) expect(t *testing.T, kind string) string {
	t.Helper()
	select {
	case e := <-l.got:
		if e.Type != kind || e.Time.IsZero() {
			t.Fatalf("event %s %s at %s, want %s", e.Type, e.Record, e.Time, kind)
		}
		return string(e.Record)
	case <-time.After(time.Minute):
		t.Fatalf("no event; want %s", kind)
		return ""
	}
}

func (a *agent) subscribe(id http.Header, body string) reply {
	a.t.Helper()
	return a.call("PUT", "/2022-07-01/telemetry", id, strings.NewReader(body))
}

func (l *listener) body(types ...string) string {
	return fmt.Sprintf(`{"schemaVersion":"2022-12-13","types":["%s"],"buffering":{"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:%s/here"}}`,
		strings.Join(types, `","`), l.port)
}

func TestTelemetryOfAnInvocation(t *testing.T) {
	a, processes := newExtended(t, "one")
	id := a.mustRegister("one", `"INVOKE","SHUTDOWN"`)
	l := newListener(t)
	if r := a.subscribe(id, l.body("platform")); r.status != http.StatusOK || r.body != "\"OK\"\n" {
		t.Fatalf("%+v", r)
	}
	l.expect(t, "platform.initStart")
	if r := l.expect(t, "platform.telemetrySubscription"); r != `{"name":"one","state":"Subscribed","types":["platform"]}` {
		t.Error(r)
	}
	next, event := a.later("GET", "invocation/next", nil, nil), a.waitNext(id)
	a.expect(frame.TypeReady)
	if r := l.expect(t, "platform.initRuntimeDone"); r != `{"initializationType":"on-demand","phase":"init","status":"success"}` {
		t.Error(r)
	}
	l.expect(t, "platform.initReport")
	if r := l.expect(t, "platform.extension"); r != `{"events":["INVOKE","SHUTDOWN"],"name":"one","state":"Ready"}` {
		t.Error(r)
	}
	a.invoke(frame.Invoke{RequestID: "id", TraceID: "Root=1"}, "1")
	<-next
	<-event
	if r := l.expect(t, "platform.start"); r != `{"requestId":"id","tracing":{"type":"X-Amzn-Trace-Id","value":"Root=1"},"version":"3"}` {
		t.Error(r)
	}
	answer := a.later("POST", "invocation/id/error", nil, strings.NewReader(`{"errorType":"Odd","stackTrace":[{"line":1}]}`))
	a.expect(frame.TypeError)
	<-answer
	next = a.later("GET", "invocation/next", nil, nil)
	var done struct {
		RequestID, Status, ErrorType string
		Metrics                      struct{ DurationMs, ProducedBytes float64 }
		Spans                        []struct{ Name string }
	}
	if r := l.expect(t, "platform.runtimeDone"); json.Unmarshal([]byte(r), &done) != nil || done.RequestID != "id" || done.Status != "error" ||
		done.ErrorType != "Odd" || done.Metrics.ProducedBytes != 45 || len(done.Spans) != 3 {
		t.Errorf("%s", r)
	}
	event = a.waitNext(id)
	var report struct {
		RequestID string
		Metrics   map[string]float64
	}
	if r := l.expect(t, "platform.report"); json.Unmarshal([]byte(r), &report) != nil || report.RequestID != "id" || report.Metrics["memorySizeMB"] != 256 ||
		report.Metrics["initDurationMs"] == 0 || report.Metrics["billedDurationMs"] < report.Metrics["durationMs"] {
		t.Errorf("%s", r)
	}
	expectReply(t, a.subscribe(id, l.body("platform")), http.StatusForbidden, "Telemetry.SubscriptionClosed")
	a.invoke(frame.Invoke{RequestID: "late"}, "1")
	<-next
	<-event
	l.expect(t, "platform.start")
	event = a.waitNext(id)
	a.send(frame.TypeShutdown, frame.Shutdown{Reason: "timeout"})
	<-event
	if r := l.expect(t, "platform.runtimeDone"); !strings.Contains(r, `"status":"timeout"`) { // before SHUTDOWN was told
		t.Error(r)
	}
	l.expect(t, "platform.report")
	processes["one"].exit(0)
	a.end()
}

func TestTelemetryOfOutput(t *testing.T) {
	l := newListener(t)
	telemetry := newTelemetry()
	telemetry.capture(categoryFunction)([]byte("early\r\n"))
	limits := buffering{TimeoutMS: 25}
	if err := limits.check(); err != nil {
		t.Fatal(err)
	}
	s := newSubscriber([]string{categoryFunction}, limits, "http://127.0.0.1:"+l.port+"/here")
	if !telemetry.add(s) {
		t.Fatal("not added")
	}
	go s.run(t.Context())
	telemetry.capture(categoryExtension)([]byte("not wanted\n"))
	telemetry.capture(categoryFunction)([]byte("late"))
	for _, want := range []string{`"early"`, `"late"`} {
		if got := l.expect(t, "function"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A subscriber that fails gets everything later, up to a limit, and is told what it has missed.
func TestTelemetryThatNobodyTakes(t *testing.T) {
	l := newListener(t)
	l.refuse.Store(true)
	limits := buffering{TimeoutMS: 25, MaxItems: 1000, MaxBytes: 262_144}
	s := newSubscriber([]string{categoryFunction}, limits, "http://127.0.0.1:"+l.port+"/here")
	s.room = 100 << 10
	line := []byte(`{"time":"2026-01-02T03:04:05Z","type":"function","record":"` + strings.Repeat("x", 1000) + `"}`)
	const lines = 200
	for range lines {
		s.offer(categoryFunction, line)
	}
	if s.sendBatch(t.Context()) || s.size > s.room {
		t.Fatalf("%d bytes wait", s.size)
	}
	l.refuse.Store(false)
	kept := len(s.waiting)
	s.flush(time.Now().Add(time.Minute))
	got := 0
	for len(l.got) > 0 {
		e := <-l.got
		if e.Type == "function" {
			got++
			continue
		}
		want := fmt.Sprintf(`"droppedBytes":%d,"droppedRecords":%d`, (lines-kept)*len(line), lines-kept)
		if e.Type != "platform.logsDropped" || !strings.Contains(string(e.Record), want) {
			t.Errorf("%s %s, want %s", e.Type, e.Record, want)
		}
	}
	if got != kept || kept == lines {
		t.Errorf("%d of %d events, %d kept", got, lines, kept)
	}
}

// A subscriber that never answers delays neither the shutdown phase nor the end.
func TestTelemetryIntoTheVoid(t *testing.T) {
	var called, given atomic.Int32
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		called.Add(1)
		io.Copy(io.Discard, r.Body) // only then is it seen that the caller has gone
		<-r.Context().Done()
		given.Add(1)
	}))
	defer hung.Close()
	u, err := url.Parse(hung.URL)
	if err != nil {
		t.Fatal(err)
	}
	a, processes := newExtended(t, "one")
	id := a.mustRegister("one", `"SHUTDOWN"`)
	a.subscribe(id, (&listener{port: u.Port()}).body("platform"))
	next, event := a.later("GET", "invocation/next", nil, nil), a.waitNext(id)
	a.expect(frame.TypeReady)
	for called.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	a.send(frame.TypeShutdown, frame.Shutdown{Reason: "spindown"})
	<-event
	if given.Load() > 0 {
		t.Error("SHUTDOWN was told when the delivery had timed out only")
	}
	processes["one"].exit(0)
	a.end()
	<-next
}

func TestSubscriptionsThatAreRefused(t *testing.T) {
	a, _ := newExtended(t, "one")
	id := a.mustRegister("one", "")
	l := &listener{port: "8080"}
	good := l.body("platform")
	for name, body := range map[string]string{
		"no JSON":       "{",
		"version":       strings.Replace(good, "2022-12-13", "1999-01-01", 1),
		"no type":       strings.Replace(good, `"platform"`, "", 1),
		"unknown type":  strings.Replace(good, `"platform"`, `"gossip"`, 1),
		"protocol":      strings.Replace(good, `"HTTP"`, `"TCP"`, 1),
		"another host":  strings.Replace(good, "sandbox.localdomain", "example.com", 1),
		"https":         strings.Replace(good, "http://", "https://", 1),
		"no URI":        strings.Replace(good, "http://", ":", 1),
		"too impatient": strings.Replace(good, `"timeoutMs":25`, `"timeoutMs":24`, 1),
		"too patient":   strings.Replace(good, `"timeoutMs":25`, `"timeoutMs":30001`, 1),
		"few items":     strings.Replace(good, `"timeoutMs":25`, `"maxItems":999`, 1),
		"many bytes":    strings.Replace(good, `"timeoutMs":25`, `"maxBytes":1048577`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			expectReply(t, a.subscribe(id, body), http.StatusBadRequest, "ValidationError")
		})
	}
	expectReply(t, a.subscribe(nil, good), http.StatusForbidden, "Extension.MissingExtensionIdentifier")
}

func TestBatches(t *testing.T) {
	s := newSubscriber([]string{categoryPlatform}, buffering{TimeoutMS: 60_000, MaxItems: 2, MaxBytes: 100}, "")
	if n, _ := s.batch(); n != 0 || s.due() < time.Minute {
		t.Errorf("an empty batch of %d, due in %s", n, s.due())
	}
	s.offer(categoryPlatform, []byte(`1`))
	if d := s.due(); d <= 0 || d > time.Minute {
		t.Errorf("one of two is due in %s", d)
	}
	s.offer(categoryPlatform, []byte(`2`))
	s.offer(categoryPlatform, []byte(`3`))
	if n, body := s.batch(); n != 2 || string(body) != "[1,2]" || s.due() != 0 {
		t.Errorf("%d %s, due in %s", n, body, s.due())
	}
	s.waiting = slices.Clone(s.waiting[:0])
	s.offer(categoryPlatform, []byte(strings.Repeat("4", 100)))
	if s.due() != 0 {
		t.Errorf("a large one is due in %s", s.due())
	}
}
