package controlplane

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/controlplane/fleet"
	"github.com/mayfly-faas/mayfly/controlplane/gateway"
	"github.com/mayfly-faas/mayfly/controlplane/peer"
	"github.com/mayfly-faas/mayfly/controlplane/router"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// home is the local fleet as the router's home of every function.
type home struct{ fleet *fleet.Fleet }

// Acquire leases a sandbox from the fleet. A nil lease must stay a nil interface.
func (h home) Acquire(ctx context.Context, spec *agentv1.SandboxSpec) (router.Lease, *agentv1.CreateSandboxResponse, error) {
	lease, created, err := h.fleet.Acquire(ctx, spec)
	if lease == nil {
		return nil, created, err
	}
	return lease, created, err
}

// apiInvoker is the router as the gRPC API uses it.
type apiInvoker struct{ router *router.Router }

// Invoke runs one invocation.
func (i apiInvoker) Invoke(ctx context.Context, in *api.Invocation, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	request := router.Request(*in)
	return i.router.Invoke(ctx, &request, emit)
}

// Resolve finds the version that Invoke would run.
func (i apiInvoker) Resolve(namespace, function, qualifier string) (string, error) {
	target, err := i.router.Resolve(namespace, function, qualifier)
	if err != nil {
		return "", err
	}
	return target.Spec.GetVersion(), nil
}

// urlInvoker is the router as function URLs use it.
type urlInvoker struct{ router *router.Router }

// Invoke runs one invocation.
func (i urlInvoker) Invoke(ctx context.Context, r *gateway.Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	return i.router.Invoke(ctx, &router.Request{
		Namespace: r.Namespace, Function: r.Function, Qualifier: r.Qualifier, Payload: r.Payload,
		TraceID: r.TraceID, RequestID: r.RequestID, Stream: r.Stream,
	}, emit)
}

// urlKeys is the authenticator as function URLs use it.
type urlKeys struct{ auth *auth.Authenticator }

// Authenticate takes an Authorization header.
func (k urlKeys) Authenticate(_ context.Context, authorization string) (gateway.Principal, error) {
	p, err := k.auth.Bearer(authorization)
	return gateway.Principal(p), err
}

// Principal finds the owner of a key whose signature is verified.
func (k urlKeys) Principal(_ context.Context, keyID string) (gateway.Principal, error) {
	_, p, err := k.auth.SecretFor(keyID)
	return gateway.Principal(p), err
}

func (s *Server) lookupKey(id string) (*statev1.AccessKeyRecord, bool) {
	return s.state.View().AccessKey(id)
}

func (s *Server) secretFor(_ context.Context, id string) (string, error) {
	secret, _, err := s.authenticator.SecretFor(id)
	return secret, err
}

// identify finds in the client certificate which node calls.
func identify(ctx context.Context) (nodeID, name string, err error) {
	id, err := peer.NodeFromContext(ctx)
	return id.ID, id.Name, err
}

// admitNode lets nodes in that the cluster still knows.
func (s *Server) admitNode(ctx context.Context) (context.Context, error) {
	id, err := peer.NodeFromContext(ctx)
	if err != nil {
		return nil, err
	}
	if _, known := s.state.View().Node(id.ID); !known {
		return nil, unknownNode(id.Name)
	}
	return ctx, nil
}

// AttachLocal lets the control plane use the agent of this process until the session ends.
func (s *Server) AttachLocal(ctx context.Context, hello *agentv1.Hello, w fleet.Worker) (fleet.Session, error) {
	session, err := s.fleet.Attach(ctx, hello, w)
	s.attached.Store(err == nil)
	return session, err
}

// FetchBlob reads code by digest.
func (s *Server) FetchBlob(ctx context.Context, digest string) (io.ReadCloser, error) {
	return s.fleet.FetchBlob(ctx, digest)
}

func unknownNode(name string) error {
	return fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_NODE_NOT_FOUND,
		"node %q was removed from the cluster: enroll it again with `mayfly node enroll`", name)
}
