package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/controlplane/blob"
	"github.com/mayfly-faas/mayfly/controlplane/fleet"
	"github.com/mayfly-faas/mayfly/controlplane/gateway"
	"github.com/mayfly-faas/mayfly/controlplane/peer"
	"github.com/mayfly-faas/mayfly/controlplane/router"
	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	"github.com/mayfly-faas/mayfly/controlplane/store"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// Server is one control-plane node, made by New and run once.
type Server struct {
	cfg    Config
	nodeID string

	ca    *peer.CA
	certs *peer.Server
	keys  *auth.Keyring

	state  *state.State
	store  *store.Store
	blobs  *blob.Store
	fleet  *fleet.Fleet
	router *router.Router

	authenticator *auth.Authenticator
	grpc          *grpc.Server
	health        *health.Server
	apiListener   net.Listener
	gateway       *gateway.Gateway

	// initialized is set once the cluster's records are there, attached while this process's agent is.
	initialized, attached atomic.Bool

	// closers undo what New did, last first.
	closers []closer
}

type closer struct {
	what string
	do   func() error
}

// New opens the node's state and its ports. A failed New leaves nothing open.
func New(cfg Config) (_ *Server, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, health: health.NewServer()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"prepare the identity of this node", s.openIdentity},
		{"open the state", s.openState},
		{"open the blobs", s.openBlobs},
		{"start Raft", s.openStore},
		{"make the fleet and its router", s.openRouting},
		{"serve the gRPC API", s.openAPI},
		{"serve HTTP", s.openGateway},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s, nil
}

func (s *Server) onClose(what string, do func() error) {
	s.closers = append(s.closers, closer{what, do})
}

// close undoes New's steps, last first.
func (s *Server) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		if err := c.do(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", c.what, err))
		}
	}
	s.closers = nil
	return errors.Join(errs...)
}

// NodeID is the node's UUID.
func (s *Server) NodeID() string { return s.nodeID }

func (s *Server) openIdentity() error {
	if err := os.MkdirAll(s.cfg.StateDir, 0o700); err != nil {
		return err
	}
	var err error
	if s.nodeID, err = store.EnsureNodeID(s.cfg.path("raft")); err != nil {
		return err
	}
	if s.ca, err = peer.EnsureCA(s.cfg.path("pki"), time.Now); err != nil {
		return err
	}
	s.certs, err = s.ca.NewServer(peer.ServerConfig{
		Dir: s.cfg.path("pki"), NodeID: s.nodeID, NodeName: s.cfg.NodeName,
		Addresses: []string{s.cfg.APIAddress, s.cfg.RaftAddress}, Log: s.cfg.logger("peer"),
	})
	if err != nil {
		return err
	}
	root, err := auth.EnsureRootKeys(s.cfg.path(rootKeyFile))
	if err != nil {
		return err
	}
	s.keys, err = auth.NewKeyring(root...)
	return err
}

func (s *Server) openState() error {
	t, err := table.Open(table.Config{Dir: s.cfg.path("state"), Logger: s.cfg.logger("table")})
	if err != nil {
		return err
	}
	if s.state, err = state.New(state.Config{Table: t, Logger: s.cfg.logger("state")}); err != nil {
		return errors.Join(err, t.Close())
	}
	s.onClose("the state", s.state.Close)
	return nil
}

func (s *Server) openBlobs() error {
	var err error
	s.blobs, err = blob.Open(blob.Config{Dir: s.cfg.path("blobs"), MinFree: int64(min(s.cfg.MinFreeBytes, 1<<62))})
	return err
}

func (s *Server) openStore() error {
	mTLS := s.certs.RaftTLS()
	var err error
	s.store, err = store.Open(store.Config{
		Dir: s.cfg.path("raft"), NodeID: s.nodeID, State: s.state, Address: s.cfg.RaftAddress,
		TLS: store.TLS{Server: mTLS, Client: mTLS}, Bootstrap: true,
		Logger: s.cfg.logger("raft"), Registerer: s.cfg.Registry, MinFreeBytes: s.cfg.MinFreeBytes,
	})
	if err != nil {
		return err
	}
	s.onClose("Raft", s.store.Close)
	s.authenticator = auth.NewAuthenticator(auth.AuthenticatorConfig{
		Keyring: s.keys, Lookup: s.lookupKey, Log: s.cfg.logger("auth"),
	})
	return nil
}

