package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of this machine.
type Process struct {
	PID, Parent int
	// Args is its command line, empty for kernel threads.
	Args []string
	// Zombie tells that it has ended and waits for its parent.
	Zombie bool
}

// Processes lists what runs, from a proc file system such as "/proc".
func Processes(proc string) ([]Process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that ends while we look is none of ours to list.
		if p, err := process(proc, pid); err == nil {
			all = append(all, p)
		}
	}
	return all, nil
}

func process(proc string, pid int) (Process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, err
	}
	// The name in parentheses may hold anything, so fields are counted after the last ")".
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return Process{}, errors.New("malformed stat")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Process{}, err
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, err
	}
	p := Process{PID: pid, Parent: parent, Zombie: fields[0] == "Z"}
	if len(cmdline) > 0 {
		p.Args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	}
	return p, nil
}

// program is the base name of what it runs.
func (p Process) program() string {
	if len(p.Args) == 0 {
		return ""
	}
	return filepath.Base(p.Args[0])
}

// Leftovers are the containerd and shims that work below one of dirs, with all their descendants: what a Mayfly that
// is gone has left. Descendants come before their parents' ends, so kill in this order.
func Leftovers(all []Process, dirs ...string) []Process {
	children := map[int][]Process{}
	for _, p := range all {
		children[p.Parent] = append(children[p.Parent], p)
	}
	var found []Process
	seen := map[int]bool{}
	var take func(p Process)
	take = func(p Process) {
		if seen[p.PID] || p.Zombie {
			return
		}
		seen[p.PID] = true
		for _, c := range children[p.PID] {
			take(c)
		}
		found = append(found, p)
	}
	for _, p := range all {
		if strings.HasPrefix(p.program(), "containerd") && slices.ContainsFunc(p.Args, func(a string) bool { return below(a, dirs) }) {
			take(p)
		}
	}
	return found
}

// below tells whether an argument, or the value of a flag in it, is a path below one of dirs.
func below(arg string, dirs []string) bool {
	if _, value, ok := strings.Cut(arg, "="); ok {
		arg = value
	}
	arg = strings.TrimPrefix(arg, "unix://")
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(arg, d+"/") })
}

// Running tells whether pid is a process that runs program; a pid that was given to another is not.
func Running(pid int, program string) bool {
	p, err := process("/proc", pid)
	return err == nil && !p.Zombie && p.program() == program
}

// Stop ends a process: SIGTERM, and SIGKILL after grace. It returns once it is gone.
func Stop(ctx context.Context, pid int, grace time.Duration) error {
	if err := signal(pid, unix.SIGTERM); err != nil {
		return err
	}
	if gone(ctx, pid, grace) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return Kill(ctx, pid)
}

// Kill ends a process by SIGKILL and returns once it is gone.
func Kill(ctx context.Context, pid int) error {
	if err := signal(pid, unix.SIGKILL); err != nil {
		return err
	}
	if !gone(ctx, pid, 10*time.Second) {
		return fmt.Errorf("process %d does not end, not even by SIGKILL", pid)
	}
	return nil
}

func signal(pid int, s unix.Signal) error {
	if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	return nil
}

func gone(ctx context.Context, pid int, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if p, err := process("/proc", pid); err != nil || p.Zombie {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
