package api_test

import (
	"archive/zip"
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// bench is a gRPC server with fakes below it, reached through its clients.
type bench struct {
	state   *fakeState
	blobs   fakeBlobs
	invoker *fakeInvoker
	fleet   *fakeFleet
	keyring *auth.Keyring
	// rotation is what RotateRootKey answers.
	rotation func() (auth.Rotation, error)
	log      *syncBuffer
	dial     func(options ...grpc.DialOption) *grpc.ClientConn
	// admin's key is for all namespaces.
	admin *client
}

// client calls as one key.
type client struct {
	conn      *grpc.ClientConn
	function  mayflyv1.FunctionServiceClient
	version   mayflyv1.VersionServiceClient
	alias     mayflyv1.AliasServiceClient
	invoke    mayflyv1.InvocationServiceClient
	log       mayflyv1.LogServiceClient
	node      mayflyv1.NodeServiceClient
	key       mayflyv1.AccessKeyServiceClient
	namespace mayflyv1.NamespaceServiceClient
	cluster   mayflyv1.ClusterServiceClient
	secret    mayflyv1.SecretServiceClient
	id        string
}

func newBench(t *testing.T, services ...api.Service) *bench {
	t.Helper()
	root, err := auth.EnsureRootKeys(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	keyring, err := auth.NewKeyring(root...)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{state: newFakeState(), blobs: fakeBlobs{t.TempDir()}, invoker: &fakeInvoker{}, fleet: &fakeFleet{}, keyring: keyring, log: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	public, err := api.New(api.Config{
		Propose: b.state.Propose, View: b.state.View, Invoker: b.invoker, Fleet: b.fleet, Blobs: b.blobs, Certificates: fakeCertificates{}, Keyring: keyring, RotateRootKey: b.rotate,
		Self: api.Self{MayflyVersion: "1.2.3", NodeID: "self", NodeName: "server-1", HTTPURL: "http://127.0.0.1:7080", Leader: func() bool { return true }}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.NewServer(api.ServerConfig{
		API: public, Services: services, Log: log,
		Authenticator: auth.NewAuthenticator(auth.AuthenticatorConfig{
			Keyring: keyring, Log: log,
			Lookup: func(id string) (*statev1.AccessKeyRecord, bool) { return b.state.View().AccessKey(id) },
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.serve(t, server)
	b.admin = b.as(t, mayflyv1.Role_ROLE_ADMIN, "*")
	return b
}

func (b *bench) rotate(context.Context) (auth.Rotation, error) { return b.rotation() }

func (b *bench) serve(t *testing.T, server *grpc.Server) {
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	b.dial = func(options ...grpc.DialOption) *grpc.ClientConn {
		options = append(options,
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
		conn, err := grpc.NewClient("passthrough:bufconn", options...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// as makes a key behind the API's back, and a client that uses it.
func (b *bench) as(t *testing.T, role mayflyv1.Role, namespace string) *client {
	t.Helper()
	record, secret := b.keyring.MintKey(auth.KeySpec{Role: role, Namespace: namespace})
	b.state.mu.Lock()
	b.state.index++
	record.AccessKey.Meta = b.state.meta()
	b.state.keys[record.GetAccessKey().GetId()] = record
	b.state.mu.Unlock()
	return b.with(record.GetAccessKey().GetId(), secret)
}

func (b *bench) with(id, secret string) *client {
	conn := b.dial(grpc.WithPerRPCCredentials(bearer("Bearer " + id + ":" + secret)))
	return clientOf(conn, id)
}

func clientOf(conn *grpc.ClientConn, id string) *client {
	return &client{
		conn: conn, id: id, function: mayflyv1.NewFunctionServiceClient(conn), version: mayflyv1.NewVersionServiceClient(conn),
		alias: mayflyv1.NewAliasServiceClient(conn), invoke: mayflyv1.NewInvocationServiceClient(conn), log: mayflyv1.NewLogServiceClient(conn),
		node: mayflyv1.NewNodeServiceClient(conn), key: mayflyv1.NewAccessKeyServiceClient(conn),
		namespace: mayflyv1.NewNamespaceServiceClient(conn), cluster: mayflyv1.NewClusterServiceClient(conn),
		secret: mayflyv1.NewSecretServiceClient(conn),
	}
}

type bearer string

func (c bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(c)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

func (b *bench) addNamespace(name, account string) {
	b.state.mu.Lock()
	defer b.state.mu.Unlock()
	b.state.namespaces[name] = &mayflyv1.Namespace{Meta: b.state.meta(), Name: name, AccountId: account, Quotas: api.DefaultQuotas()}
}

func (b *bench) proposals() int {
	b.state.mu.Lock()
	defer b.state.mu.Unlock()
	return len(b.state.commands)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantReason(t *testing.T, what string, err error, reason mayflyv1.ErrorReason, words ...string) {
	t.Helper()
	if !fault.Is(err, reason) {
		t.Errorf("%s: want %v, got %v", what, reason, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(fault.From(err).Message, word) {
			t.Errorf("%s: %q doesn't name %q", what, fault.From(err).Message, word)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// entry is a file of a zip to make; mode 0 is a regular file.
type entry struct {
	name    string
	content string
	mode    fs.FileMode
}

func zipOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(e.mode | 0o644)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func helloZip(t testing.TB) []byte {
	return zipOf(t, entry{name: "hello.py", content: "def hello_world(event, context):\n    return {}\n"})
}

func createRequest(t testing.TB, name string) *mayflyv1.CreateFunctionRequest {
	return &mayflyv1.CreateFunctionRequest{
		Name: name, Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "hello.hello_world"},
		Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: helloZip(t)},
	}
}

func (c *client) create(t *testing.T, name string) *mayflyv1.Function {
	t.Helper()
	response, err := c.function.CreateFunction(testContext(t), createRequest(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return response.GetFunction()
}

// publish changes the function first, as only a changed one gets a new version.
func (c *client) publish(t *testing.T, name string) *mayflyv1.Version {
	t.Helper()
	if _, err := c.function.UpdateFunctionCode(testContext(t), &mayflyv1.UpdateFunctionCodeRequest{
		Name: name, Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: zipOf(t, entry{name: "hello.py", content: uuid.NewString()})},
	}); err != nil {
		t.Fatal(err)
	}
	response, err := c.version.PublishVersion(testContext(t), &mayflyv1.PublishVersionRequest{Function: name})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetVersion()
}
