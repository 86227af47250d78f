package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// Error types that the platform gives for a function, as Lambda does.
const (
	errorTimeout     = "Sandbox.Timedout"
	errorExit        = "Runtime.ExitError"
	errorOutOfMemory = "Runtime.OutOfMemory"
	errorTooLarge    = "Function.ResponseSizeTooLarge"
	errorUnknown     = "Runtime.Unknown"

	statusTimeout = "timeout"
	statusError   = "error"
)

var emptyEvent = []byte("{}") // never changed

// failure is why a function's process gave no answer.
type failure struct{ kind, message, status string }

// failureOf describes how a machine's invocation, or claim, ended.
func failureOf(m sandbox.Machine, timeout time.Duration) failure {
	outcome := m.Last
	if m.Init != sandbox.OutcomeOK {
		outcome = m.Init
	}
	switch outcome {
	case sandbox.OutcomeTimeout:
		return failure{errorTimeout, fmt.Sprintf("Task timed out after %.2f seconds", timeout.Seconds()), statusTimeout}
	case sandbox.OutcomeOutOfMemory:
		return failure{errorOutOfMemory, "Runtime exited with error: signal: killed", statusError}
	default:
		return failure{errorExit, exitText(m.Exit), statusError}
	}
}

func exitText(x sandbox.Exit) string {
	const signalBase = 128
	switch {
	case x.Code > signalBase && x.Code < signalBase+65:
		return "Runtime exited with error: signal: " + signalName(x.Code-signalBase)
	case x.Code > 0:
		return "Runtime exited with error: exit status " + strconv.Itoa(x.Code)
	}
	return "Runtime exited without providing a reason"
}

// payload is what the caller gets; an empty request id means that there is none yet.
func (f failure) payload(requestID string) []byte {
	message := "Error: " + f.message
	if requestID != "" {
		message = "RequestId: " + requestID + " " + message
	}
	b := append([]byte(`{"errorType":`), quote(f.kind)...)
	b = append(b, `,"errorMessage":`...)
	return append(append(b, quote(message)...), '}')
}

// logLine is what the function's log says.
func (f failure) logLine(requestID string) string {
	if f.kind == errorTimeout {
		return time.Now().UTC().Format("2006-01-02T15:04:05.000Z ") + requestID + " " + f.message
	}
	return "RequestId: " + requestID + " Error: " + f.message + " (" + f.kind + ")"
}

// initReport is the line that ends the log of an attempt at init that failed. The second one belongs, as in Lambda, to the
// phase of the invocation.
func initReport(o sandbox.Outcome, limit time.Duration, attempt uint8) string {
	phase := "init"
	if attempt > 1 {
		phase = "invoke"
	}
	switch o {
	case sandbox.OutcomeTimeout:
		return fmt.Sprintf("INIT_REPORT Init Duration: %.2f ms\tPhase: %s\tStatus: timeout", float64(limit)/float64(time.Millisecond), phase)
	case sandbox.OutcomeOutOfMemory:
		return "INIT_REPORT Phase: " + phase + "\tStatus: error\tError Type: " + errorOutOfMemory
	case sandbox.OutcomeExit:
		return "INIT_REPORT Phase: " + phase + "\tStatus: error\tError Type: " + errorExit
	}
	return "INIT_REPORT Phase: " + phase + "\tStatus: error"
}

func responseTooLarge() []byte {
	return fmt.Appendf(nil, `{"errorMessage":"Response payload size exceeded maximum allowed payload size (%d bytes).","errorType":"%s"}`, maxResponse, errorTooLarge)
}

// functionError adds the request id to a handler's error, as Lambda does, and leaves the rest as the runtime wrote it. It
// also returns the error's type.
func functionError(body []byte, requestID string) (payload []byte, errorType string) {
	var known struct {
		Type      string           `json:"errorType"`
		RequestID *json.RawMessage `json:"requestId"`
	}
	body = bytes.TrimSpace(body)
	if len(body) < 2 || body[0] != '{' || json.Unmarshal(body, &known) != nil {
		text := append([]byte(`{"errorMessage":`), quote(string(bytes.ToValidUTF8(body, []byte("\uFFFD"))))...)
		body = append(text, `,"errorType":"`+errorUnknown+`"}`...)
		known.Type = errorUnknown
	}
	if known.Type == "" {
		known.Type = errorUnknown
	}
	if known.RequestID != nil {
		return body, known.Type
	}
	out := append([]byte(nil), body[:len(body)-1]...)
	if len(bytes.TrimSpace(body[1:len(body)-1])) > 0 {
		out = append(out, ',')
	}
	out = append(out, `"requestId":`...)
	return append(append(out, quote(requestID)...), '}'), known.Type
}

func quote(s string) []byte { return appendJSON(nil, s) }

// appendJSON appends a string as JSON. Most are plain; encoding/json has the others.
func appendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // a string
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendMeta appends frame.Invoke as JSON.
func (i *invocation) appendMeta(b []byte) []byte {
	r := i.request
	b = appendJSON(append(b, `{"request_id":`...), r.GetRequestId())
	b = strconv.AppendInt(append(b, `,"deadline_ms":`...), i.deadline.UnixMilli(), 10)
	b = appendJSON(append(b, `,"arn":`...), r.GetInvokedArn())
	if r.GetTraceId() != "" {
		b = appendJSON(append(b, `,"trace_id":`...), r.GetTraceId())
	}
	if r.GetClientContext() != "" {
		b = appendJSON(append(b, `,"client_context":`...), r.GetClientContext())
	}
	if r.GetStream() {
		b = append(b, `,"stream":true`...)
	}
	return append(b, '}')
}

func signalName(n int) string {
	if name, ok := map[int]string{
		1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 6: "aborted", 7: "bus error", 8: "floating point exception",
		9: "killed", 11: "segmentation fault", 13: "broken pipe", 14: "alarm clock", 15: "terminated", 31: "bad system call",
	}[n]; ok {
		return name
	}
	return "signal " + strconv.Itoa(n)
}
