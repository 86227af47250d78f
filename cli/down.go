package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-faas/mayfly/cli/host"
)

const (
	// stopGrace is how long a process may take to end by itself, sandboxesGrace how long its sandboxes may.
	stopGrace      = 30 * time.Second
	sandboxesGrace = time.Minute
)

// downOptions are what to stop.
type downOptions struct {
	AgentOptions
	wipe bool
}

func (a *App) downCommand() *cobra.Command {
	var o downOptions
	cmd := &cobra.Command{
		Use: "down", Short: "Stop Mayfly on this machine, with all of its sandboxes, and keep its state",
		Long: `Stop Mayfly on this machine: the process, its sandboxes with their network, and the containerd that it started. The state
stays, the next "mayfly up" goes on with it. With --wipe, the state goes too: functions, keys, logs, runtime images.`,
		Example: "  sudo mayfly down\n  sudo mayfly down --wipe",
		Args:    argsNamed(),
	}
	f := cmd.Flags()
	f.StringVar(&o.StateDir, "state-dir", defaultStateDir, "where state is kept")
	f.StringVar(&o.RunDir, "run-dir", defaultRunDir, "where sockets and pid files are")
	f.StringVar(&o.ContainerdAddress, "containerd", "", "socket of the containerd in use, if it is not one of our own")
	f.BoolVar(&o.wipe, "wipe", false, "remove the state, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.NodeName, o.Log = nodeNameOf(a.Host.Hostname()), LogOptions{Level: "warn", Format: "text"}
		if err := o.check(); err != nil {
			return err
		}
		if err := a.needRoot("stopping Mayfly"); err != nil {
			return err
		}
		o.complete()
		return a.down(cmd.Context(), &o)
	}
	return cmd
}

func (a *App) down(ctx context.Context, o *downOptions) error {
	if err := a.stopProcesses(ctx, o.RunDir); err != nil {
		return err
	}
	if err := a.stopSandboxes(ctx, o); err != nil {
		return err
	}
	if err := host.Unmount(o.RunDir); err != nil {
		return err
	}
	if !o.wipe {
		return a.done("down", "Mayfly is down; its state is in %s", o.StateDir)
	}
	for _, dir := range []string{o.RunDir, o.StateDir} {
		a.note("wiping %s", dir)
		if err := host.Wipe(dir); err != nil {
			return err
		}
	}
	return a.done("down", "Mayfly is down and its state is gone")
}

// stopProcesses ends what has left a pid file.
func (a *App) stopProcesses(ctx context.Context, runDir string) error {
	files, err := filepath.Glob(filepath.Join(runDir, "*.pid"))
	if err != nil {
		return fmt.Errorf("look for pid files: %w", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("read a pid file: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && host.Running(pid, "mayfly") {
			a.note("stopping mayfly (process %d)", pid)
			if err := host.Stop(ctx, pid, stopGrace); err != nil {
				return err
			}
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a pid file: %w", err)
		}
	}
	return nil
}

// stopSandboxes also removes what sandboxes had of the network, which outlives processes. It asks for an orderly end first, then kills what is left.
func (a *App) stopSandboxes(ctx context.Context, o *downOptions) error {
	left, err := leftovers(o)
	if err != nil {
		return err
	}
	if len(left) > 0 || o.ContainerdAddress != "" {
		a.note("stopping containerd and its sandboxes")
	}
	orderly, cancel := context.WithTimeout(ctx, sandboxesGrace)
	defer cancel()
	if err := a.StopSandboxes(orderly, o.AgentOptions, o.Log.logger(a.Stderr)); err != nil {
		a.note("not all ended by themselves: %v", err)
	}
	if left, err = leftovers(o); err != nil {
		return err
	}
	for _, p := range left {
		a.note("killing process %d (%s)", p.PID, strings.Join(p.Args, " "))
		if err := host.Kill(ctx, p.PID); err != nil {
			return err
		}
	}
	return nil
}

func leftovers(o *downOptions) ([]host.Process, error) {
	all, err := host.Processes("/proc")
	if err != nil {
		return nil, err
	}
	return host.Leftovers(all, o.RunDir, o.StateDir), nil
}
