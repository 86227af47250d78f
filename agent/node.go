package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-faas/mayfly/agent/containerd"
	"github.com/mayfly-faas/mayfly/agent/runtimes"
)

// NodeConfig is a worker on this machine: an Agent with containerd under it.
type NodeConfig struct {
	// Config's Runtime is made here.
	Config
	// ContainerdAddress is the socket of an existing containerd; empty: one of our own is started.
	ContainerdAddress string
	// RuntimeHandler is a containerd shim; empty: io.containerd.runc.v2.
	RuntimeHandler string
	// SandboxCIDR is the sandboxes' IPv4 addresses; empty: some that the host doesn't use.
	SandboxCIDR string
}

func (c NodeConfig) containerd() containerd.Config {
	return containerd.Config{
		StateDir: filepath.Join(c.StateDir, "containerd"), RunDir: filepath.Join(c.RunDir, "c"),
		Address: c.ContainerdAddress, RuntimeHandler: c.RuntimeHandler, SandboxCIDR: c.SandboxCIDR, Logger: c.Logger.With("room", "containerd"),
	}
}

func (c NodeConfig) images() (*runtimes.Images, error) {
	dir, err := filepath.Abs(c.withDefaults().RuntimesDir)
	if err != nil {
		return nil, fmt.Errorf("runtime images: %w", err)
	}
	return runtimes.New(runtimes.Config{Dir: dir, Logger: c.Logger.With("room", "runtimes")})
}

// RunNode runs a worker until ctx ends. Its containerd lives on: StopNode ends it.
func RunNode(ctx context.Context, cfg NodeConfig) (err error) {
	runtime, err := containerd.New(cfg.containerd())
	if err != nil {
		return fmt.Errorf("prepare sandboxes: %w", err)
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	cfg.Runtime = runtime
	if err := runtime.EgressError(); err != nil {
		cfg.EgressError = err.Error()
	}
	if cfg.Builder, err = cfg.images(); err != nil {
		return err
	}
	a, err := New(cfg.Config)
	if err != nil {
		return err
	}
	// The agent destroys its sandboxes when it ends; until then the runtime must be there.
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	lower, below := errgroup.WithContext(below)
	lower.Go(func() error { return runtime.Run(below) })
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-below.Done():
			return lower.Wait()
		}
	})
	err = g.Wait()
	stop()
	return errors.Join(err, lower.Wait())
}

// StopNode destroys the sandboxes that a worker left and ends the containerd that it started.
func StopNode(ctx context.Context, cfg NodeConfig) error {
	return containerd.Stop(ctx, cfg.containerd())
}

type (
	// Images are the runtime images of a node.
	Images = runtimes.Images
	// ImagesConfig says where they are.
	ImagesConfig = runtimes.Config
	// BuildEvent is a step in building one.
	BuildEvent = runtimes.Event
	// BuildOptions say how to build.
	BuildOptions = runtimes.BuildOptions
)

// OpenImages returns the images below cfg.Dir.
func OpenImages(cfg ImagesConfig) (*Images, error) { return runtimes.New(cfg) }
