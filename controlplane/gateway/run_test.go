package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func get(ctx context.Context, client *http.Client, url string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Run lets a request in flight finish, and takes no new one.
func TestRunShutsDownGracefully(t *testing.T) {
	cfg, inv, _ := testConfig()
	l := listen(t, "127.0.0.1:0")
	cfg.Listeners = []net.Listener{l}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	entered, finish := make(chan struct{}), make(chan struct{})
	inv.answer = func(ctx context.Context, _ *Request, _ func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		close(entered)
		<-finish
		return &mayflyv1.InvokeResponse{Payload: []byte(`"late"`)}, ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	type result struct {
		status int
		body   string
		err    error
	}
	answer := make(chan result, 1)
	url := "http://" + l.Addr().String()
	go func() {
		status, body, err := get(t.Context(), http.DefaultClient, url+"/fn/open")
		answer <- result{status, body, err}
	}()
	<-entered
	stop()
	select {
	case err := <-done:
		t.Fatalf("Run ended before the request: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if r := <-answer; r.status != 200 || r.body != "late" || r.err != nil {
		t.Errorf("request in flight: %+v", r)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, _, err := get(t.Context(), http.DefaultClient, url+"/healthz"); err == nil {
		t.Error("still serving")
	}
}

func TestRunCutsOffWhatDoesNotEnd(t *testing.T) {
	cfg, inv, _ := testConfig()
	l := listen(t, "127.0.0.1:0")
	cfg.Listeners, cfg.ShutdownTimeout = []net.Listener{l}, time.Millisecond
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{})
	inv.answer = func(ctx context.Context, _ *Request, _ func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	failed := make(chan error, 1)
	go func() {
		_, _, err := get(t.Context(), http.DefaultClient, "http://"+l.Addr().String()+"/fn/open")
		failed <- err
	}()
	<-entered
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the cut-off request got an answer")
	}
}

// Loopback is plain even where other addresses have TLS.
func TestRunServesTLSBeyondLoopback(t *testing.T) {
	cfg, _, _ := testConfig()
	cert := selfSigned(t)
	plain, secure := listen(t, "127.0.0.1:0"), listen(t, "0.0.0.0:0")
	cfg.Listeners = []net.Listener{plain, secure}
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	if status, _, err := get(t.Context(), http.DefaultClient, "http://"+plain.Addr().String()+"/healthz"); status != 200 {
		t.Errorf("plain: %d %v", status, err)
	}
	pool := x509.NewCertPool()
	leaf, _ := x509.ParseCertificate(cert.Certificate[0])
	pool.AddCert(leaf)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	_, port, _ := net.SplitHostPort(secure.Addr().String())
	if status, _, err := get(t.Context(), client, "https://127.0.0.1:"+port+"/healthz"); status != 200 {
		t.Errorf("TLS: %d %v", status, err)
	}
	client.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
