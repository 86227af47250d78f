package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-faas/mayfly/agent"
	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/controlplane"
	"github.com/mayfly-faas/mayfly/controlplane/peer"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func runUp(ctx context.Context, o cli.UpOptions, log *slog.Logger) error {
	registry := newRegistry()
	cfg := serverConfig(o.Server, log, registry)
	cfg.HostsAgent = true
	server, err := controlplane.New(cfg)
	if err != nil {
		return err
	}
	node := nodeConfig(o.Agent, log, registry)
	node.NodeID, node.NodeName = server.NodeID(), o.Server.NodeName
	node.ControlPlanes = []agent.ControlPlane{local{server}}
	g, ctx := errgroup.WithContext(ctx)
	// The server outlives the agent, so that running invocations end well.
	agentEnded := make(chan struct{})
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer stopServer()
		select {
		case <-ctx.Done():
			<-agentEnded
		case <-agentEnded:
		}
		return nil
	})
	g.Go(func() error { return server.Run(serverCtx) })
	g.Go(func() error {
		defer close(agentEnded)
		return agent.RunNode(ctx, node)
	})
	return g.Wait()
}

func runServer(ctx context.Context, o cli.ServerOptions, log *slog.Logger) error {
	server, err := controlplane.New(serverConfig(o, log, newRegistry()))
	if err != nil {
		return err
	}
	return server.Run(ctx)
}

func runAgent(ctx context.Context, o cli.AgentOptions, log *slog.Logger) (err error) {
	leaveHalf()
	credentials, err := peer.Load(o.IdentityDir)
	if err != nil {
		return err
	}
	id, err := credentials.Identity()
	if err != nil {
		return err
	}
	tls, err := credentials.TLS()
	if err != nil {
		return err
	}
	node := nodeConfig(o, log, newRegistry())
	node.NodeID, node.NodeName = id.ID, id.Name
	for _, address := range o.Servers {
		remote, err := agent.NewRemote(agent.RemoteConfig{Address: address, TLS: tls, Logger: log.With("room", "session")})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remote.Close()) }()
		node.ControlPlanes = append(node.ControlPlanes, remote)
	}
	return agent.RunNode(ctx, node)
}

// leaveHalf keeps the agent off half of the CPUs: they are for the functions, and threads that only look for work would
// be in the way of a sandbox that has some.
func leaveHalf() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}

func stopSandboxes(ctx context.Context, o cli.AgentOptions, log *slog.Logger) error {
	return agent.StopNode(ctx, nodeConfig(o, log, nil))
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func serverConfig(o cli.ServerOptions, log *slog.Logger, registry *prometheus.Registry) controlplane.Config {
	return controlplane.Config{
		StateDir: filepath.Join(o.StateDir, "server"), NodeName: o.NodeName, Version: version,
		APIAddress: o.APIAddress, HTTPAddress: o.HTTPAddress, RaftAddress: o.RaftAddress,
		HTTPTLSCert: o.HTTPTLSCert, HTTPTLSKey: o.HTTPTLSKey, MinFreeBytes: uint64(max(o.MinFreeBytes, 0)),
		KeepAlive: o.KeepAlive, Logger: log, Registry: registry,
	}
}

func nodeConfig(o cli.AgentOptions, log *slog.Logger, registry *prometheus.Registry) agent.NodeConfig {
	cfg := agent.NodeConfig{ContainerdAddress: o.ContainerdAddress, RuntimeHandler: o.RuntimeHandler, SandboxCIDR: o.SandboxCIDR}
	cfg.Config = agent.Config{
		Version: version, StateDir: filepath.Join(o.StateDir, "agent"), RuntimesDir: o.RuntimesDir, RunDir: o.RunDir,
		Capacity: &mayflyv1.NodeResources{MemoryBytes: o.MemoryBytes}, Logger: log.With("room", "agent"),
	}
	if registry != nil {
		cfg.Metrics = registry
	}
	return cfg
}

// local is the control plane of this process as its agent sees it.
type local struct{ *controlplane.Server }

// Attach lets the server use the agent by direct calls.
func (l local) Attach(ctx context.Context, hello *agentv1.Hello, w agent.Worker) (agent.Session, error) {
	session, err := l.AttachLocal(ctx, hello, w)
	if err != nil {
		return nil, fmt.Errorf("attach to this process's control plane: %w", err)
	}
	return session, nil
}

func buildRuntimes(ctx context.Context, b cli.RuntimeBuild, progress func(cli.RuntimeProgress)) ([]cli.LocalRuntime, error) {
	before, err := listLocalRuntimes(ctx, b.Dir)
	if err != nil {
		return nil, err
	}
	images, err := agent.OpenImages(agent.ImagesConfig{Dir: b.Dir, Progress: func(e agent.BuildEvent) {
		progress(cli.RuntimeProgress{Runtime: e.Runtime, Step: e.Text, Fraction: e.Fraction})
	}})
	if err != nil {
		return nil, err
	}
	built, err := images.BuildAll(ctx, b.Names, agent.BuildOptions{Refresh: b.Force})
	if err != nil {
		return nil, err
	}
	cached := map[string]bool{}
	for _, r := range before {
		cached[r.Digest] = true
	}
	var all []cli.LocalRuntime
	for _, i := range built {
		all = append(all, cli.LocalRuntime{
			Name: i.Runtime, Version: i.Version, Digest: i.Digest, SizeBytes: i.SizeBytes, BuiltAt: i.BuiltAt, Cached: cached[i.Digest],
		})
	}
	return all, nil
}

func listLocalRuntimes(_ context.Context, dir string) ([]cli.LocalRuntime, error) {
	images, err := agent.OpenImages(agent.ImagesConfig{Dir: dir})
	if err != nil {
		return nil, err
	}
	list, err := images.List()
	if err != nil {
		return nil, err
	}
	var all []cli.LocalRuntime
	for _, i := range list {
		all = append(all, cli.LocalRuntime{Name: i.Runtime, Version: i.Version, Digest: i.Digest, SizeBytes: i.SizeBytes, BuiltAt: i.BuiltAt, Cached: true})
	}
	return all, nil
}
