package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
	pid, err := start(argv, os.Environ())
	if err != nil {
		return exitSetup, err
	}
	return reap(pid)
}

// start starts argv with the log as its output. It does not use os/exec, whose waiting would race with reap.
func start(argv, env []string) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", argv[0], err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	forward := make(chan os.Signal, 16)
	signal.Notify(forward, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	//nolint:gosec // running the function is the job
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{null.Fd(), 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	go func() {
		for s := range forward {
			if s, ok := s.(syscall.Signal); ok {
				_ = unix.Kill(pid, s) // it may have ended
			}
		}
	}()
	return pid, nil
}

// reap collects every process that ends in the sandbox until pid has, and returns its status: 128 + signal for a signal.
func reap(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return exitSetup, fmt.Errorf("wait for processes: %w", err)
		case got == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}
