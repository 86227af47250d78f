package runtimeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	const runtime = "/2018-06-01/runtime/"
	mux.HandleFunc("GET "+runtime+"invocation/next", s.next)
	mux.HandleFunc("POST "+runtime+"invocation/{id}/response", s.response)
	mux.HandleFunc("POST "+runtime+"invocation/{id}/error", s.invocationError)
	mux.HandleFunc("POST "+runtime+"init/error", s.initError)
	const extension = "/2020-01-01/extension/"
	mux.HandleFunc("POST "+extension+"register", s.register)
	mux.HandleFunc("GET "+extension+"event/next", s.nextEvent)
	mux.HandleFunc("POST "+extension+"init/error", s.extensionInitError)
	mux.HandleFunc("POST "+extension+"exit/error", s.extensionExitError)
	mux.HandleFunc("PUT /2022-07-01/telemetry", s.subscribe)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %s is no call of the Runtime, Extensions or Telemetry API", r.Method, r.URL.Path))
	})
	return mux
}

func (s *server) next(w http.ResponseWriter, r *http.Request) {
	again, ok := s.startPolling(w)
	if !ok {
		return
	}
	if again != nil { // its connection broke, perhaps
		writeEvent(w, *again)
		return
	}
	defer s.stopPolling()
	if err := s.settle(); err != nil {
		refuse(w, http.StatusInternalServerError, "Platform.AgentLost", err.Error())
		return
	}
	select {
	case e := <-s.events:
		if s.began(r.Context(), e) {
			writeEvent(w, e)
		}
	case <-r.Context().Done():
	case <-s.gone:
		refuse(w, http.StatusInternalServerError, "Platform.Shutdown", "the sandbox is shutting down")
	}
}

// startPolling claims the one place of a caller that waits for an event. A function that has one gets it again.
func (s *server) startPolling(w http.ResponseWriter) (again *event, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == running && !s.polling:
		e := s.current
		return &e, true
	case s.polling || (s.phase != started && s.phase != ready && s.phase != responseSent):
		s.refuseTransition(w, ready)
		return nil, false
	}
	s.phase, s.polling = ready, true
	s.emitRuntimeDone()
	return nil, true
}

func (s *server) stopPolling() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polling = false
}

// settle tells the agent, once, that the function and all extensions are ready.
func (s *server) settle() error {
	s.mu.Lock()
	idle := s.phase == ready && s.allIdle()
	first := idle && !s.readySent
	if first {
		s.readySent, s.initTook = true, time.Since(s.initStart)
	}
	if idle {
		s.emitReport()
	}
	limit, took := s.shutdownLimit(), s.initTook
	s.mu.Unlock()
	switch {
	case !first:
		return nil
	case limit == 0:
		s.telemetry.close()
		return s.send(frame.TypeReady, nil)
	}
	s.telemetry.emitInitDone(took, statusSuccess, "")
	s.announce()
	s.telemetry.close()
	return s.sendJSON(frame.TypeReady, frame.Ready{ShutdownMS: int(limit.Milliseconds())})
}

// began makes e the running event once no extension is busy with the one before. If the caller goes first, e waits for
// the next one.
func (s *server) began(ctx context.Context, e event) bool {
	for {
		s.mu.Lock()
		if s.allIdle() {
			s.phase, s.current = running, e
			s.emitStart(e.meta)
			s.tellInvoke(e.meta)
			s.mu.Unlock()
			return true
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			s.events <- e // there is room: the agent sends no other before this is answered
			return false
		case <-s.gone:
			return false
		}
	}
}

func writeEvent(w http.ResponseWriter, e event) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(e.payload)))
	h.Set("Lambda-Runtime-Aws-Request-Id", e.meta.RequestID)
	h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(e.meta.DeadlineMS, 10))
	h.Set("Lambda-Runtime-Invoked-Function-Arn", e.meta.ARN)
	for name, value := range map[string]string{
		"Lambda-Runtime-Trace-Id":         e.meta.TraceID,
		"Lambda-Runtime-Client-Context":   e.meta.ClientContext,
		"Lambda-Runtime-Cognito-Identity": e.meta.CognitoContext,
	} {
		if value != "" {
			h.Set(name, value)
		}
	}
	_, _ = w.Write(e.payload) // a caller that is gone asks again, or exits, which the agent sees
}

// startAnswer checks that id is running, and makes its answer the one that counts.
func (s *server) startAnswer(w http.ResponseWriter, id string, to phase) (meta frame.Invoke, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" || id != s.current.meta.RequestID {
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
		return meta, false
	}
	if s.phase != running {
		s.refuseTransition(w, to)
		return meta, false
	}
	s.phase, s.current.payload = to, nil
	s.measured.answered = time.Now()
	return s.current.meta, true
}

func (s *server) endAnswer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = responseSent
}

func (s *server) initError(w http.ResponseWriter, r *http.Request) {
	took, ok := s.startInitError(w)
	if !ok {
		return
	}
	body, tooLarge, err := readBody(r)
	failure := errorBody(body, r.Header.Get(errorTypeHeader)) // the type at least
	s.telemetry.emitInitDone(took, statusError, errorTypeOf(failure))
	told := s.send(frame.TypeInitError, failure)
	if err != nil || tooLarge {
		refuseBody(w, tooLarge, err)
		return
	}
	s.reply(w, told)
}

func (s *server) startInitError(w http.ResponseWriter) (took time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != started {
		s.refuseTransition(w, initError)
		return 0, false
	}
	s.phase = initError
	return time.Since(s.initStart), true
}

// reply answers 202, unless the agent could not be told.
func (s *server) reply(w http.ResponseWriter, err error) {
	if err != nil {
		refuse(w, http.StatusInternalServerError, "Platform.AgentLost", err.Error())
		return
	}
	accept(w)
}

func accept(w http.ResponseWriter) {
	writeJSON(w, http.StatusAccepted, map[string]string{"status": "OK"})
}

// refuseTransition is called with mu held.
func (s *server) refuseTransition(w http.ResponseWriter, to phase) {
	refuse(w, http.StatusForbidden, "InvalidStateTransition",
		fmt.Sprintf("State transition from %s to %s failed for runtime. Error: State transition is not allowed", s.phase, to))
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	writeJSON(w, status, map[string]string{"errorMessage": message, "errorType": kind})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a caller that is gone exits, which the agent sees
}
