// Package runtimeapi serves the Lambda Runtime, Extensions and Telemetry APIs to the processes of a sandbox, and speaks
// frames with the agent in their place.
//
// What belongs here: the HTTP side, the frame side, the states between, and the order in which processes start and
// end. What does not: how a process is started and being process 1 (agent/containerd/helper, which runs this inside each
// sandbox), so imports are few.
//
// The rules are AWS's (docs.aws.amazon.com, "Using the Lambda runtime API for custom runtimes", "Extensions API",
// "Telemetry API"); docs/runtime-api.md says where this differs.
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
	"syscall"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// MaxPayload is the largest buffered answer in bytes.
const MaxPayload = 6291556

const (
	protocol = 1
	// maxHeader lets aws-lambda-go's X-Ray cause, up to 1 MiB, through.
	maxHeader = 2 << 20

	exitOK     = 0
	exitFailed = 1
	exitLost   = 125 // the agent has gone
)

// Reasons of a shutdown, as extensions are told.
const (
	reasonSpindown = "spindown"
	reasonFailure  = "failure"
	reasonTimeout  = "timeout"
)

// Config is what Serve works with.
type Config struct {
	// Agent is the connection to the agent, closed by Serve.
	Agent io.ReadWriteCloser
	// Listener is where the APIs are served, closed by Serve.
	Listener net.Listener
	// Runtime is the name in Hello.
	Runtime string
	// Start starts the function's process.
	Start Starter
	// Extensions finds the external extensions, once the function's code is there; nil: there are none.
	Extensions func() ([]Extension, error)
	// PeakMemory is the most memory that the sandbox's processes have had, in bytes; nil: it is not known.
	PeakMemory func() int64
	// Log takes what the platform says in the function's log, a line at a time.
	Log io.Writer
}

// Starter starts a process with env ("KEY=value") beside what it has anyway. Unless capture is nil, it gets each line of
// the process's output, which goes to the log as well; it must not keep the line.
type Starter func(env []string, capture func(line []byte)) (Process, error)

// Process is a started process.
type Process interface {
	// Signal sends a signal, if the process is still there.
	Signal(s syscall.Signal)
	// Ended is closed once the process has ended.
	Ended() <-chan struct{}
	// Status is how it ended: its exit status, 128 + signal for a signal.
	Status() int
	// Flush passes on what the process has written until now, if it is captured.
	Flush()
}

// Extension is an external extension: an executable with the name by which it registers.
type Extension struct {
	Name  string
	Start Starter
}

// Serve greets the agent, starts the extensions and the function when told which function it is, and serves them until
// something ends the sandbox. Then it gives the extensions their time to shut down, and returns the exit status for
// process 1: the function's own if it ended by itself, 0 when the agent said Shutdown, 125 when its connection ended. An
// error tells that the agent broke the protocol.
func Serve(cfg Config) (status int, err error) {
	s := newServer(cfg)
	h := &http.Server{
		Handler: s.routes(), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0), // standard error is the function's log
	}
	s.background.Go(func() { _ = h.Serve(cfg.Listener) }) // ends when h is closed
	s.background.Go(func() { s.finish(s.agentLoop()) })
	e := <-s.ends
	s.shutdown(e.reason)
	close(s.gone)
	_ = h.Close() // nothing is left to be flushed
	err = errors.Join(e.err, cfg.Agent.Close())
	s.background.Wait()
	return e.status, err
}

// event is an invocation on its way to the function.
type event struct {
	meta    frame.Invoke
	payload []byte
}

// end is why the sandbox ends, and the status for process 1.
type end struct {
	reason string
	status int
	err    error
}

type server struct {
	cfg        Config
	events     chan event
	ends       chan end
	gone       chan struct{} // closed when the sandbox ends
	background sync.WaitGroup

	writing sync.Mutex // one frame at a time

	mu        sync.Mutex
	function  frame.Load
	process   Process
	launched  bool // the function's process is started, or about to be
	stopping  bool // nothing is started any more
	phase     phase
	polling   bool
	readySent bool
	current   event // that runs; its metadata stay when it has ended
	extensions

	telemetry *telemetry
	measured  measured // the running or the last invocation
	initStart time.Time
	initTook  time.Duration // until the first report has told it
}