func (s *Server) openRouting() error {
	var err error
	s.fleet, err = fleet.New(fleet.Config{
		Logger: s.cfg.logger("fleet"), View: func() fleet.View { return s.state.View() },
		Propose: s.store.Propose, IsLeader: s.store.IsLeader, Identify: identify, Blobs: s.blobs, OpenSecret: s.keys.OpenValue,
		ServerID: s.nodeID, KeepAlive: s.cfg.KeepAlive,
	})
	if err != nil {
		return err
	}
	s.router, err = router.New(router.Config{
		Logger: s.cfg.logger("router"), View: func() router.View { return s.state.View() }, Home: home{s.fleet}, Starts: s.fleet.ScaleOut,
		Registerer: s.cfg.Registry,
	})
	if err != nil {
		return err
	}
	s.fleet.AddHolder(s.router)
	return nil
}

func (s *Server) openAPI() error {
	services, err := api.New(api.Config{
		Propose: s.store.Propose, View: func() api.View { return s.state.View() }, Invoker: apiInvoker{s.router},
		Fleet: s.fleet, Blobs: s.blobs, Certificates: s.ca, Keyring: s.keys, Log: s.cfg.logger("api"),
		RotateRootKey: func(ctx context.Context) (auth.Rotation, error) { return auth.RotateRootKey(ctx, s.rotation()) },
		Self: api.Self{
			MayflyVersion: s.cfg.Version, NodeID: s.nodeID, NodeName: s.cfg.NodeName, HTTPURL: s.cfg.httpURL(), Leader: s.store.IsLeader,
		},
	})
	if err != nil {
		return err
	}
	s.grpc, err = api.NewServer(api.ServerConfig{
		API: services, Authenticator: s.authenticator, TLS: s.certs.ServerTLS(), Health: s.health,
		Registerer: s.cfg.Registry, Log: s.cfg.logger("api"),
		Services: []api.Service{{
			Name:         agentv1.SessionService_ServiceDesc.ServiceName,
			Register:     func(r grpc.ServiceRegistrar) { agentv1.RegisterSessionServiceServer(r, s.fleet.Server()) },
			Authenticate: s.admitNode,
		}},
	})
	if err != nil {
		return err
	}
	s.apiListener, err = listen("--api-address", s.cfg.APIAddress)
	if err != nil {
		return err
	}
	s.onClose("the API's port", func() error { return ignoreClosed(s.apiListener.Close()) })
	return nil
}

func (s *Server) openGateway() error {
	listener, err := listen("--http-address", s.cfg.HTTPAddress)
	if err != nil {
		return err
	}
	s.onClose("the HTTP port", func() error { return ignoreClosed(listener.Close()) })
	cfg := gateway.Config{
		Listeners: []net.Listener{listener}, View: func() gateway.View { return s.state.View() }, Invoker: urlInvoker{s.router},
		Keys: urlKeys{s.authenticator}, Signatures: auth.NewSigV4Verifier(s.secretFor, time.Now),
		Metrics: s.cfg.Registry, Registerer: s.cfg.Registry, Ready: s.ready, Now: time.Now, Logger: s.cfg.logger("gateway"),
	}
	if s.cfg.HTTPTLSCert != "" {
		cert, err := tls.LoadX509KeyPair(s.cfg.HTTPTLSCert, s.cfg.HTTPTLSKey)
		if err != nil {
			return fmt.Errorf("load --http-tls-cert and --http-tls-key: %w", err)
		}
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	s.gateway, err = gateway.New(cfg)
	return err
}

func listen(flag, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s %s (is the port taken?): %w", flag, address, err)
	}
	return l, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
