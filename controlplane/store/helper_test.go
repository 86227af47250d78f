package store_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	"github.com/mayfly-faas/mayfly/controlplane/store"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// authority makes both sides' TLS configuration with one certificate of a new CA.
func authority() (store.TLS, error) {
	caKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return store.TLS{}, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	caDER, err1 := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	leafDER, err2 := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err := errors.Join(err1, err2); err != nil {
		return store.TLS{}, err
	}
	root, err := x509.ParseCertificate(caDER)
	if err != nil {
		return store.TLS{}, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	certs := []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}
	return store.TLS{
		Server: &tls.Config{Certificates: certs, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		Client: &tls.Config{Certificates: certs, RootCAs: pool, MinVersion: tls.VersionTLS13},
	}, nil
}

// node is a running store with its state, which can be stopped and started again.
type node struct {
	t     testing.TB
	dir   string
	tls   store.TLS
	tune  func(*store.Config)
	net   *network
	free  atomic.Uint64
	state *state.State
	*store.Store

	cancel context.CancelFunc
	ran    chan error
}

func newNode(t testing.TB, tune func(*store.Config)) *node {
	t.Helper()
	certs, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir(), tls: certs, tune: tune, net: newNetwork()}
	n.start(true)
	return n
}

func (n *node) config(bootstrap bool) store.Config {
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	cfg := store.Config{
		Dir: filepath.Join(n.dir, "raft"), State: n.state, Address: "127.0.0.1:0", TLS: n.tls, Bootstrap: bootstrap,
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", filepath.Base(n.dir)),
		Registerer:   prometheus.NewRegistry(),
		MinFreeBytes: 1000, FreeBytes: func(string) (uint64, error) { return n.free.Load(), nil }, DiskCheckInterval: 10 * time.Millisecond,
		HeartbeatTimeout: 300 * time.Millisecond, LeaderLease: 200 * time.Millisecond,
		Dial: n.net.dial,
	}
	if n.tune != nil {
		n.tune(&cfg)
	}
	return cfg
}

func (n *node) start(bootstrap bool) {
	n.t.Helper()
	if n.free.Load() == 0 {
		n.free.Store(1 << 30)
	}
	var err error
	if n.state, err = openState(n.dir); err != nil {
		n.t.Fatal(err)
	}
	if n.Store, err = store.Open(n.config(bootstrap)); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ran = cancel, make(chan error, 1)
	go func() { n.ran <- n.Run(ctx) }()
	n.t.Cleanup(n.stop)
}

func openState(dir string) (*state.State, error) {
	t, err := table.Open(table.Config{Dir: filepath.Join(dir, "state")})
	if err != nil {
		return nil, err
	}
	return state.New(state.Config{Table: t})
}

// stop may be called again.
func (n *node) stop() {
	n.t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.cancel = nil
	if err := errors.Join(<-n.ran, n.Close(), n.state.Close()); err != nil {
		n.t.Error(err)
	}
}

// network lets tests cut a node off.
type network struct {
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newNetwork() *network { return &network{conns: map[net.Conn]bool{}} }

func (n *network) add(c net.Conn) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		c.Close()
		return nil, errors.New("cut off")
	}
	n.conns[c] = true
	return c, nil
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return n.add(c)
}

// setCut ends all connections of the node and admits no more, or admits them again.
func (n *network) setCut(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	if cut {
		for c := range n.conns {
			c.Close()
		}
		clear(n.conns)
	}
}

// listener refuses connections while the node is cut off.
type listener struct {
	net.Listener
	net *network
}

func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, err := l.net.add(c); err == nil {
			return c, nil
		}
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (n *node) lead() {
	n.t.Helper()
	eventually(n.t, "the node leads", func() bool { return n.Leader().Here })
}

func (n *node) init() {
	n.t.Helper()
	n.lead()
	n.must(&statev1.Command{Operation: &statev1.Command_InitCluster{InitCluster: &statev1.InitCluster{
		ClusterId: "c", DefaultNamespace: &mayflyv1.Namespace{AccountId: "000000000001"},
	}}})
}

func (n *node) must(c *statev1.Command) *statev1.Result {
	n.t.Helper()
	r, err := n.Propose(within(n.t), c)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func putNode(id string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_PutNode{PutNode: &statev1.PutNode{Node: &mayflyv1.Node{Id: id, Name: "node-" + id}}}}
}

func createFunction(name string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateFunction{CreateFunction: &statev1.CreateFunction{
		Function: &mayflyv1.Function{Namespace: "default", Name: name, Code: &mayflyv1.Code{Digest: "sha256:1", SizeBytes: 1}},
	}}}
}

func (n *node) has(id string) bool {
	_, ok := n.View().Node(id)
	return ok
}

// cluster starts nodes that all vote. The first one leads at the start.
func cluster(t testing.TB, size int, tune func(i int, c *store.Config)) []*node {
	t.Helper()
	certs, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*node
	for i := range size {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		n := &node{t: t, dir: filepath.Join(t.TempDir(), fmt.Sprint("n", i)), tls: certs, net: newNetwork()}
		n.tune = func(c *store.Config) {
			if l == nil {
				if l, err = net.Listen("tcp", address); err != nil {
					t.Fatal(err)
				}
			}
			c.Listener, l = listener{l, n.net}, nil
			if tune != nil {
				tune(i, c)
			}
		}
		n.start(i == 0)
		nodes = append(nodes, n)
	}
	nodes[0].init()
	for _, n := range nodes[1:] {
		if err := nodes[0].AddVoter(within(t), n.NodeID(), n.Address()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		eventually(t, "all know the cluster", func() bool { return n.View().Cluster().GetClusterId() == "c" })
	}
	return nodes
}

// leaderOf waits for the one that leads and is not cut off.
func leaderOf(t testing.TB, nodes []*node) *node {
	t.Helper()
	var leader *node
	eventually(t, "one leads", func() bool {
		for _, n := range nodes {
			if n.cancel != nil && n.IsLeader() && n.Leader().Here {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func others(nodes []*node, not *node) []*node {
	var out []*node
	for _, n := range nodes {
		if n != not {
			out = append(out, n)
		}
	}
	return out
}
