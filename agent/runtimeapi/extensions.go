package runtimeapi

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

const (
	// maxExtensions is Lambda's limit, external and internal ones together.
	maxExtensions = 10
	// impatience is when the log names the extensions that the init still waits for.
	impatience = 5 * time.Second

	extensionNameHeader = "Lambda-Extension-Name"
	extensionIDHeader   = "Lambda-Extension-Identifier"
	eventIDHeader       = "Lambda-Extension-Event-Identifier"
	extensionTypeHeader = "Lambda-Extension-Function-Error-Type"

	eventInvoke   = "INVOKE"
	eventShutdown = "SHUTDOWN"
)

// extensionState is where an extension is, under AWS's names.
type extensionState string

const (
	extStarted    extensionState = "Started"
	extRegistered extensionState = "Registered"
	extReady      extensionState = "Ready" // has asked for an event since the last one
	extRunning    extensionState = "Running"
	extInitError  extensionState = "InitError"
	extExitError  extensionState = "ExitError"
)

// extension is one that registered or, if it is external, will.
type extension struct {
	name, id string
	external bool
	process  Process
	state    extensionState
	events   []string
	polling  bool
	inbox    chan []byte
}

func (e *extension) wants(event string) bool { return slices.Contains(e.events, event) }

// extensions are all of a sandbox, in the order of their registration; the server's lock guards them.
type extensions struct {
	all        []*extension
	unknown    int           // external ones that haven't registered
	registered chan struct{} // closed when all external ones have
	changed    chan struct{} // closed, and replaced, when one becomes idle
}

func newExtensions(external []Extension) extensions {
	x := extensions{registered: make(chan struct{}), changed: make(chan struct{}), unknown: len(external)}
	for _, e := range external {
		x.all = append(x.all, newExtension(e.Name, true))
	}
	if len(external) == 0 {
		close(x.registered)
	}
	return x
}

// newExtension makes an extension whose inbox has room for the two events that may wait: INVOKE and SHUTDOWN.
func newExtension(name string, external bool) *extension {
	return &extension{name: name, id: newID(), external: external, state: extStarted, inbox: make(chan []byte, 2)}
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func (x *extensions) allIdle() bool {
	for _, e := range x.all {
		if e.state != extReady {
			return false
		}
	}
	return true
}

func (x *extensions) byName(name string) *extension {
	for _, e := range x.all {
		if e.name == name {
			return e
		}
	}
	return nil
}

// tellInvoke sends INVOKE to those that want it.
func (x *extensions) tellInvoke(meta frame.Invoke) {
	for _, e := range x.all {
		if e.wants(eventInvoke) {
			e.state = extRunning
			e.inbox <- invokeEvent(meta) // idle extensions have an empty inbox
		}
	}
}

func invokeEvent(meta frame.Invoke) []byte {
	event := map[string]any{
		"eventType": eventInvoke, "deadlineMs": meta.DeadlineMS, "requestId": meta.RequestID, "invokedFunctionArn": meta.ARN,
	}
	if meta.TraceID != "" {
		event["tracing"] = map[string]string{"type": traceType, "value": meta.TraceID}
	}
	body, _ := json.Marshal(event) // plain values
	return body
}

// startExtensions starts the external extensions and waits until all have registered.
func (s *server) startExtensions(external []Extension, env []string) bool {
	for i, e := range external {
		if i == maxExtensions {
			s.fail(frame.Error{Type: "Extension.TooManyExtensions", Message: fmt.Sprintf("Extension limit (%d) reached", maxExtensions)})
			return false
		}
		p, err := e.Start(env, s.telemetry.capture(categoryExtension))
		if err != nil {
			s.fail(frame.Error{Type: "Extension.LaunchError", Message: err.Error()})
			return false
		}
		s.mu.Lock()
		s.all[i].process = p
		s.mu.Unlock()
		s.watch(p, func(status int) { s.extensionEnded(e.Name, status) })
	}
	for {
		select {
		case <-s.registered:
			return true
		case <-s.gone:
			return false
		case <-time.After(impatience):
			s.nameMissing()
		}
	}
}

// nameMissing tells in the log whom the init waits for.
func (s *server) nameMissing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if e.state == extStarted {
			fmt.Fprintf(s.cfg.Log, "EXTENSION\tName: %s\tState: %s\tEvents: []\tIt has not registered: the function starts when it has\n", e.name, e.state)
		}
	}
}

// announce writes a line about each extension to the log, as Lambda does.
func (s *server) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		fmt.Fprintf(s.cfg.Log, "EXTENSION\tName: %s\tState: %s\tEvents: [%s]\n", e.name, e.state, strings.Join(e.events, ","))
		s.emitExtension(e, "")
	}
}

func (s *server) extensionEnded(name string, status int) {
	s.fail(frame.Error{Type: "Extension.Crash", Message: fmt.Sprintf("Error: extension %s: exit code %d", name, status)})
}

