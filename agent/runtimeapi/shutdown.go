package runtimeapi

import (
	"encoding/json"
	"syscall"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// Lambda's limits of the shutdown phase. Without extensions there is none.
const (
	internalLimit = 500 * time.Millisecond // also for the function where there are external extensions
	externalLimit = 2 * time.Second

	statusKilled = 128 + int(syscall.SIGKILL)
)

// shutdownLimit is how long the shutdown phase may take.
func (x *extensions) shutdownLimit() time.Duration {
	limit := time.Duration(0)
	for _, e := range x.all {
		if e.external {
			return externalLimit
		}
		limit = internalLimit
	}
	return limit
}

// fail ends the sandbox for something that no process of the function did, and tells the agent if somebody waits.
func (s *server) fail(e frame.Error) {
	s.mu.Lock()
	first, starting, busy := !s.stopping, !s.readySent, s.busy()
	s.stopping = true
	s.mu.Unlock()
	switch {
	case !first:
		return
	case starting:
		_ = s.sendJSON(frame.TypeInitError, e) // without an agent the sandbox ends all the same
	case busy:
		_ = s.sendJSON(frame.TypeExit, frame.Exit{Status: exitFailed, Error: &e}) // as above
	}
	s.finish(end{reasonFailure, exitFailed, nil})
}

func (s *server) busy() bool {
	return s.phase == running || s.phase == responding || s.phase == errorResponding
}

// functionEnded ends the sandbox with the function's process. While extensions shut down, the agent knows already; but only
// process 1's own end tells it whether a kill was for want of memory.
func (s *server) functionEnded(status int) {
	s.mu.Lock()
	slow := s.shutdownLimit() == externalLimit && !s.stopping
	s.stopping = true
	told := slow && status != statusKilled && s.phase != initError && (!s.readySent || s.busy())
	s.mu.Unlock()
	if told {
		_ = s.sendJSON(frame.TypeExit, frame.Exit{Status: status}) // without an agent the sandbox ends all the same
	}
	s.finish(end{reasonFailure, status, nil})
}

// shutdown is the shutdown phase: the function ends first, so that extensions see all of it, then the external extensions
// that want to are told. Whoever takes too long is killed with process 1.
func (s *server) shutdown(reason string) {
	s.mu.Lock()
	s.stopping = true
	limit, p := s.shutdownLimit(), s.process
	s.mu.Unlock()
	if limit == 0 {
		return
	}
	deadline := time.Now().Add(limit)
	if p != nil {
		p.Signal(syscall.SIGTERM)
		ended(p, time.Now().Add(internalLimit))
		p.Signal(syscall.SIGKILL)
	}
	s.breakOff(reason)
	s.telemetry.flush()
	for _, e := range s.tellShutdown(reason, deadline) {
		ended(e, deadline)
	}
}

// tellShutdown sends SHUTDOWN and returns whom to wait for.
func (s *server) tellShutdown(reason string, deadline time.Time) []Process {
	event, _ := json.Marshal(map[string]any{ // plain values
		"eventType": eventShutdown, "shutdownReason": reason, "deadlineMs": deadline.UnixMilli(),
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	var told []Process
	for _, e := range s.all {
		if e.external && e.process != nil && e.wants(eventShutdown) {
			e.inbox <- event // there is room for it behind an INVOKE
			told = append(told, e.process)
		}
	}
	return told
}

// ended waits for the end of a process.
func ended(p Process, deadline time.Time) {
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-p.Ended():
	case <-t.C:
	}
}
