package runtimeapi

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// Categories of telemetry, which extensions subscribe to.
const (
	categoryPlatform  = "platform"
	categoryFunction  = "function"
	categoryExtension = "extension"
)

const (
	// maxBacklog is how many bytes of the init's events are kept for subscriptions to come.
	maxBacklog = 1 << 20
	// flushLimit is how much of the shutdown phase may pass before the extensions are told of it.
	flushLimit = 300 * time.Millisecond

	onDemand  = "on-demand"
	phaseInit = "init"
	traceType = "X-Amzn-Trace-Id"

	statusSuccess = "success"
	statusError   = "error"
	statusFailure = "failure"
	statusTimeout = "timeout"
)

// telemetry passes on what happens to the extensions that want to know. It costs next to nothing when there is none.
type telemetry struct {
	active atomic.Bool // somebody listens, or may still come

	mu          sync.Mutex
	closed      bool // no subscription comes any more
	backlog     []telemetryEvent
	kept        int // bytes in backlog
	subscribers []*subscriber
}

type telemetryEvent struct {
	category string
	body     []byte
}

func newTelemetry() *telemetry {
	t := &telemetry{}
	t.active.Store(true)
	return t
}

// emit tells the subscribers of a category.
func (t *telemetry) emit(category, kind string, record any) {
	if !t.active.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed && !slices.ContainsFunc(t.subscribers, func(s *subscriber) bool { return s.wants(category) }) {
		return
	}
	body, err := json.Marshal(map[string]any{"time": timestamp(time.Now()), "type": kind, "record": record})
	if err != nil {
		return // records are plain values
	}
	if !t.closed && t.kept+len(body) <= maxBacklog {
		t.backlog = append(t.backlog, telemetryEvent{category, body})
		t.kept += len(body)
	}
	for _, s := range t.subscribers {
		s.offer(category, body)
	}
}

func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// add begins a subscription with what has happened since the start; false: it comes too late.
func (t *telemetry) add(s *subscriber) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	for _, e := range t.backlog {
		s.offer(e.category, e.body)
	}
	t.subscribers = append(t.subscribers, s)
	return true
}

// close ends the time for subscriptions.
func (t *telemetry) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed, t.backlog = true, nil
	t.active.Store(len(t.subscribers) > 0)
}

// flush sends out what is buffered, if that does not take long.
func (t *telemetry) flush() {
	deadline := time.Now().Add(flushLimit)
	t.mu.Lock()
	all := t.subscribers
	t.mu.Unlock()
	var sent sync.WaitGroup
	for _, s := range all {
		sent.Go(func() { s.flush(deadline) })
	}
	sent.Wait()
}

// capture is for the output of a process.
func (t *telemetry) capture(category string) func(line []byte) {
	return func(line []byte) {
		t.emit(category, category, string(bytes.TrimRight(line, "\r\n")))
	}
}

// measured is what the telemetry of an invocation needs.
type measured struct {
	id, trace string
	begin     time.Time
	answered  time.Time // when its answer began
	sent      time.Time // and when it was complete
	done      time.Time
	produced  int
	status    string
	errorType string
	open      bool // its report has not been sent
}

// end notes how an answer ended.
func (m *measured) end(produced int, errorType string) {
	m.produced, m.sent = produced, time.Now()
	if errorType != "" {
		m.status, m.errorType = statusError, errorType
	}
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/float64(time.Microsecond)) / 1000 }

func (t *telemetry) emitInitStart(l frame.Load, runtime string) {
	t.emit(categoryPlatform, "platform.initStart", map[string]any{
		"initializationType": onDemand, "phase": phaseInit, "functionName": l.FunctionName, "functionVersion": l.FunctionVersion,
		"instanceMaxMemory": l.MemoryLimitMB << 20, "runtimeVersion": runtime,
	})
}

