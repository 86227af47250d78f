package runtimeapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

const extensionAPI = "/2020-01-01/extension/"

// newExtended is a loaded agent with extensions that live in the test only.
func newExtended(t *testing.T, names ...string) (a *agent, processes map[string]*fakeProcess) {
	t.Helper()
	processes = map[string]*fakeProcess{}
	started := make(chan string)
	var all []Extension
	for _, name := range names {
		p := newFakeProcess()
		processes[name] = p
		all = append(all, Extension{Name: name, Start: func([]string, func([]byte)) (Process, error) {
			started <- name
			return p, nil
		}})
	}
	a = newAgent(t, nil, all...)
	a.load()
	for range names {
		<-started
	}
	return a, processes
}

func (a *agent) register(name, events string) reply {
	a.t.Helper()
	return a.call("POST", extensionAPI+"register", http.Header{extensionNameHeader: {name}}, strings.NewReader(`{"events":[`+events+`]}`))
}

// mustRegister returns the extension's identifier, as its only header.
func (a *agent) mustRegister(name, events string) http.Header {
	a.t.Helper()
	r := a.register(name, events)
	if r.status != http.StatusOK {
		a.t.Fatalf("register: %+v", r)
	}
	return http.Header{extensionIDHeader: {r.header.Get(extensionIDHeader)}}
}

func (a *agent) waitNext(id http.Header) <-chan reply {
	return a.later("GET", extensionAPI+"event/next", id, nil)
}

type extensionEvent struct {
	EventType, RequestID, InvokedFunctionArn, ShutdownReason string
	DeadlineMs                                               int64
	Tracing                                                  struct{ Type, Value string }
}

func eventOf(t *testing.T, r reply) extensionEvent {
	t.Helper()
	var e extensionEvent
	if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != http.StatusOK || r.header.Get(eventIDHeader) == "" {
		t.Fatalf("event %+v: %v", r, err)
	}
	return e
}

