package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	"github.com/mayfly-faas/mayfly/proto/netio"
)

const (
	maxMessage       = 16 << 20
	laneWindow       = 1 << 20
	connectionWindow = 4 << 20
)

// RemoteConfig is how to reach a control-plane node.
type RemoteConfig struct {
	// Address is its host:port of gRPC.
	Address string
	// TLS carries the node's certificate and the cluster's CA; nil: plain, for tests.
	TLS    *tls.Config
	Logger *slog.Logger
	// HandshakeTimeout is how long the control plane may take to welcome the agent; 0: 10 s.
	HandshakeTimeout time.Duration
	// Keepalive is the time without a message after which the connection is tested; 0: 20 s. The server
	// must allow pings that often.
	Keepalive time.Duration
}

// Remote is a ControlPlane over gRPC. Each lane has a connection of its own, so that large payloads hold up nothing else.
type Remote struct {
	cfg   RemoteConfig
	conns [2]*grpc.ClientConn // of the lanes CONTROL and BULK
	calls sync.WaitGroup
}

// NewRemote prepares a Remote; it connects when it is used. Close it after the Agent's Run has ended.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	setDefault(&cfg.Logger, slog.New(slog.DiscardHandler))
	setDefault(&cfg.HandshakeTimeout, 10*time.Second)
	setDefault(&cfg.Keepalive, 20*time.Second)
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		creds = credentials.NewTLS(cfg.TLS)
	}
	r := &Remote{cfg: cfg}
	for i := range r.conns {
		conn, err := grpc.NewClient(cfg.Address,
			grpc.WithTransportCredentials(creds), grpc.WithContextDialer(dial),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
			grpc.WithInitialWindowSize(laneWindow), grpc.WithInitialConnWindowSize(connectionWindow),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: cfg.Keepalive, Timeout: cfg.Keepalive / 2}))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("control plane %s: %w", cfg.Address, err), r.Close())
		}
		r.conns[i] = conn
	}
	return r, nil
}

// dial connects as gRPC would by itself, but for the proxy of the environment: control planes are reached directly.
func dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return netio.Wrap(c), nil
}

// Close ends all sessions and waits for the calls that they still serve.
func (r *Remote) Close() error {
	var errs error
	for _, c := range r.conns {
		if c != nil {
			errs = errors.Join(errs, c.Close())
		}
	}
	r.calls.Wait()
	return errs
}

// FetchBlob implements ControlPlane.
func (r *Remote) FetchBlob(ctx context.Context, digest string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := agentv1.NewSessionServiceClient(r.conns[1]).FetchBlob(ctx, &agentv1.FetchBlobRequest{Digest: digest})
	if err != nil {
		cancel()
		return nil, err
	}
	b := &blobReader{stream: stream, cancel: cancel}
	if err := b.fill(); err != nil && !errors.Is(err, io.EOF) { // an unknown digest is known now
		cancel()
		return nil, err
	}
	return b, nil
}

// blobReader reads a stream of chunks.
type blobReader struct {
	stream grpc.ServerStreamingClient[agentv1.FetchBlobResponse]
	cancel context.CancelFunc
	rest   []byte
	err    error
}

func (b *blobReader) fill() error {
	for len(b.rest) == 0 && b.err == nil {
		m, err := b.stream.Recv()
		b.rest, b.err = m.GetChunk(), err
	}
	if len(b.rest) > 0 {
		return nil
	}
	return b.err
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	if err := b.fill(); err != nil {
		return 0, err
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.cancel()
	return nil
}
