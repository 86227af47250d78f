package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// handshakeTimeout is how long a client may take to prove who it is.
	handshakeTimeout = 10 * time.Second
	// ioTimeout bounds one of Raft's messages; snapshots get more by their size.
	ioTimeout = 10 * time.Second
	poolSize  = 3
)

// streamLayer carries Raft's messages over mutual TLS.
type streamLayer struct {
	net.Listener
	advertise address
	tls       TLS
	dial      func(ctx context.Context, address string) (net.Conn, error)
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func newTransport(cfg *Config) (*raft.NetworkTransport, error) {
	l, err := cfg.listen()
	if err != nil {
		return nil, err
	}
	advertise := cfg.Advertise
	if advertise == "" {
		advertise = l.Addr().String()
	}
	host, _, err := net.SplitHostPort(advertise)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		l.Close()
		return nil, fmt.Errorf("other servers can't reach raft at %q: set the address to advertise", advertise)
	}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  &streamLayer{Listener: l, advertise: address(advertise), tls: cfg.TLS, dial: cfg.Dial},
		Logger:                  newRaftLogger(cfg.Logger),
		MaxPool:                 poolSize,
		Timeout:                 ioTimeout,
		MsgpackUseNewTimeFormat: true,
	}), nil
}

// Addr implements net.Listener with the address that others are told.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// Accept implements net.Listener. The handshake happens on the first read, away from the loop that accepts.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &serverConn{Conn: tls.Server(c, s.tls.Server)}, nil
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.dial(ctx, string(to))
	if err != nil {
		return nil, fmt.Errorf("dial raft at %s: %w", to, err)
	}
	cfg := s.tls.Client
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		if cfg.ServerName, _, err = net.SplitHostPort(string(to)); err != nil {
			c.Close()
			return nil, fmt.Errorf("dial raft at %s: %w", to, err)
		}
	}
	secured := tls.Client(c, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("dial raft at %s: %w", to, err)
	}
	return secured, nil
}

// serverConn gives a client limited time for its handshake.
type serverConn struct {
	*tls.Conn
	once sync.Once
	err  error
}

func (c *serverConn) Read(b []byte) (int, error) {
	c.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		c.err = c.HandshakeContext(ctx)
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}
