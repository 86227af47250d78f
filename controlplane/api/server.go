package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
)

const (
	// maxMessage has room for the largest payload.
	maxMessage       = 8 << 20
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// keepaliveMin is how often clients may ping.
	keepaliveMin = 10 * time.Second
)

// Service is one that is served beside the public API, with its own proof of identity.
type Service struct {
	// Name in full, such as "mayfly.agent.v1.SessionService".
	Name     string
	Register func(grpc.ServiceRegistrar)
	// Authenticate returns the context to serve a call in, or why it is refused.
	Authenticate func(context.Context) (context.Context, error)
}

// ServerConfig is what a gRPC server is made of. API, Authenticator and Log are required.
type ServerConfig struct {
	API           *API
	Authenticator *auth.Authenticator
	// TLS is of the listener; nil serves in the clear, for tests and listeners in memory.
	TLS      *tls.Config
	Services []Service
	// Health may be nil: all is serving.
	Health *health.Server
	// Registerer may be nil: nobody reads the metrics.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// NewServer makes a gRPC server with the public API, health, reflection and cfg.Services. Health and reflection are open to
// anybody: they tell no more than the published API. Messages may have 8 MiB.
func NewServer(cfg ServerConfig) (*grpc.Server, error) {
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	observer, err := newObserver(cfg.Log, cfg.Registerer)
	if err != nil {
		return nil, err
	}
	gate, err := newGate(cfg)
	if err != nil {
		return nil, err
	}
	options := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(observer.unary, gate.Unary),
		grpc.ChainStreamInterceptor(observer.stream, gate.Stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
	}
	if cfg.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(cfg.TLS)))
	}
	server := grpc.NewServer(options...)
	cfg.API.Register(server)
	for _, service := range cfg.Services {
		service.Register(server)
	}
	if cfg.Health == nil {
		cfg.Health = health.NewServer()
	}
	healthv1.RegisterHealthServer(server, cfg.Health)
	reflection.Register(server)
	return server, nil
}

func newGate(cfg ServerConfig) (*auth.Gate, error) {
	gate := &auth.Gate{
		Authenticator: cfg.Authenticator,
		Policy:        auth.PolicyOf(protoregistry.GlobalFiles),
		Open: map[string]bool{
			healthv1.Health_ServiceDesc.ServiceName:    true,
			"grpc.reflection.v1.ServerReflection":      true,
			"grpc.reflection.v1alpha.ServerReflection": true,
		},
		Services: map[string]func(context.Context) (context.Context, error){},
	}
	for _, service := range cfg.Services {
		if service.Authenticate == nil {
			return nil, fmt.Errorf("api: service %s has no authentication", service.Name)
		}
		gate.Services[service.Name] = service.Authenticate
	}
	return gate, nil
}
