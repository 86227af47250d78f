package runtimeapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

func (s *server) routes() http.Handler {
	const api = "/2018-06-01/runtime/"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api+"invocation/next", s.next)
	mux.HandleFunc("POST "+api+"invocation/{id}/response", s.response)
	mux.HandleFunc("POST "+api+"invocation/{id}/error", s.invocationError)
	mux.HandleFunc("POST "+api+"init/error", s.initError)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %s is no call of the Runtime API", r.Method, r.URL.Path))
	})
	return mux
}

func (s *server) next(w http.ResponseWriter, r *http.Request) {
	first, ok := s.startPolling(w)
	if !ok {
		return
	}
	defer s.stopPolling()
	if first {
		if err := s.send(frame.TypeReady, nil); err != nil {
			refuse(w, http.StatusInternalServerError, "Platform.AgentLost", err.Error())
			return
		}
	}
	select {
	case e := <-s.events:
		s.began(e)
		writeEvent(w, e)
	case <-r.Context().Done():
	case <-s.gone:
		refuse(w, http.StatusInternalServerError, "Platform.Shutdown", "the sandbox is shutting down")
	}
}

// startPolling claims the one place of a caller that waits for an event.
func (s *server) startPolling(w http.ResponseWriter) (first, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.polling || (s.phase != ready && s.phase != starting) {
		s.refuseTransition(w, "Ready")
		return false, false
	}
	first = s.phase == starting
	s.phase, s.polling = ready, true
	return first, true
}

func (s *server) stopPolling() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polling = false
}

func (s *server) began(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.current = running, e.meta
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
	_, _ = w.Write(e.payload) // a caller that is gone exits, which the agent sees
}

// startAnswer checks that id is running, and makes its answer the one that counts.
func (s *server) startAnswer(w http.ResponseWriter, id string) (meta frame.Invoke, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" || id != s.current.RequestID {
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
		return meta, false
	}
	if s.phase != running {
		s.refuseTransition(w, "InvocationResponse")
		return meta, false
	}
	s.phase = answering
	return s.current, true
}

func (s *server) endAnswer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = ready
}

func (s *server) initError(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != starting {
		s.refuseTransition(w, "InitError")
		return
	}
	body, tooLarge, err := readBody(r)
	if err != nil || tooLarge {
		refuseBody(w, tooLarge, err)
		return
	}
	s.phase = failed
	s.reply(w, s.sendJSON(frame.TypeInitError, decodeError(body, r.Header.Get(errorTypeHeader))))
}

// reply answers 202, unless the agent could not be told.
func (s *server) reply(w http.ResponseWriter, err error) {
	if err != nil {
		refuse(w, http.StatusInternalServerError, "Platform.AgentLost", err.Error())
		return
	}
	writeJSON(w, http.StatusAccepted, map[string]string{"status": "OK"})
}

// refuseTransition is called with mu held.
func (s *server) refuseTransition(w http.ResponseWriter, to string) {
	refuse(w, http.StatusForbidden, "InvalidStateTransition",
		fmt.Sprintf("State transition from %s to %s is not allowed", s.phase, to))
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
