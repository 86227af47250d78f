package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/proto/netio"
)

const (
	rootKeyFile = "root.key"
	// defaultNamespace always exists.
	defaultNamespace = "default"
	defaultRegion    = "us-east-1"
	defaultURLDomain = "localhost"

	// initTimeout bounds the wait for a leader at the start.
	initTimeout = 60 * time.Second
	// collectEvery and collectGrace rule the removal of packages that no function refers to.
	collectEvery = 10 * time.Minute
	collectGrace = time.Hour
	// stopTimeout is how long running calls may take when the node stops.
	stopTimeout = 10 * time.Second
)

// Run serves until ctx ends or a room fails, then closes everything. Call it once.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	// The rooms that requests need outlive those that take requests.
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	lower, below := errgroup.WithContext(below)
	lower.Go(func() error { return s.store.Run(below) })
	lower.Go(func() error { return s.router.Run(below) })
	lower.Go(func() error { return s.fleet.Run(below) })

	g.Go(func() error { return failing(ctx, below, lower) })
	g.Go(func() error { return s.initialize(ctx) })
	g.Go(func() error { return s.serveAPI(ctx) })
	g.Go(func() error { return s.gateway.Run(ctx) })
	g.Go(func() error { return s.collect(ctx) })
	err := g.Wait()
	stopBelow()
	return errors.Join(err, lower.Wait(), s.close())
}

// failing ends the upper rooms when a lower one fails.
func failing(ctx, below context.Context, lower *errgroup.Group) error {
	select {
	case <-ctx.Done():
		return nil
	case <-below.Done():
		return fmt.Errorf("a room failed: %w", lower.Wait())
	}
}

// initialize makes the cluster's first records, at the first start, and this node's.
func (s *Server) initialize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if _, err := s.store.WaitLeader(ctx); err != nil {
		return fmt.Errorf("wait for a leader: %w", err)
	}
	if err := s.store.Barrier(ctx); err != nil {
		return fmt.Errorf("catch up with the log: %w", err)
	}
	if err := s.writeFirstRecords(ctx); err != nil {
		return err
	}
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	s.initialized.Store(true)
	s.cfg.Logger.Info("the control plane is ready", "node", s.cfg.NodeName, "api", s.cfg.APIAddress, "http", s.cfg.httpURL())
	return nil
}