// One life: the function starts when all have registered, is ready when all wait, and ends before they do.
func TestExtensionLife(t *testing.T) {
	a, processes := newExtended(t, "one", "two")
	one := a.mustRegister("one", `"INVOKE","SHUTDOWN"`)
	select {
	case <-a.env:
		t.Fatal("the function started although an extension has not registered")
	default:
	}
	two := a.mustRegister("two", `"SHUTDOWN"`)
	<-a.env
	next := a.later("GET", "invocation/next", nil, nil)
	oneNext, twoNext := a.waitNext(one), a.waitNext(two)
	var ready frame.Ready
	a.expectJSON(frame.TypeReady, &ready)
	if ready.ShutdownMS != 2000 {
		t.Errorf("ready %+v", ready)
	}
	if !strings.Contains(a.log.String(), "EXTENSION\tName: two\tState: Ready\tEvents: [SHUTDOWN]\n") {
		t.Errorf("log %q", a.log.String())
	}
	a.invoke(frame.Invoke{RequestID: "id", ARN: "arn", DeadlineMS: 77, TraceID: "Root=1"}, "1")
	if r := <-next; r.body != "1" {
		t.Errorf("next: %+v", r)
	}
	e := eventOf(t, <-oneNext)
	if e.EventType != "INVOKE" || e.RequestID != "id" || e.InvokedFunctionArn != "arn" || e.DeadlineMs != 77 || e.Tracing.Value != "Root=1" {
		t.Errorf("event %+v", e)
	}
	oneNext = a.waitNext(one)
	a.send(frame.TypeShutdown, frame.Shutdown{Reason: "spindown"})
	for name, got := range map[string]<-chan reply{"one": oneNext, "two": twoNext} {
		e := eventOf(t, <-got)
		if e.EventType != "SHUTDOWN" || e.ShutdownReason != "spindown" || e.DeadlineMs == 0 {
			t.Errorf("event of %s: %+v", name, e)
		}
		if a.function.Status() == 0 {
			t.Error("the function still runs")
		}
		processes[name].exit(0)
	}
	if status, err := a.end(); status != 0 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

// The event after one that an extension is busy with waits for it, and is not lost with its caller.
func TestBusyExtensionHoldsTheNextEvent(t *testing.T) {
	a, _ := newExtended(t, "one")
	one := a.mustRegister("one", `"INVOKE"`)
	next, oneNext := a.later("GET", "invocation/next", nil, nil), a.waitNext(one)
	a.expect(frame.TypeReady)
	a.invoke(frame.Invoke{RequestID: "first"}, "1")
	<-next
	eventOf(t, <-oneNext)
	r := a.later("POST", "invocation/first/response", nil, strings.NewReader("1"))
	a.expect(frame.TypeResult)
	<-r
	next = a.later("GET", "invocation/next", nil, nil)
	a.invoke(frame.Invoke{RequestID: "second"}, "2")
	select {
	case r := <-next:
		t.Fatalf("the function got %+v while the extension is busy", r)
	case <-time.After(50 * time.Millisecond): // it can only be seen not to come
	}
	oneNext = a.waitNext(one)
	if r := <-next; r.body != "2" {
		t.Errorf("next: %+v", r)
	}
	if e := eventOf(t, <-oneNext); e.RequestID != "second" {
		t.Errorf("event %+v", e)
	}
}

func TestRegistrationsThatAreRefused(t *testing.T) {
	a, _ := newExtended(t, "one", "two")
	refused := func(r reply, kind string) {
		t.Helper()
		expectReply(t, r, http.StatusForbidden, kind)
	}
	refused(a.register("", `"INVOKE"`), "Extension.InvalidExtensionName")
	refused(a.register("one", `"PARTY"`), "Extension.InvalidEventType")
	refused(a.register("one", `INVOKE`), "InvalidRequestFormat")
	refused(a.register("inside", `"INVOKE"`), "Extension.RegistrationClosed") // no function runs yet
	id := a.mustRegister("one", "")
	refused(a.register("one", `"INVOKE"`), "Extension.InvalidExtensionState")
	a.mustRegister("two", "")
	<-a.env
	refused(a.register("inside", `"SHUTDOWN"`), "Extension.InvalidEventType")
	for i := range maxExtensions - 2 {
		a.mustRegister(strings.Repeat("x", i+1), "")
	}
	refused(a.register("inside", ""), "Extension.TooManyExtensions")
	refused(a.call("GET", extensionAPI+"event/next", nil, nil), "Extension.MissingExtensionIdentifier")
	refused(a.call("GET", extensionAPI+"event/next", http.Header{extensionIDHeader: {"who"}}, nil), "Extension.UnknownExtensionIdentifier")
	refused(a.call("POST", extensionAPI+"init/error", id, nil), "Extension.MissingHeader")
	later := a.later("GET", "invocation/next", nil, nil)
	for !strings.Contains(a.register("late", "").body, "Extension.RegistrationClosed") { // until the function has asked for its first event
	}
	a.conn.Close()
	<-later
}

// withExtension makes an agent whose only extension has registered, and whose function waits if it is ready.
func withExtension(t *testing.T, ready bool) (a *agent, id http.Header, p *fakeProcess) {
	t.Helper()
	a, processes := newExtended(t, "one")
	id = a.mustRegister("one", "")
	if ready {
		next := a.later("GET", "invocation/next", nil, nil)
		idle := a.waitNext(id)
		a.expect(frame.TypeReady)
		t.Cleanup(func() { <-idle })
		a.invoke(frame.Invoke{RequestID: "id"}, "1")
		<-next
	}
	return a, id, processes["one"]
}

func failing(id http.Header) http.Header {
	h := id.Clone()
	h.Set(extensionTypeHeader, "Extension.Odd")
	return h
}

func TestExtensionFailsInInit(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(a *agent, id http.Header, p *fakeProcess)
		want frame.Error
	}{
		"init/error": {func(a *agent, id http.Header, _ *fakeProcess) {
			a.later("POST", extensionAPI+"init/error", failing(id), nil)
		}, frame.Error{Type: "Extension.InitError", Message: "Error: extension one: Extension.Odd"}},
		"exit/error": {func(a *agent, id http.Header, _ *fakeProcess) {
			a.later("POST", extensionAPI+"exit/error", failing(id), nil)
		}, frame.Error{Type: "Extension.ExitError", Message: "Error: extension one: Extension.Odd"}},
		"crash": {func(_ *agent, _ http.Header, p *fakeProcess) { p.exit(2) }, frame.Error{Type: "Extension.Crash", Message: "Error: extension one: exit code 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, id, p := withExtension(t, false)
			c.do(a, id, p)
			var got frame.Error
			a.expectJSON(frame.TypeInitError, &got)
			if got.Type != c.want.Type || got.Message != c.want.Message {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if status, err := a.end(); status != 1 || err != nil {
				t.Errorf("Serve: %d, %v", status, err)
			}
		})
	}
}

func TestExtensionCrashesWhileTheFunctionRuns(t *testing.T) {
	a, id, p := withExtension(t, true)
	expectReply(t, a.call("POST", extensionAPI+"init/error", failing(id), nil), http.StatusForbidden, "Extension.InvalidExtensionState")
	p.exit(7)
	var got frame.Exit
	a.expectJSON(frame.TypeExit, &got)
	if got.Error == nil || got.Error.Type != "Extension.Crash" {
		t.Errorf("%+v", got)
	}
	if status, err := a.end(); status != 1 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

func TestFunctionExitsBesideAnExtension(t *testing.T) {
	a, _, _ := withExtension(t, true)
	a.function.exit(6)
	var got frame.Exit
	a.expectJSON(frame.TypeExit, &got)
	if got.Status != 6 || got.Error != nil {
		t.Errorf("%+v", got)
	}
	if status, err := a.end(); status != 6 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

// That a kill was for want of memory shows when process 1 ends only.
func TestKilledFunctionIsNotTold(t *testing.T) {
	a, _, _ := withExtension(t, true)
	a.function.exit(statusKilled)
	if status, err := a.end(); status != statusKilled || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
	if _, _, err := frame.Read(a.conn); err == nil {
		t.Error("the agent was told of the exit")
	}
}

func TestExtensionThatCannotStart(t *testing.T) {
	a := newAgent(t, nil, Extension{Name: "one", Start: func([]string, func([]byte)) (Process, error) { return nil, errors.New("exec format error") }})
	a.load()
	var got frame.Error
	a.expectJSON(frame.TypeInitError, &got)
	if got.Type != "Extension.LaunchError" || got.Message != "exec format error" {
		t.Errorf("%+v", got)
	}
	if status, err := a.end(); status != 1 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
}

// With internal extensions alone the function has half a second, and is killed then.
func TestInternalExtensionsShutDown(t *testing.T) {
	a := newAgent(t, nil)
	a.function.deaf = true
	a.load()
	<-a.env
	id := a.mustRegister("inside", `"INVOKE"`)
	next := a.later("GET", "invocation/next", nil, nil)
	idle := a.waitNext(id)
	var ready frame.Ready
	a.expectJSON(frame.TypeReady, &ready)
	if ready.ShutdownMS != 500 {
		t.Errorf("ready %+v", ready)
	}
	started := time.Now()
	a.send(frame.TypeShutdown, frame.Shutdown{})
	if status, err := a.end(); status != 0 || err != nil {
		t.Errorf("Serve: %d, %v", status, err)
	}
	if took := time.Since(started); took < internalLimit || a.function.Status() != statusKilled {
		t.Errorf("after %s, status %d", took, a.function.Status())
	}
	<-next
	<-idle
}
