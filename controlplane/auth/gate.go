package auth

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const metadataKey = "authorization"

// Gate lets gRPC calls in. A service is guarded by exactly one of: an entry of Services, an entry of Open, or access keys and Policy.
type Gate struct {
	Authenticator *Authenticator
	Policy        Policy
	// Open are services that anybody may call, such as "grpc.health.v1.Health".
	Open map[string]bool
	// Services have their own proof of identity, such as a node certificate; it may add to the context.
	Services map[string]func(ctx context.Context) (context.Context, error)
}

// Enter returns the context to serve a call in, or why it is refused.
func (g *Gate) Enter(ctx context.Context, fullMethod string) (context.Context, error) {
	service, _, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if prove, ok := g.Services[service]; ok {
		return prove(ctx)
	}
	if g.Open[service] {
		return ctx, nil
	}
	principal, err := g.Authenticator.Bearer(authorization(ctx))
	if err != nil {
		return nil, err
	}
	if err := g.Policy.Check(principal, fullMethod); err != nil {
		return nil, err
	}
	return NewContext(ctx, principal), nil
}

// Unary is the interceptor of unary calls.
func (g *Gate) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := g.Enter(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

// Stream is the interceptor of streams.
func (g *Gate) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := g.Enter(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handle(srv, &streamWithContext{stream, ctx})
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

// Context has the caller in it.
func (s *streamWithContext) Context() context.Context { return s.ctx }

// authorization is empty also if the entry was sent twice: which one counts must not be a guess.
func authorization(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, metadataKey)
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