// writeFirstRecords proposes only what is missing. On a full disk a node that has its records already goes on without
// writing.
func (s *Server) writeFirstRecords(ctx context.Context) error {
	if !s.store.IsLeader() {
		return nil
	}
	for _, write := range []func(context.Context) error{s.initCluster, s.putNode, s.finishRotation, s.ensureAdmin} {
		err := write(ctx)
		if fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL) && s.state.View().Cluster().GetClusterId() != "" {
			s.cfg.Logger.Warn("the disk is full: invocations are served, writes are refused", "error", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) initCluster(ctx context.Context) error {
	if s.state.View().Cluster().GetClusterId() != "" {
		return nil
	}
	account, err := rand.Int(rand.Reader, big.NewInt(900_000_000_000))
	if err != nil {
		return fmt.Errorf("draw an account number: %w", err)
	}
	_, err = s.store.Propose(ctx, &statev1.Command{Operation: &statev1.Command_InitCluster{InitCluster: &statev1.InitCluster{
		ClusterId: uuid.NewString(),
		DefaultNamespace: &mayflyv1.Namespace{
			Name: defaultNamespace, AccountId: fmt.Sprint(account.Int64() + 100_000_000_000), Quotas: api.DefaultQuotas(),
		},
		Settings: &mayflyv1.Settings{Region: defaultRegion, UrlDomain: defaultURLDomain},
	}}})
	if err != nil {
		return fmt.Errorf("make the cluster's first records: %w", err)
	}
	return nil
}

func (s *Server) putNode(ctx context.Context) error {
	node := &mayflyv1.Node{Id: s.nodeID, Name: s.cfg.NodeName, Server: true, Agent: s.cfg.HostsAgent}
	have, ok := s.state.View().Node(s.nodeID)
	if ok && have.GetName() == node.GetName() && have.GetAgent() == node.GetAgent() && have.GetServer() {
		return nil
	}
	_, err := s.store.Propose(ctx, &statev1.Command{Operation: &statev1.Command_PutNode{PutNode: &statev1.PutNode{Node: node}}})
	if err != nil {
		return fmt.Errorf("register this node: %w", err)
	}
	return nil
}

func (s *Server) rotation() auth.RotationConfig {
	return auth.RotationConfig{
		Path: s.cfg.path(rootKeyFile), Keyring: s.keys, Propose: s.store.Propose,
		AccessKeys: func() iter.Seq[*statev1.AccessKeyRecord] { return s.state.View().AccessKeys("", "") },
		Secrets:    func() iter.Seq[*statev1.SecretRecord] { return s.state.View().Secrets("", "") },
		Settle: func(ctx context.Context) error {
			if err := s.store.Barrier(ctx); err != nil {
				return err
			}
			return s.state.Flush()
		},
	}
}

// finishRotation ends a rotation of the root key that a crash or a full disk interrupted. If it can't, the node serves all
// the same: everything can still be read.
func (s *Server) finishRotation(ctx context.Context) error {
	r, err := auth.FinishRotation(ctx, s.rotation())
	if err != nil {
		s.cfg.Logger.Error("a rotation of the root key is not finished: run `mayfly cluster rotate-root-key` again", "error", err)
		return nil
	}
	if r.RootKeyID != "" {
		s.cfg.Logger.Info("finished a rotation of the root key", "root_key", r.RootKeyID, "access_keys", r.AccessKeys, "secrets", r.Secrets)
	}
	return nil
}

func (s *Server) ensureAdmin(ctx context.Context) error {
	created, err := auth.EnsureAdmin(ctx, auth.EnsureAdminConfig{
		Path: s.cfg.path("admin.json"), Keyring: s.keys, Keys: s.state.View().AccessKeys("", ""), Propose: s.store.Propose,
		CA: s.ca.CertificatePEM(), Endpoint: reachable(s.cfg.APIAddress, s.cfg.NodeName),
	})
	if err != nil {
		return fmt.Errorf("ensure that there is an admin key: %w", err)
	}
	if created {
		s.cfg.Logger.Info("made the first admin key", "file", s.cfg.path("admin.json"))
	}
	return nil
}

// serveAPI serves gRPC until ctx ends; running calls may take a little longer.
func (s *Server) serveAPI(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.health.Shutdown()
		hard := time.AfterFunc(stopTimeout, s.grpc.Stop)
		defer hard.Stop()
		s.grpc.GracefulStop()
	})
	err := s.grpc.Serve(netio.Listener(s.apiListener))
	if !stop() {
		<-stopped
	}
	if err != nil {
		return fmt.Errorf("serve the API on %s: %w", s.cfg.APIAddress, err)
	}
	return nil
}

// collect removes packages that no function refers to, such as those of uploads without a function.
func (s *Server) collect(ctx context.Context) error {
	for every := time.NewTicker(collectEvery); ; {
		select {
		case <-ctx.Done():
			every.Stop()
			return nil
		case <-every.C:
		}
		deleted, err := s.blobs.Collect(s.state.View().CodeReferenced, collectGrace)
		if err != nil {
			s.cfg.Logger.Warn("collect unused code", "error", err)
		}
		if deleted > 0 {
			s.cfg.Logger.Info("collected unused code", "packages", deleted)
		}
	}
}

// ready is why this node can't take requests yet, or nil.
func (s *Server) ready() error {
	switch {
	case !s.initialized.Load():
		return errors.New("the control plane is starting")
	case s.cfg.HostsAgent && !s.attached.Load():
		return errors.New("this node's agent is starting")
	}
	return nil
}
