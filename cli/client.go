package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/mayfly-faas/mayfly/cli/config"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// callTimeout ends calls that nobody answers; invocations have invokeTimeout.
	callTimeout   = time.Minute
	invokeTimeout = 16 * time.Minute
	// maxMessageBytes leaves room around the largest payload.
	maxMessageBytes = 16 << 20
)

// client is a connection with the services of the API.
type client struct {
	conn        *grpc.ClientConn
	namespace   string
	functions   mayflyv1.FunctionServiceClient
	versions    mayflyv1.VersionServiceClient
	aliases     mayflyv1.AliasServiceClient
	invocations mayflyv1.InvocationServiceClient
	logs        mayflyv1.LogServiceClient
	nodes       mayflyv1.NodeServiceClient
	namespaces  mayflyv1.NamespaceServiceClient
	keys        mayflyv1.AccessKeyServiceClient
	cluster     mayflyv1.ClusterServiceClient
	secrets     mayflyv1.SecretServiceClient
}

// keyCredentials sends the access key with every call, over TLS only.
type keyCredentials struct{ id, secret string }

// GetRequestMetadata is the key, as every call carries it.
func (k keyCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + k.id + ":" + k.secret}, nil
}

// RequireTransportSecurity keeps the secret off plain connections.
func (keyCredentials) RequireTransportSecurity() bool { return true }

// context finds out which Mayfly is meant.
func (a *App) context() (config.Context, error) {
	f, _, err := a.contexts()
	if err != nil {
		return config.Context{}, err
	}
	return config.Resolve(f, a.global.Overrides, a.Getenv)
}

// with runs fn with a connection.
func (a *App) with(cmd *cobra.Command, fn func(context.Context, *client) error) error {
	c, err := a.context()
	if err != nil {
		return err
	}
	cl, err := dial(c, a.Version)
	if err != nil {
		return err
	}
	return errors.Join(fn(cmd.Context(), cl), cl.conn.Close())
}

func dial(c config.Context, version string) (*client, error) {
	tlsConfig, err := tlsOf(c)
	if err != nil {
		return nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithUserAgent("mayfly-cli/" + version),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		grpc.WithUnaryInterceptor(withTimeout),
	}
	if c.AccessKeyID != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(keyCredentials{c.AccessKeyID, c.SecretAccessKey}))
	}
	// passthrough: the endpoint is an address, proxies and name services of gRPC stay out.
	conn, err := grpc.NewClient("passthrough:///"+c.Endpoint, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.Endpoint, err)
	}
	return newClient(conn, c.Namespace), nil
}

func newClient(conn *grpc.ClientConn, namespace string) *client {
	return &client{
		conn:        conn,
		namespace:   namespace,
		functions:   mayflyv1.NewFunctionServiceClient(conn),
		versions:    mayflyv1.NewVersionServiceClient(conn),
		aliases:     mayflyv1.NewAliasServiceClient(conn),
		invocations: mayflyv1.NewInvocationServiceClient(conn),
		logs:        mayflyv1.NewLogServiceClient(conn),
		nodes:       mayflyv1.NewNodeServiceClient(conn),
		namespaces:  mayflyv1.NewNamespaceServiceClient(conn),
		keys:        mayflyv1.NewAccessKeyServiceClient(conn),
		cluster:     mayflyv1.NewClusterServiceClient(conn),
		secrets:     mayflyv1.NewSecretServiceClient(conn),
	}
}

func tlsOf(c config.Context) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CA == "" {
		return t, nil
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM([]byte(c.CA)) {
		return nil, usagef("the context's CA is no PEM certificate: mend it with `mayfly context add` or MAYFLY_CA")
	}
	return t, nil
}

// withTimeout gives calls that have no deadline one.
func withTimeout(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); ok {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	limit := callTimeout
	if method == mayflyv1.InvocationService_Invoke_FullMethodName {
		limit = invokeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return invoke(ctx, method, req, reply, cc, opts...)
}

// allPages calls fetch until there is no further page.
func allPages[T any](fetch func(token string) ([]T, string, error)) ([]T, error) {
	var all []T
	for token := ""; ; {
		page, next, err := fetch(token)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if next == "" {
			return all, nil
		}
		token = next
	}
}
