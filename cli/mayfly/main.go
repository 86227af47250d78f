// Package main is the binary mayfly.
//
// What belongs here: handing the command line what it needs of the world. What does not: everything else.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/cli/host"
)

// version is set by the linker: -X main.version=…
var version = "dev"

func main() { os.Exit(run()) }

// gcPercent lets the small heaps of Mayfly's processes grow a little more between collections than Go's default.
const gcPercent = 300

func run() int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &cli.App{
		Version: version,
		Stdin:   os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv,
		Now:    time.Now, Sleep: sleep,
		Host:            host.Local{Root: "/"},
		InstallPackages: host.Install,

		RunUp: runUp, RunServer: runServer, RunAgent: runAgent, StopSandboxes: stopSandboxes,
		BuildRuntimes: buildRuntimes, ListLocalRuntimes: listLocalRuntimes,
	}
	return app.Run(ctx, os.Args[1:])
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
