package cli_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/cli/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var digests = regexp.MustCompile("sha256:[0-9a-f]{64}")

var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	testKey    = "AKIAAAAABBBBCCCCDDDD"
	testSecret = "secret/with+signs"
)

// fakeAPI is a control plane whose methods answer what a test says, over TLS, and that writes down what it was asked.
type fakeAPI struct {
	address string
	ca      string

	mu       sync.Mutex
	handlers map[string]func(grpc.ServerStream) error
	requests []string
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	cert, ca := certificate(t)
	f := &fakeAPI{ca: ca, handlers: map[string]func(grpc.ServerStream) error{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	creds := credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	server := grpc.NewServer(grpc.Creds(creds), grpc.UnknownServiceHandler(f.serve), grpc.MaxRecvMsgSize(16<<20))
	var served sync.WaitGroup
	served.Go(func() {
		// A test may be over before its server has begun.
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		served.Wait()
	})
	return f
}

func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (f *fakeAPI) serve(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	md, _ := metadata.FromIncomingContext(stream.Context())
	if got := strings.Join(md.Get("authorization"), ","); got != "Bearer "+testKey+":"+testSecret {
		return status.Errorf(codes.Unauthenticated, "wrong key %q", got)
	}
	f.mu.Lock()
	handler := f.handlers[method]
	f.mu.Unlock()
	if handler == nil {
		return status.Errorf(codes.Unimplemented, "the fake does not know %s", method)
	}
	return handler(stream)
}

func (f *fakeAPI) record(method string, m proto.Message) {
	text, err := protojson.Marshal(m)
	if err != nil {
		panic(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, method[strings.LastIndex(method, ".")+1:]+" "+compact.String())
}

func (f *fakeAPI) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.requests
	f.requests = nil
	return r
}

// on makes the fake answer a method with one answer.
func on[Q, R any, PQ interface {
	*Q
	proto.Message
}, PR interface {
	*R
	proto.Message
}](f *fakeAPI, method string, answer func(PQ) (PR, error),
) {
	onStream(f, method, func(q PQ, s grpc.ServerStream) error {
		r, err := answer(q)
		if err != nil {
			return err
		}
		return s.SendMsg(r)
	})
}

// onStream makes the fake answer a method with a stream.
func onStream[Q any, PQ interface {
	*Q
	proto.Message
}](f *fakeAPI, method string, answer func(PQ, grpc.ServerStream) error,
) {
	f.handlers[method] = func(s grpc.ServerStream) error {
		q := PQ(new(Q))
		if err := s.RecvMsg(q); err != nil {
			return err
		}
		f.record(method, q)
		return answer(q, s)
	}
}

// fakeHost is a machine with everything.
type fakeHost struct {
	uid     int
	kernel  string
	missing map[string]bool
	ports   map[string]error
	free    int64
}

func (h *fakeHost) Geteuid() int     { return h.uid }
func (h *fakeHost) Hostname() string { return "Box.Example.com" }
func (h *fakeHost) LookPath(p string) (string, error) {
	if h.missing[p] {
		return "", os.ErrNotExist
	}
	return "/usr/bin/" + p, nil
}

func (h *fakeHost) ReadFile(p string) ([]byte, error) {
	if h.missing[p] {
		return nil, os.ErrNotExist
	}
	return []byte("1000\n"), nil
}
func (h *fakeHost) Exists(p string) bool            { return !h.missing[p] }
func (h *fakeHost) KernelRelease() string           { return h.kernel }
func (h *fakeHost) FSMagic(string) int64            { return 0x63677270 }
func (h *fakeHost) FreeBytes(string) (int64, error) { return h.free, nil }
func (h *fakeHost) TryNFTables() error              { return nil }
func (h *fakeHost) TryListen(address string) error  { return h.ports[address] }

// bench is a command line in a world of its own.
type bench struct {
	t    *testing.T
	api  *fakeAPI
	host *fakeHost
	app  *cli.App
	home string
	env  map[string]string
	dir  string
}

// outcome is what one command did.
type outcome struct {
	stdout, stderr string
	code           int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, api: newFakeAPI(t), home: t.TempDir(), dir: t.TempDir(), env: map[string]string{}}
	b.host = &fakeHost{kernel: "6.1.0-18-amd64", missing: map[string]bool{}, ports: map[string]error{}, free: 8 << 30}
	b.env["XDG_CONFIG_HOME"] = b.home
	file := &config.File{Current: "test", Contexts: map[string]config.Context{
		"test": {Endpoint: b.api.address, CA: b.api.ca, AccessKeyID: testKey, SecretAccessKey: testSecret},
	}}
	if err := file.Save(b.configPath()); err != nil {
		t.Fatal(err)
	}
	b.app = b.newApp()
	return b
}

func (b *bench) configPath() string { return filepath.Join(b.home, "mayfly", "config.yaml") }

func (b *bench) newApp() *cli.App {
	return &cli.App{
		Version: "1.2.3", Stdin: strings.NewReader(""), Getenv: func(k string) string { return b.env[k] },
		Now:   func() time.Time { return testNow },
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		Host:  b.host,
		RunUp: func(context.Context, cli.UpOptions, *slog.Logger) error { return nil },
	}
}

// run runs a command with the app as it is, which then is made anew: flags are parsed once in a process's life.
func (b *bench) run(args ...string) outcome {
	b.t.Helper()
	return b.runWith(b.t.Context(), args...)
}

func (b *bench) runWith(ctx context.Context, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	b.app.Stdout, b.app.Stderr = &stdout, &stderr
	code := b.app.Run(ctx, args)
	return outcome{b.neutral(stdout.String()), b.neutral(stderr.String()), code}
}

// neutral takes out what differs from run to run.
func (b *bench) neutral(s string) string {
	// Digests change with the compressor of each Go release.
	s = digests.ReplaceAllString(s, "sha256:DIGEST")
	return strings.NewReplacer(b.home, "HOME", b.dir, "DIR", b.api.address, "ENDPOINT").Replace(s)
}

func (b *bench) stdin(s string) { b.app.Stdin = strings.NewReader(s) }

func (b *bench) file(name, content string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// transcript runs commands and compares all that is seen of them, by the person and by the API, with a golden file.
func (b *bench) transcript(name string, commands ...[]string) {
	b.t.Helper()
	var text strings.Builder
	for _, args := range commands {
		o := b.run(args...)
		fmt.Fprintf(&text, "$ mayfly %s\n", b.neutral(strings.Join(args, " ")))
		for _, r := range b.api.taken() {
			fmt.Fprintf(&text, "> %s\n", b.neutral(r))
		}
		io.WriteString(&text, o.stdout)
		for line := range strings.Lines(o.stderr) {
			fmt.Fprintf(&text, "! %s", line)
		}
		fmt.Fprintf(&text, "= %d\n\n", o.code)
	}
	golden(b.t, name, text.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (rewrite by: go test ./cli -update)\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}
