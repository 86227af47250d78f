// Package frame is the wire format between the agent and the process that runs a function: our language
// bootstraps, and the helper when it stands in for one (provided). Both ends dial or serve a unix socket
// inside the sandbox, /run/mayfly/agent.sock.
//
// What belongs here: types, limits, reading and writing. What does not: what the frames cause.
//
// A frame is a big-endian uint32 n, then n bytes: one byte of type, then the body.
//
//	runtime → agent
//	  Hello       JSON Hello; first, once
//	  Ready       empty, or JSON Ready: the function's init ended well
//	  InitError   JSON Error: the function's init failed; the runtime exits next
//	  Exit        JSON Exit: the function's process ended unasked and gives no answer; process 1 exits once its extensions have
//	  Result      the answer, bytes
//	  Error       JSON Error: the handler failed
//	  StreamBegin JSON StreamBegin: a streamed answer follows
//	  Stream      a part of it, bytes
//	  StreamEnd   empty, or JSON Error when it broke off
//	agent → runtime
//	  Load        JSON Load: import the function; answered by Ready or InitError
//	  Invoke      uint32 m, m bytes of JSON Invoke, then the event; answered by Result, Error, or a stream
//	  Shutdown    JSON Shutdown: exit soon
//
// One invocation runs at a time, so answers carry no id.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type is the kind of a frame.
type Type byte

// Frames of the runtime, and of the agent.
const (
	TypeHello       Type = 1
	TypeReady       Type = 2
	TypeInitError   Type = 3
	TypeResult      Type = 4
	TypeError       Type = 5
	TypeStreamBegin Type = 6
	TypeStream      Type = 7
	TypeStreamEnd   Type = 8
	TypeExit        Type = 9

	TypeLoad     Type = 16
	TypeInvoke   Type = 17
	TypeShutdown Type = 18
)

// MaxBody is the largest body in bytes: a payload (6,291,556 B, Lambda's limit) with room to say that it was too large.
const MaxBody = 16 << 20

// ErrTooLarge is returned by Read for a frame with a larger body than MaxBody.
var ErrTooLarge = errors.New("frame too large")

// Hello is a runtime's first frame.
type Hello struct {
	Protocol int    `json:"protocol"` // 1
	Runtime  string `json:"runtime"`
}

// Load tells a runtime which function it is to run. Env is set before the function's module is imported.
type Load struct {
	Handler         string            `json:"handler"`
	TaskRoot        string            `json:"task_root"` // /var/task
	Env             map[string]string `json:"env"`
	FunctionName    string            `json:"function_name"`
	FunctionVersion string            `json:"function_version"`
	MemoryLimitMB   int               `json:"memory_limit_mb"`
	LogGroup        string            `json:"log_group"`
	LogStream       string            `json:"log_stream"`
}

// Invoke goes with an event.
type Invoke struct {
	RequestID      string `json:"request_id"`
	DeadlineMS     int64  `json:"deadline_ms"` // Unix time
	ARN            string `json:"arn"`
	TraceID        string `json:"trace_id,omitempty"`
	ClientContext  string `json:"client_context,omitempty"`   // JSON
	CognitoContext string `json:"cognito_identity,omitempty"` // JSON
	Stream         bool   `json:"stream,omitempty"`           // the caller takes a streamed answer
}

// Error is what a function's failure looks like to its caller, as in Lambda.
type Error struct {
	Type       string   `json:"errorType"`
	Message    string   `json:"errorMessage"`
	StackTrace []string `json:"stackTrace,omitempty"`
}

// Ready goes with an init that ended well.
type Ready struct {
	// ShutdownMS is how long the runtime and its extensions may take after a Shutdown, in milliseconds.
	ShutdownMS int `json:"shutdown_ms,omitempty"`
}

// Exit is the end of the function's process, told before process 1 follows.
type Exit struct {
	Status int `json:"status"` // 128 + signal for a signal
	// Error is what the caller gets if something else than the function ended it.
	Error *Error `json:"error,omitempty"`
}

// StreamBegin starts a streamed answer.
type StreamBegin struct {
	ContentType string `json:"content_type,omitempty"`
}

// Shutdown asks a runtime to exit.
type Shutdown struct {
	Reason string `json:"reason"` // "spindown", "timeout" or "failure"
}

const headerSize = 5

// Append appends a whole frame to b.
func Append(b []byte, t Type, body []byte) []byte {
	b = appendHeader(b, t, len(body))
	return append(b, body...)
}

// AppendInvoke appends an Invoke frame to b, but for the event, which the caller writes after it.
func AppendInvoke(b []byte, meta []byte, eventSize int) []byte {
	b = appendHeader(b, TypeInvoke, 4+len(meta)+eventSize)
	b = binary.BigEndian.AppendUint32(b, uint32(len(meta))) // meta is small
	return append(b, meta...)
}

func appendHeader(b []byte, t Type, bodySize int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(bodySize)+1) // bodies are below MaxBody
	return append(b, byte(t))
}

// Read reads one frame. The body is its own memory. At the end of the stream it returns io.EOF.
func Read(r io.Reader) (Type, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[:4])
	if n == 0 || n-1 > MaxBody {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, n)
	}
	body := make([]byte, n-1)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("frame cut short: %w", err)
	}
	return Type(h[4]), body, nil
}

// SplitInvoke splits the body of an Invoke frame in its JSON and the event.
func SplitInvoke(body []byte) (meta, event []byte, err error) {
	if len(body) < 4 {
		return nil, nil, errors.New("invoke frame without metadata")
	}
	n := binary.BigEndian.Uint32(body)
	if uint64(n) > uint64(len(body)-4) {
		return nil, nil, errors.New("invoke frame with cut metadata")
	}
	return body[4 : 4+n], body[4+n:], nil
}