func (t *telemetry) emitInitDone(took time.Duration, status, errorType string) {
	record := map[string]any{"initializationType": onDemand, "phase": phaseInit, "status": status}
	if errorType != "" {
		record["errorType"] = errorType
	}
	t.emit(categoryPlatform, "platform.initRuntimeDone", record)
	record["metrics"] = map[string]float64{"durationMs": ms(took)}
	t.emit(categoryPlatform, "platform.initReport", record)
}

// emitExtension is called with mu held, as the ones below.
func (s *server) emitExtension(e *extension, errorType string) {
	record := map[string]any{"name": e.name, "state": string(e.state), "events": append([]string{}, e.events...)}
	if errorType != "" {
		record["errorType"] = errorType
	}
	s.telemetry.emit(categoryPlatform, "platform.extension", record)
}

func (s *server) emitStart(meta frame.Invoke) {
	if !s.telemetry.active.Load() {
		return
	}
	s.measured = measured{id: meta.RequestID, trace: meta.TraceID, begin: time.Now(), status: statusSuccess, open: true}
	s.telemetry.emit(categoryPlatform, "platform.start", s.traced(map[string]any{"requestId": meta.RequestID, "version": s.function.FunctionVersion}))
}

// traced adds the invocation's trace to a record.
func (s *server) traced(record map[string]any) map[string]any {
	if s.measured.trace != "" {
		record["tracing"] = map[string]string{"type": traceType, "value": s.measured.trace}
	}
	return record
}

// emitRuntimeDone ends the function's part of the invocation, once.
func (s *server) emitRuntimeDone() {
	m := &s.measured
	if !m.open || !m.done.IsZero() {
		return
	}
	m.done = time.Now()
	record := map[string]any{
		"requestId": m.id, "status": m.status,
		"metrics": map[string]any{"durationMs": ms(m.done.Sub(m.begin)), "producedBytes": m.produced},
	}
	if m.errorType != "" {
		record["errorType"] = m.errorType
	}
	if !m.sent.IsZero() {
		record["spans"] = []map[string]any{
			span("responseLatency", m.begin, m.answered), span("responseDuration", m.answered, m.sent), span("runtimeOverhead", m.sent, m.done),
		}
	}
	s.telemetry.emit(categoryPlatform, "platform.runtimeDone", s.traced(record))
}

func span(name string, from, to time.Time) map[string]any {
	return map[string]any{"name": name, "start": timestamp(from), "durationMs": ms(to.Sub(from))}
}

// emitReport ends the invocation, extensions included.
func (s *server) emitReport() {
	m := &s.measured
	if !m.open {
		return
	}
	m.open = false
	took := time.Since(m.begin)
	metrics := map[string]any{
		"durationMs": ms(took), "billedDurationMs": int(math.Ceil(ms(took))), "memorySizeMB": s.function.MemoryLimitMB,
	}
	if s.cfg.PeakMemory != nil {
		metrics["maxMemoryUsedMB"] = (s.cfg.PeakMemory() + 1<<20 - 1) >> 20
	}
	if s.initTook > 0 {
		metrics["initDurationMs"], s.initTook = ms(s.initTook), 0 // with the first one
	}
	record := map[string]any{"requestId": m.id, "status": m.status, "metrics": metrics}
	if m.errorType != "" {
		record["errorType"] = m.errorType
	}
	s.telemetry.emit(categoryPlatform, "platform.report", s.traced(record))
}

// breakOff ends the invocation that runs, if one does, without an answer.
func (s *server) breakOff(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := &s.measured; m.open && m.done.IsZero() {
		switch {
		case reason == reasonTimeout:
			m.status = statusTimeout
		case reason == reasonFailure && s.busy():
			m.status, m.errorType = statusFailure, "Runtime.ExitError"
		}
	}
	s.emitRuntimeDone()
	s.emitReport()
}

// errorTypeOf reads the type of a function's error.
func errorTypeOf(body []byte) string {
	var e struct {
		Type string `json:"errorType"`
	}
	_ = json.Unmarshal(body, &e) // errors are JSON by now, perhaps with a type of another kind
	return e.Type
}
