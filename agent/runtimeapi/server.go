// Package runtimeapi serves the Lambda Runtime API to the process of a custom runtime, and speaks frames with the
// agent in its place.
//
// What belongs here: the HTTP side, the frame side, and the states between. What does not: starting processes and
// being process 1 (agent/containerd/helper, which runs this inside each sandbox), so imports are few.
//
// The rules are AWS's (docs.aws.amazon.com, "Using the Lambda runtime API for custom runtimes").
package runtimeapi

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// MaxPayload is the largest buffered answer in bytes.
const MaxPayload = 6291556

const (
	protocol = 1
	// maxHeader lets aws-lambda-go's X-Ray cause, up to 1 MiB, through.
	maxHeader = 2 << 20
)

// ErrNotStarted is returned by Serve when the function's process could not be started; the agent was told.
var ErrNotStarted = errors.New("the function's process did not start")

// Config is what Serve works with.
type Config struct {
	// Agent is the connection to the agent, closed by Serve.
	Agent io.ReadWriteCloser
	// Listener is where the Runtime API is served, closed by Serve.
	Listener net.Listener
	// Runtime is the name in Hello.
	Runtime string
	// Start starts the function's process with env ("KEY=value") beside what it has anyway.
	Start func(env []string) error
	// Stop ends that process when the agent's side has ended. The API is served until it returns.
	Stop func()
}

// Serve greets the agent, starts the function when told which, and serves it until the agent says Shutdown (nil) or
// its connection ends (an error).
func Serve(cfg Config) error {
	s := &server{cfg: cfg, phase: starting, events: make(chan event, 1), gone: make(chan struct{})}
	h := &http.Server{
		Handler: s.routes(), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0), // standard error is the function's log
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = h.Serve(cfg.Listener) // ends when h is closed
	}()
	err := s.agentLoop()
	cfg.Stop()
	close(s.gone)
	_ = h.Close() // nothing is left to be flushed
	<-served
	return errors.Join(err, cfg.Agent.Close())
}

// event is an invocation on its way to the function.
type event struct {
	meta    frame.Invoke
	payload []byte
}

type server struct {
	cfg    Config
	events chan event
	gone   chan struct{} // closed when the agent's side has ended

	writing sync.Mutex // one frame at a time

	mu      sync.Mutex
	phase   phase
	polling bool
	current frame.Invoke // of the running or the last invocation
}

// phase is where the function's process is, as the API sees it.
type phase string

const (
	starting  phase = "Initializing" // has not asked for its first event
	ready     phase = "Ready"        // may ask for the next
	running   phase = "Running"      // has an event
	answering phase = "Responding"   // its answer is being read
	failed    phase = "InitError"    // its init failed
)

func (s *server) agentLoop() error {
	if err := s.sendJSON(frame.TypeHello, frame.Hello{Protocol: protocol, Runtime: s.cfg.Runtime}); err != nil {
		return err
	}
	in := bufio.NewReader(s.cfg.Agent)
	for {
		t, body, err := frame.Read(in)
		if err != nil {
			return fmt.Errorf("read from the agent: %w", err)
		}
		done, err := s.onFrame(t, body)
		if done || err != nil {
			return err
		}
	}
}

func (s *server) onFrame(t frame.Type, body []byte) (done bool, err error) {
	switch t {
	case frame.TypeLoad:
		return false, s.load(body)
	case frame.TypeInvoke:
		return false, s.invoke(body)
	case frame.TypeShutdown:
		return true, nil
	}
	return false, fmt.Errorf("unknown frame type %d from the agent", t)
}

func (s *server) load(body []byte) error {
	var l frame.Load
	if err := json.Unmarshal(body, &l); err != nil {
		return fmt.Errorf("read Load: %w", err)
	}
	err := s.cfg.Start(environment(l, s.cfg.Listener.Addr().String()))
	if err == nil {
		return nil
	}
	failure := frame.Error{Type: "Runtime.InvalidEntrypoint", Message: err.Error()}
	return errors.Join(ErrNotStarted, s.sendJSON(frame.TypeInitError, failure))
}

// environment is what Lambda sets for every custom runtime, under what Load sets.
func environment(l frame.Load, api string) []string {
	defaults := map[string]string{
		"AWS_LAMBDA_FUNCTION_NAME": l.FunctionName, "AWS_LAMBDA_FUNCTION_VERSION": l.FunctionVersion,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": fmt.Sprint(l.MemoryLimitMB), "AWS_LAMBDA_LOG_GROUP_NAME": l.LogGroup,
		"AWS_LAMBDA_LOG_STREAM_NAME": l.LogStream, "_HANDLER": l.Handler, "LAMBDA_TASK_ROOT": l.TaskRoot,
	}
	var env []string
	for k, v := range defaults {
		if _, set := l.Env[k]; !set {
			env = append(env, k+"="+v)
		}
	}
	for k, v := range l.Env {
		env = append(env, k+"="+v)
	}
	return append(env, "AWS_LAMBDA_RUNTIME_API="+api)
}

func (s *server) invoke(body []byte) error {
	meta, payload, err := frame.SplitInvoke(body)
	if err != nil {
		return err
	}
	e := event{payload: payload}
	if err := json.Unmarshal(meta, &e.meta); err != nil {
		return fmt.Errorf("read Invoke: %w", err)
	}
	select {
	case s.events <- e:
		return nil
	default:
		return errors.New("the agent sent a second event before the answer to the first")
	}
}

func (s *server) send(t frame.Type, body []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if _, err := s.cfg.Agent.Write(frame.Append(nil, t, body)); err != nil {
		return fmt.Errorf("write to the agent: %w", err)
	}
	return nil
}

func (s *server) sendJSON(t frame.Type, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write a frame: %w", err)
	}
	return s.send(t, body)
}