func (s *server) register(w http.ResponseWriter, r *http.Request) {
	name := r.Header.Get(extensionNameHeader)
	if name == "" {
		refuse(w, http.StatusForbidden, "Extension.InvalidExtensionName", "Empty extension name")
		return
	}
	var request struct{ Events []string }
	body, _, err := readBody(r)
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(body)).Decode(&request)
	}
	if err != nil {
		refuse(w, http.StatusForbidden, "InvalidRequestFormat", err.Error())
		return
	}
	id, refusal := s.admit(name, request.Events)
	if refusal != nil {
		refuse(w, http.StatusForbidden, refusal.Type, refusal.Message)
		return
	}
	s.mu.Lock()
	f := s.function
	s.mu.Unlock()
	w.Header().Set(extensionIDHeader, id)
	writeJSON(w, http.StatusOK, map[string]string{"functionName": f.FunctionName, "functionVersion": f.FunctionVersion, "handler": f.Handler})
}

// admit registers an extension, and says why it doesn't.
func (s *server) admit(name string, events []string) (id string, refusal *frame.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName(name)
	if e == nil {
		e = newExtension(name, false)
	}
	for _, event := range events {
		if event != eventInvoke && (event != eventShutdown || !e.external) {
			return "", &frame.Error{Type: "Extension.InvalidEventType", Message: event + ": " + invalidEvent(event)}
		}
	}
	switch {
	case !e.external && (s.phase != started || !s.launched):
		return "", &frame.Error{Type: "Extension.RegistrationClosed", Message: "Extension registration closed already"}
	case e.state != extStarted:
		return "", &frame.Error{Type: "Extension.InvalidExtensionState", Message: "Extension with this name already registered"}
	case !e.external && len(s.all) >= maxExtensions:
		return "", &frame.Error{Type: "Extension.TooManyExtensions", Message: fmt.Sprintf("Extension limit (%d) reached", maxExtensions)}
	}
	e.state, e.events = extRegistered, events
	if !e.external {
		s.all = append(s.all, e)
		return e.id, nil
	}
	if s.unknown--; s.unknown == 0 {
		close(s.registered)
	}
	return e.id, nil
}

func invalidEvent(event string) string {
	if event == eventShutdown {
		return "SHUTDOWN event is not supported for internal extensions"
	}
	return "unknown event"
}

// identify finds the extension that calls; nil: the call is refused.
func (s *server) identify(w http.ResponseWriter, r *http.Request) *extension {
	id := r.Header.Get(extensionIDHeader)
	if id == "" {
		refuse(w, http.StatusForbidden, "Extension.MissingExtensionIdentifier", "Missing "+extensionIDHeader+" header")
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if strings.EqualFold(e.id, id) {
			return e
		}
	}
	refuse(w, http.StatusForbidden, "Extension.UnknownExtensionIdentifier", "Unknown extension "+id)
	return nil
}

func (s *server) nextEvent(w http.ResponseWriter, r *http.Request) {
	e := s.identify(w, r)
	if e == nil || !s.startEvent(w, e) {
		return
	}
	defer s.stopEvent(e)
	if err := s.settle(); err != nil {
		refuse(w, http.StatusInternalServerError, "Platform.AgentLost", err.Error())
		return
	}
	select {
	case event := <-e.inbox:
		w.Header().Set(eventIDHeader, newID())
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(event) // an extension that is gone exits, which is seen
	case <-r.Context().Done():
	case <-s.gone:
		refuse(w, http.StatusInternalServerError, "Platform.Shutdown", "the sandbox is shutting down")
	}
}

// startEvent makes an extension idle: it waits for an event.
func (s *server) startEvent(w http.ResponseWriter, e *extension) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.polling || e.state == extInitError || e.state == extExitError {
		refuseExtension(w, e, extReady)
		return false
	}
	e.polling = true
	if len(e.inbox) == 0 { // else it has not seen its last event
		e.state = extReady
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return true
}

func (s *server) stopEvent(e *extension) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.polling = false
}

func refuseExtension(w http.ResponseWriter, e *extension, to extensionState) {
	refuse(w, http.StatusForbidden, "Extension.InvalidExtensionState",
		fmt.Sprintf("State transition from %s to %s failed for extension %s. Error: State transition is not allowed", e.state, to, e.id))
}

func (s *server) extensionInitError(w http.ResponseWriter, r *http.Request) {
	s.extensionError(w, r, extInitError, "Extension.InitError")
}

func (s *server) extensionExitError(w http.ResponseWriter, r *http.Request) {
	s.extensionError(w, r, extExitError, "Extension.ExitError")
}

// extensionError takes an extension's word that it can't go on; the sandbox ends with it.
func (s *server) extensionError(w http.ResponseWriter, r *http.Request, to extensionState, kind string) {
	e := s.identify(w, r)
	if e == nil {
		return
	}
	cause := r.Header.Get(extensionTypeHeader)
	if cause == "" {
		refuse(w, http.StatusForbidden, "Extension.MissingHeader", extensionTypeHeader+" not found")
		return
	}
	if !s.breakDown(w, e, to, cause) {
		return
	}
	accept(w)
	s.fail(frame.Error{Type: kind, Message: fmt.Sprintf("Error: extension %s: %s", e.name, cause)})
}

// breakDown allows init/error before the first event, and exit/error once registered.
func (s *server) breakDown(w http.ResponseWriter, e *extension, to extensionState, cause string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state == extInitError || e.state == extExitError || e.state == extStarted || (to == extInitError && e.state != extRegistered) {
		refuseExtension(w, e, to)
		return false
	}
	e.state = to
	s.emitExtension(e, cause)
	return true
}
