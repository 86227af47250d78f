package peer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/mayfly-faas/mayfly/controlplane/peer"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const day = 24 * time.Hour

type cluster struct {
	ca     *peer.CA
	server *peer.Server
	dir    string
	id     string
	now    *time.Time
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	now := time.Now()
	c := &cluster{dir: filepath.Join(t.TempDir(), "pki"), id: uuid.NewString(), now: &now}
	c.open(t)
	return c
}

// open loads everything again, as a restart does.
func (c *cluster) open(t *testing.T, addresses ...string) {
	t.Helper()
	ca, err := peer.EnsureCA(c.dir, func() time.Time { return *c.now })
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.NewServer(peer.ServerConfig{
		Dir: c.dir, NodeID: c.id, NodeName: "server-1", Addresses: addresses, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.ca, c.server = ca, server
}

func (c *cluster) enroll(t *testing.T, name string) peer.Credentials {
	t.Helper()
	key, csr, err := peer.NewRequest(name)
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := c.ca.SignCSR(csr, name, "")
	if err != nil {
		t.Fatal(err)
	}
	return peer.Credentials{Certificate: cert, Key: key, CACertificate: c.ca.CertificatePEM()}
}

// handshake connects both ends and exchanges a byte each way, as TLS 1.3 clients learn of a refusal only when they read.
func handshake(t *testing.T, server, client *tls.Config) (serverSide, clientSide tls.ConnectionState, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type end struct {
		state tls.ConnectionState
		err   error
	}
	ended := make(chan end, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			ended <- end{err: err}
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		_, err = io.CopyN(conn, conn, 1)
		ended <- end{conn.ConnectionState(), err}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	_, err = conn.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	raw.Close()
	other := <-ended
	return other.state, conn.ConnectionState(), errors.Join(err, other.err)
}

func clientTLS(t *testing.T, c *cluster) *tls.Config {
	t.Helper()
	cfg, err := peer.ClientTLS(c.ca.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func agentTLS(t *testing.T, creds peer.Credentials) *tls.Config {
	t.Helper()
	cfg, err := creds.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func contextOf(state tls.ConnectionState) context.Context {
	return grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
}

func TestAgentIsKnownByItsCertificate(t *testing.T) {
	c := newCluster(t)
	creds := c.enroll(t, "worker-1")
	want, err := creds.Identity()
	if err != nil || want.Name != "worker-1" || want.Role != peer.RoleAgent || uuid.Validate(want.ID) != nil {
		t.Fatalf("%+v, %v", want, err)
	}
	state, _, err := handshake(t, c.server.ServerTLS(), agentTLS(t, creds))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := peer.NodeFromContext(contextOf(state)); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	if state.Version != tls.VersionTLS13 {
		t.Errorf("TLS version %x", state.Version)
	}
}

func TestClientWithoutCertificateConnectsButIsNoNode(t *testing.T) {
	c := newCluster(t)
	state, _, err := handshake(t, c.server.ServerTLS(), clientTLS(t, c))
	if err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{contextOf(state), context.Background(), grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{})} {
		if _, err := peer.NodeFromContext(ctx); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED) {
			t.Errorf("error %v", err)
		}
	}
}

func TestClustersDontTrustEachOther(t *testing.T) {
	a, b := newCluster(t), newCluster(t)
	for name, client := range map[string]*tls.Config{
		"CLI of another cluster": clientTLS(t, b),
		// Trusts a, but shows b's certificate.
		"agent of another cluster": func() *tls.Config {
			cfg := agentTLS(t, b.enroll(t, "worker"))
			cfg.RootCAs = clientTLS(t, a).RootCAs
			return cfg
		}(),
	} {
		if _, _, err := handshake(t, a.server.ServerTLS(), client); err == nil {
			t.Errorf("%s connected", name)
		}
	}
	if _, _, err := handshake(t, a.server.RaftTLS(), b.server.RaftTLS()); err == nil {
		t.Error("Raft of two clusters connected")
	}
}

func TestRaftTakesServersOnly(t *testing.T) {
	c := newCluster(t)
	if _, _, err := handshake(t, c.server.RaftTLS(), c.server.RaftTLS()); err != nil {
		t.Errorf("servers: %v", err)
	}
	agent := agentTLS(t, c.enroll(t, "worker-1"))
	if _, _, err := handshake(t, c.server.RaftTLS(), agent); err == nil || !strings.Contains(err.Error(), "no server") {
		t.Errorf("an agent: %v", err)
	}
	if _, _, err := handshake(t, c.server.RaftTLS(), clientTLS(t, c)); err == nil {
		t.Error("a client without certificate connected")
	}
}

func TestAnAgentCantPoseAsAServer(t *testing.T) {
	c := newCluster(t)
	posing := agentTLS(t, c.enroll(t, "worker-1"))
	if _, _, err := handshake(t, posing, clientTLS(t, c)); err == nil {
		t.Error("a client took an agent for a server")
	}
	// A request that asks for more than it gets.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{peer.ServerName, "localhost"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := c.ca.SignCSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "worker-1", "")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(cert.DNSNames) > 0 || cert.IsCA {
		t.Errorf("names %v, CA %v, %v", cert.DNSNames, cert.IsCA, err)
	}
}

func TestClientsByAddress(t *testing.T) {
	c := newCluster(t)
	c.open(t, "10.1.2.3:7070", "mayfly.example.com", "0.0.0.0:7070")
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "server-1", "10.1.2.3", "mayfly.example.com", peer.ServerName} {
		cfg := clientTLS(t, c)
		cfg.ServerName = host
		if _, _, err := handshake(t, c.server.ServerTLS(), cfg); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	cfg := clientTLS(t, c)
	cfg.ServerName = "elsewhere.example.com"
	if _, _, err := handshake(t, c.server.ServerTLS(), cfg); err == nil {
		t.Error("a foreign name was taken")
	}
}

func TestRestartKeepsAuthorityAndCertificate(t *testing.T) {
	c := newCluster(t)
	ca, cert := c.ca.CertificatePEM(), c.server.Certificate().Leaf.Raw
	c.open(t)
	if !bytes.Equal(ca, c.ca.CertificatePEM()) || !bytes.Equal(cert, c.server.Certificate().Leaf.Raw) {
		t.Error("a restart made new certificates")
	}
	c.open(t, "10.9.9.9")
	if bytes.Equal(cert, c.server.Certificate().Leaf.Raw) {
		t.Error("a new address needs a new certificate")
	}
	for _, name := range []string{"ca.crt", "ca.key", "server.crt", "server.key"} {
		info, err := os.Stat(filepath.Join(c.dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestRenewalWithAThirdOfLifeLeft(t *testing.T) {
	c := newCluster(t)
	first := c.server.Certificate().Leaf.NotAfter
	*c.now = c.now.Add(200 * day)
	c.open(t)
	if got := c.server.Certificate().Leaf.NotAfter; !got.Equal(first) {
		t.Fatal("renewed too early")
	}
	*c.now = c.now.Add(60 * day)
	running := c.server.Certificate().Leaf.NotAfter
	if !running.After(first) {
		t.Fatal("not renewed while running")
	}
	c.open(t)
	if got := c.server.Certificate().Leaf.NotAfter; !got.Equal(running) {
		t.Fatal("the renewed certificate was not kept")
	}
	*c.now = c.now.Add(2 * 365 * day)
	c.open(t)
	if !c.server.Certificate().Leaf.NotAfter.After(*c.now) {
		t.Fatal("expired while the node was off and not renewed")
	}
}

func TestRenewalThatFailsKeepsTheOldOne(t *testing.T) {
	c := newCluster(t)
	first := c.server.Certificate().Leaf.Raw
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	*c.now = c.now.Add(300 * day)
	if !bytes.Equal(first, c.server.Certificate().Leaf.Raw) {
		t.Fatal("want the old certificate while a new one can't be written")
	}
	if err := os.Remove(c.dir); err != nil {
		t.Fatal(err)
	}
	*c.now = c.now.Add(2 * time.Minute)
	if bytes.Equal(first, c.server.Certificate().Leaf.Raw) {
		t.Fatal("not tried again")
	}
}

func TestBrokenAuthority(t *testing.T) {
	t.Run("a key without certificate is from a crash", func(t *testing.T) {
		c := newCluster(t)
		if err := os.Remove(filepath.Join(c.dir, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		c.open(t)
	})
	for name, spoil := range map[string]func(dir string) error{
		"no key": func(dir string) error { return os.Remove(filepath.Join(dir, "ca.key")) },
		"foreign key": func(dir string) error {
			return os.Rename(filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.key"))
		},
		"no PEM": func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			if err := spoil(c.dir); err != nil {
				t.Fatal(err)
			}
			if _, err := peer.EnsureCA(c.dir, nil); err == nil {
				t.Fatal("a broken authority must not be replaced silently")
			}
		})
	}
}

func TestSignCSRRefuses(t *testing.T) {
	c := newCluster(t)
	_, good, err := peer.NewRequest("n")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	encode := func(der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	weakRSA, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weakEC, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request := func(key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return encode(der)
	}
	for name, csr := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("hello"), "a certificate": c.ca.CertificatePEM(), "no DER": encode([]byte("x")),
		"forged": encode(forged), "RSA 2048": request(weakRSA), "P-224": request(weakEC),
	} {
		if _, _, err := c.ca.SignCSR(csr, "n", ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT) {
			t.Errorf("%s: %v", name, err)
		}
	}
	id := uuid.NewString()
	if _, got, err := c.ca.SignCSR(good, "n", id); err != nil || got != id {
		t.Errorf("id %s, %v", got, err)
	}
}

func TestCredentialsOnDisk(t *testing.T) {
	c := newCluster(t)
	dir := filepath.Join(t.TempDir(), "identity")
	if _, err := peer.Load(dir); !errors.Is(err, peer.ErrNotEnrolled) {
		t.Fatalf("error %v", err)
	}
	creds := c.enroll(t, "worker-1")
	if err := creds.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := peer.Load(dir)
	if err != nil || !bytes.Equal(got.Certificate, creds.Certificate) || !bytes.Equal(got.Key, creds.Key) || !bytes.Equal(got.CACertificate, creds.CACertificate) {
		t.Fatalf("not what was saved: %v", err)
	}
	mixed := creds
	mixed.Key = c.enroll(t, "worker-2").Key
	foreign := creds
	foreign.CACertificate = newCluster(t).ca.CertificatePEM()
	for name, bad := range map[string]peer.Credentials{"another's key": mixed, "another CA": foreign, "nothing": {}} {
		if err := bad.Save(dir); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
	if again, err := peer.Load(dir); err != nil || !bytes.Equal(again.Key, creds.Key) {
		t.Errorf("refused credentials changed the saved ones: %v", err)
	}
}

func TestClientTLSNeedsACertificate(t *testing.T) {
	if _, err := peer.ClientTLS([]byte("x")); err == nil {
		t.Error("took what is no certificate")
	}
}

// TestOverGRPC has a server tell its callers who they are.
func TestOverGRPC(t *testing.T) {
	c := newCluster(t)
	var got peer.Identity
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(c.server.ServerTLS())),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			var err error
			if got, err = peer.NodeFromContext(ctx); err != nil {
				return nil, err
			}
			return handle(ctx, req)
		}))
	healthv1.RegisterHealthServer(server, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	check := func(cfg *tls.Config) error {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	creds := c.enroll(t, "worker-1")
	want, err := creds.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := check(agentTLS(t, creds)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := check(clientTLS(t, c)); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED) {
		t.Errorf("without certificate: %v", err)
	}
	if err := check(clientTLS(t, newCluster(t))); err == nil {
		t.Error("a client of another cluster was served")
	}
}
