package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/runtimeapi"
)

const (
	agentSocket = "/run/mayfly/agent.sock"
	apiAddress  = "127.0.0.1:9001"
	// shutdownGrace is how long a function may take to end after a Shutdown.
	shutdownGrace = 2 * time.Second
)

// runRuntimeAPI stands between the agent's frames and a process that speaks the Runtime API. The process starts when
// the agent says which function it is.
func runRuntimeAPI(argv []string) (int, error) {
	conn, err := net.Dial("unix", agentSocket)
	if err != nil {
		return exitSetup, fmt.Errorf("reach the agent: %w", err)
	}
	listener, err := net.Listen("tcp4", apiAddress)
	if err != nil {
		return exitSetup, fmt.Errorf("serve the Runtime API: %w", err)
	}
	f := &function{argv: argv, ended: make(chan result, 1)}
	served := make(chan error, 1)
	go func() {
		served <- runtimeapi.Serve(runtimeapi.Config{Agent: conn, Listener: listener, Runtime: "provided", Start: f.start, Stop: f.stop})
	}()
	select {
	case r := <-f.ended:
		return r.status, r.err
	case err := <-served:
		return finish(err)
	}
}

type result struct {
	status int
	err    error
}

// function is the process of the function.
type function struct {
	argv  []string
	pid   int
	ended chan result
}

func (f *function) start(env []string) error {
	pid, err := start(f.argv, append(os.Environ(), env...))
	if err != nil {
		return err
	}
	f.pid = pid
	go func() {
		status, err := reap(pid)
		f.ended <- result{status, err}
	}()
	return nil
}

// stop asks the function to end and gives it time; when it ends, so does the helper.
func (f *function) stop() {
	if f.pid != 0 {
		_ = unix.Kill(f.pid, unix.SIGTERM) // it may have ended
		time.Sleep(shutdownGrace)
	}
}

// finish ends the sandbox whose agent's side ended: by Shutdown, by a failed start, or by its loss.
func finish(err error) (int, error) {
	if errors.Is(err, runtimeapi.ErrNotStarted) {
		return 1, nil // the agent knows
	}
	return exitSetup, errors.Join(errors.New("the function did not end in time"), err)
}
