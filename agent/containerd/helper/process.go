package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/containerd/seccomp"
)

const logPath = "/run/mayfly/log"

// enter turns output to the log and installs the system call filter.
//
// The FIFO is opened for reading too: then writers see neither an error nor SIGPIPE while the agent restarts, they
// wait once the pipe is full.
func enter() error {
	fd, err := unix.Open(logPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", logPath, err)
	}
	for _, out := range []int{1, 2} {
		if err := unix.Dup3(fd, out, 0); err != nil {
			return fmt.Errorf("turn output to %s: %w", logPath, err)
		}
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close %s: %w", logPath, err)
	}
	// Other processes of the sandbox share the uid: none may look into this one.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("set not dumpable: %w", err)
	}
	return seccomp.Install()
}

func runExec(argv []string) (int, error) {
	p, err := newProcesses().start(argv, os.Environ(), os.Stdout, nil)
	if err != nil {
		return exitSetup, err
	}
	p.forwardSignals()
	<-p.Ended()
	return p.Status(), nil
}

// processes are those that process 1 has started, by pid. It does not use os/exec, whose waiting would race with reap.
type processes struct {
	mu    sync.Mutex // held while one starts, so that reap can't miss it
	known map[int]*process
	child chan struct{} // has a token when there may be somebody to wait for
}

func newProcesses() *processes {
	p := &processes{known: map[int]*process{}, child: make(chan struct{}, 1)}
	go p.reap() // it ends with process 1
	return p
}

// process is one of them.
type process struct {
	pid    int
	mu     sync.Mutex // held to signal it, and to say that it has ended
	ended  chan struct{}
	status int
	output *capture // nil: it writes to the log itself
}

// start starts argv with out as its output, which output, if it is not nil, reads.
func (ps *processes) start(argv, env []string, out *os.File, output *capture) (*process, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", argv[0], err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	//nolint:gosec // running the function is the job
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{null.Fd(), out.Fd(), out.Fd()}})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	p := &process{pid: pid, ended: make(chan struct{}), output: output}
	ps.known[pid] = p
	select {
	case ps.child <- struct{}{}:
	default:
	}
	return p, nil
}

// reap collects every process that ends in the sandbox.
func (ps *processes) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			<-ps.child
		case err == nil && (ws.Exited() || ws.Signaled()):
			ps.gone(pid, ws)
		}
	}
}

func (ps *processes) gone(pid int, ws unix.WaitStatus) {
	ps.mu.Lock()
	p := ps.known[pid]
	delete(ps.known, pid)
	ps.mu.Unlock()
	if p == nil {
		return // somebody's orphan
	}
	p.Flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = ws.ExitStatus()
	if ws.Signaled() {
		p.status = 128 + int(ws.Signal())
	}
	close(p.ended)
}

// Ended implements runtimeapi.Process.
func (p *process) Ended() <-chan struct{} { return p.ended }

// Status implements runtimeapi.Process.
func (p *process) Status() int { return p.status }

// Flush implements runtimeapi.Process.
func (p *process) Flush() {
	if p.output != nil {
		p.output.flush()
	}
}

// Signal implements runtimeapi.Process.
func (p *process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
	default:
		_ = unix.Kill(p.pid, s) // it may have ended
	}
}

// forwardSignals passes on what process 1 is sent.
func (p *process) forwardSignals() {
	forward := make(chan os.Signal, 16)
	signal.Notify(forward, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() { // it ends with process 1
		for s := range forward {
			if s, ok := s.(syscall.Signal); ok {
				p.Signal(s)
			}
		}
	}()
}