// phase is where the function's process is, as the API sees it, under AWS's names.
type phase string

const (
	started         phase = "Started"   // has not asked for its first event
	initError       phase = "InitError" // its init failed
	ready           phase = "Ready"     // waits for an event
	running         phase = "Running"   // has an event
	responding      phase = "InvocationResponse"
	errorResponding phase = "InvocationErrorResponse"
	responseSent    phase = "RuntimeResponseSentState"
)

func newServer(cfg Config) *server {
	return &server{
		cfg: cfg, phase: started, events: make(chan event, 1), ends: make(chan end, 1), gone: make(chan struct{}),
		extensions: newExtensions(nil), telemetry: newTelemetry(),
	}
}

// finish ends the sandbox; the first reason counts.
func (s *server) finish(e end) {
	select {
	case s.ends <- e:
	default:
	}
}

func (s *server) agentLoop() end {
	lost := end{reasonSpindown, exitLost, nil}
	if err := s.sendJSON(frame.TypeHello, frame.Hello{Protocol: protocol, Runtime: s.cfg.Runtime}); err != nil {
		return lost
	}
	in := bufio.NewReader(s.cfg.Agent)
	for {
		t, body, err := frame.Read(in)
		if errors.Is(err, frame.ErrTooLarge) {
			return end{reasonFailure, exitLost, fmt.Errorf("read from the agent: %w", err)}
		}
		if err != nil {
			return lost // as at every end of a sandbox whose log still takes what is said here
		}
		if t == frame.TypeShutdown {
			return asked(body)
		}
		if err := s.onFrame(t, body); err != nil {
			return end{reasonFailure, exitLost, err}
		}
	}
}

// asked is the end that the agent wants.
func asked(body []byte) end {
	var m frame.Shutdown
	if err := json.Unmarshal(body, &m); err != nil || m.Reason == "" {
		m.Reason = reasonSpindown
	}
	return end{m.Reason, exitOK, nil}
}

func (s *server) onFrame(t frame.Type, body []byte) error {
	switch t {
	case frame.TypeLoad:
		return s.load(body)
	case frame.TypeInvoke:
		return s.invoke(body)
	}
	return fmt.Errorf("unknown frame type %d from the agent", t)
}

func (s *server) load(body []byte) error {
	var l frame.Load
	if err := json.Unmarshal(body, &l); err != nil {
		return fmt.Errorf("read Load: %w", err)
	}
	var external []Extension
	if s.cfg.Extensions != nil {
		var err error
		if external, err = s.cfg.Extensions(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.function, s.extensions, s.initStart = l, newExtensions(external), time.Now()
	s.mu.Unlock()
	s.telemetry.emitInitStart(l, s.cfg.Runtime)
	s.background.Go(func() { s.start(l, external) })
	return nil
}

// start starts the extensions and, once all have registered, the function.
func (s *server) start(l frame.Load, external []Extension) {
	env := environment(l, s.cfg.Listener.Addr().String())
	if !s.startExtensions(external, env) {
		return
	}
	s.mu.Lock()
	s.launched = !s.stopping
	launched := s.launched
	s.mu.Unlock()
	if !launched {
		return
	}
	var capture func([]byte)
	if len(external) > 0 {
		capture = s.telemetry.capture(categoryFunction) // one of them may subscribe once the function runs
	}
	p, err := s.cfg.Start(env, capture)
	if err != nil {
		s.fail(frame.Error{Type: "Runtime.InvalidEntrypoint", Message: err.Error()})
		return
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	s.watch(p, s.functionEnded)
}

// watch calls ended when p has ended, unless the sandbox ends first.
func (s *server) watch(p Process, ended func(status int)) {
	s.background.Go(func() {
		select {
		case <-p.Ended():
			ended(p.Status())
		case <-s.gone:
		}
	})
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
