package auth_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	reader    = mayflyv1.Role_ROLE_READER
	invoker   = mayflyv1.Role_ROLE_INVOKER
	developer = mayflyv1.Role_ROLE_DEVELOPER
	admin     = mayflyv1.Role_ROLE_ADMIN
	anybody   = mayflyv1.Role_ROLE_UNSPECIFIED
)

// bench is an authenticator over a map of keys, with a clock and a log to read.
type bench struct {
	*auth.Authenticator
	keyring  *auth.Keyring
	stored   map[string]*statev1.AccessKeyRecord
	now      time.Time
	log      bytes.Buffer
	revision uint64
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{keyring: newKeyring(t), stored: map[string]*statev1.AccessKeyRecord{}, now: time.Unix(1_800_000_000, 0)}
	b.Authenticator = auth.NewAuthenticator(auth.AuthenticatorConfig{
		Keyring: b.keyring,
		Lookup:  func(id string) (*statev1.AccessKeyRecord, bool) { r, ok := b.stored[id]; return r, ok },
		Log:     slog.New(slog.NewTextHandler(&b.log, nil)),
		Now:     func() time.Time { return b.now },
	})
	return b
}

func newKeyring(t *testing.T) *auth.Keyring {
	t.Helper()
	root, err := auth.EnsureRootKeys(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	keyring, err := auth.NewKeyring(root...)
	if err != nil {
		t.Fatal(err)
	}
	return keyring
}

func (b *bench) store(record *statev1.AccessKeyRecord) {
	b.revision++
	record = proto.CloneOf(record)
	record.AccessKey.Meta = &mayflyv1.Meta{Revision: b.revision}
	b.stored[record.GetAccessKey().GetId()] = record
}

func (b *bench) mint(spec auth.KeySpec) (id, secret string) {
	record, secret := b.keyring.MintKey(spec)
	b.store(record)
	return record.GetAccessKey().GetId(), secret
}

func TestMintedKeysAreShapedLikeAWS(t *testing.T) {
	keyring := newKeyring(t)
	seen := map[string]bool{}
	for range 100 {
		record, secret := keyring.MintKey(auth.KeySpec{Role: reader, Namespace: "default"})
		id := record.GetAccessKey().GetId()
		if !regexp.MustCompile(`^AKIA[A-Z2-7]{16}$`).MatchString(id) || len(secret) != 40 || seen[id] || seen[secret] {
			t.Fatalf("id %q, secret of %d characters", id, len(secret))
		}
		seen[id], seen[secret] = true, true
		if bytes.Contains(record.GetSealedSecret(), []byte(secret)) {
			t.Fatal("the secret is stored in the clear")
		}
		if got, err := keyring.OpenSecret(record); err != nil || got != secret {
			t.Fatalf("opened %v", err)
		}
	}
}

func TestSealedSecretsAreBoundToTheirKeyAndRoot(t *testing.T) {
	keyring := newKeyring(t)
	a, _ := keyring.MintKey(auth.KeySpec{Role: reader})
	b, _ := keyring.MintKey(auth.KeySpec{Role: admin})
	if _, err := newKeyring(t).OpenSecret(a); err == nil || !strings.Contains(err.Error(), "root key") {
		t.Errorf("another root key: %v", err)
	}
	b.SealedSecret = a.GetSealedSecret()
	if _, err := keyring.OpenSecret(b); err == nil {
		t.Error("a secret was moved to another key")
	}
	a.SealedSecret = a.GetSealedSecret()[:8]
	if _, err := keyring.OpenSecret(a); err == nil {
		t.Error("a cut secret was opened")
	}
}

func TestRootKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server", "root.key")
	first, err := auth.EnsureRootKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := auth.EnsureRootKeys(path)
	if err != nil || again[0].ID() != first[0].ID() || len(first[0].ID()) != 16 {
		t.Fatalf("ids %q and %q, %v", first[0].ID(), again[0].ID(), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	content, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(content), first[0].ID()) {
		t.Fatalf("the id is a part of the key: %v", err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.EnsureRootKeys(path); err == nil {
		t.Error("a damaged root key was replaced or used")
	}
}

func TestBearer(t *testing.T) {
	b := newBench(t)
	id, secret := b.mint(auth.KeySpec{Role: developer, Namespace: "team"})
	want := auth.Principal{KeyID: id, Namespace: "team", Role: developer}
	for range 2 {
		if got, err := b.Bearer("Bearer " + id + ":" + secret); err != nil || got != want {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if _, err := b.Bearer("bearer " + id + ":" + secret); err != nil {
		t.Errorf("the scheme is case-insensitive: %v", err)
	}
	for _, header := range []string{"", "Bearer", "Bearer ", "Bearer :", "Bearer " + id, "Bearer " + id + ":", "Bearer :" + secret, "Basic " + id + ":" + secret, id + ":" + secret} {
		if _, err := b.Bearer(header); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func TestUnknownKeyAndWrongSecretLookAlike(t *testing.T) {
	b := newBench(t)
	id, secret := b.mint(auth.KeySpec{Role: reader, Namespace: "default"})
	_, wrong := b.Bearer("Bearer " + id + ":" + strings.Repeat("x", 40))
	_, unknown := b.Bearer("Bearer AKIAAAAAAAAAAAAAAAAA:" + secret)
	_, _, unsigned := b.SecretFor("AKIAAAAAAAAAAAAAAAAA")
	if wrong == nil || unknown == nil || unsigned == nil || wrong.Error() != unknown.Error() || unknown.Error() != unsigned.Error() {
		t.Fatalf("%v / %v / %v", wrong, unknown, unsigned)
	}
}

func TestDisabledAndExpiredKeys(t *testing.T) {
	b := newBench(t)
	id, secret := b.mint(auth.KeySpec{Role: reader, Namespace: "default", ExpiresAt: b.now.Add(time.Hour)})
	header := "Bearer " + id + ":" + secret
	check := func(when string, usable bool) {
		t.Helper()
		_, err := b.Bearer(header)
		_, _, signErr := b.SecretFor(id)
		if (err == nil) != usable || (signErr == nil) != usable {
			t.Fatalf("%s: bearer %v, signature %v", when, err, signErr)
		}
		if _, err := b.Bearer("Bearer " + id + ":wrong"); err == nil || strings.Contains(err.Error(), id) {
			t.Fatalf("%s: who doesn't know the secret learns nothing of the key: %v", when, err)
		}
	}
	check("fresh", true)
	record := proto.CloneOf(b.stored[id])
	record.AccessKey.Disabled = true
	b.store(record)
	check("disabled", false)
	record.AccessKey.Disabled = false
	b.store(record)
	check("enabled again", true)
	b.now = b.now.Add(time.Hour)
	check("at its end", false)
}

func TestCacheFollowsTheRevision(t *testing.T) {
	b := newBench(t)
	record, old := b.keyring.MintKey(auth.KeySpec{Role: reader, Namespace: "default"})
	id := record.GetAccessKey().GetId()
	b.store(record)
	if _, err := b.Bearer("Bearer " + id + ":" + old); err != nil {
		t.Fatal(err)
	}
	record.AccessKey.Role = admin
	b.store(record)
	if p, err := b.Bearer("Bearer " + id + ":" + old); err != nil || p.Role != admin {
		t.Fatalf("%+v, %v", p, err)
	}
	delete(b.stored, id)
	if _, err := b.Bearer("Bearer " + id + ":" + old); err == nil {
		t.Fatal("a deleted key was taken")
	}
	// At an unchanged revision the warm path opens nothing: a spoilt record isn't noticed.
	b.store(record)
	if _, err := b.Bearer("Bearer " + id + ":" + old); err != nil {
		t.Fatal(err)
	}
	b.stored[id].SealedSecret = nil
	if _, err := b.Bearer("Bearer " + id + ":" + old); err != nil {
		t.Fatal("the warm path did cryptography")
	}
	b.revision++
	b.stored[id].AccessKey.Meta.Revision = b.revision
	if _, err := b.Bearer("Bearer " + id + ":" + old); fault.From(err).Code != codes.Internal {
		t.Fatalf("a record that can't be opened: %v", err)
	}
}

func TestFailuresAreLoggedSeldomAndWithoutSecrets(t *testing.T) {
	b := newBench(t)
	id, secret := b.mint(auth.KeySpec{Role: reader, Namespace: "default"})
	wrong := strings.ToLower(secret[:39]) + "!"
	for range 500 {
		_, _ = b.Bearer("Bearer " + id + ":" + wrong)
	}
	b.now = b.now.Add(time.Minute)
	// A client that mixed up the two.
	_, _ = b.Bearer("Bearer " + secret + ":" + id)
	text := b.log.String()
	if n := strings.Count(text, "\n"); n != 2 || !strings.Contains(text, "suppressed=499") {
		t.Errorf("%d lines: %s", n, text)
	}
	if strings.Contains(text, wrong) || strings.Contains(text, secret) {
		t.Errorf("a secret is in the log: %s", text)
	}
}

func TestRoles(t *testing.T) {
	for have, may := range map[mayflyv1.Role][]mayflyv1.Role{
		anybody:             {},
		reader:              {anybody, reader},
		invoker:             {anybody, invoker},
		developer:           {anybody, reader, invoker, developer},
		admin:               {anybody, reader, invoker, developer, admin},
		mayflyv1.Role(99):   {},
		mayflyv1.Role(-1):   {},
		mayflyv1.Role(1000): {},
	} {
		for need := mayflyv1.Role(-1); need < 8; need++ {
			if got, want := auth.Includes(have, need), slices.Contains(may, need); got != want {
				t.Errorf("%v may do what needs %v: %v", have, need, got)
			}
		}
	}
}

func TestEveryPublicMethodSaysItsRole(t *testing.T) {
	policy := auth.PolicyOf(protoregistry.GlobalFiles)
	protoregistry.GlobalFiles.RangeFilesByPackage("mayfly.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(j).Name())
				if _, ok := policy[method]; !ok {
					t.Errorf("%s has no required_role", method)
				}
			}
		}
		return true
	})
	if _, ok := policy[agentv1.SessionService_Session_FullMethodName]; ok {
		t.Error("the agents' session must not be open to access keys")
	}
}

func TestPolicy(t *testing.T) {
	policy := auth.PolicyOf(protoregistry.GlobalFiles)
	for _, test := range []struct {
		role   mayflyv1.Role
		method string
		may    bool
	}{
		{reader, mayflyv1.FunctionService_GetFunction_FullMethodName, true},
		{invoker, mayflyv1.FunctionService_GetFunction_FullMethodName, false},
		{invoker, mayflyv1.InvocationService_Invoke_FullMethodName, true},
		{reader, mayflyv1.InvocationService_Invoke_FullMethodName, false},
		{developer, mayflyv1.AccessKeyService_CreateAccessKey_FullMethodName, false},
		{admin, mayflyv1.AccessKeyService_CreateAccessKey_FullMethodName, true},
		{invoker, mayflyv1.AccessKeyService_GetCallerIdentity_FullMethodName, true},
		{admin, agentv1.SessionService_Session_FullMethodName, false},
		{admin, "/mayfly.v1.FunctionService/NoSuchMethod", false},
	} {
		err := policy.Check(auth.Principal{KeyID: "AKIA", Role: test.role}, test.method)
		if (err == nil) != test.may || err != nil && !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED) {
			t.Errorf("%v calls %s: %v", test.role, test.method, err)
		}
	}
}

func TestGate(t *testing.T) {
	b := newBench(t)
	id, secret := b.mint(auth.KeySpec{Role: reader, Namespace: "team"})
	refused := errors.New("no certificate")
	gate := &auth.Gate{
		Authenticator: b.Authenticator,
		Policy:        auth.PolicyOf(protoregistry.GlobalFiles),
		Open:          map[string]bool{"grpc.health.v1.Health": true},
		Services: map[string]func(context.Context) (context.Context, error){
			"mayfly.agent.v1.SessionService": func(context.Context) (context.Context, error) { return nil, refused },
		},
	}
	with := func(values ...string) context.Context {
		return metadata.NewIncomingContext(context.Background(), metadata.MD{"authorization": values})
	}
	key := "Bearer " + id + ":" + secret
	ctx, err := gate.Enter(with(key), mayflyv1.FunctionService_GetFunction_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := auth.FromContext(ctx); !ok || p.KeyID != id || !p.Reaches("team") || p.Reaches("default") {
		t.Errorf("principal %+v", p)
	}
	if _, err := gate.Enter(with(key, key), mayflyv1.FunctionService_GetFunction_FullMethodName); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED) {
		t.Errorf("two headers: %v", err)
	}
	if _, err := gate.Enter(with(key), mayflyv1.FunctionService_DeleteFunction_FullMethodName); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED) {
		t.Errorf("role: %v", err)
	}
	if _, err := gate.Enter(with(key), agentv1.SessionService_Session_FullMethodName); !errors.Is(err, refused) {
		t.Errorf("an access key is no node certificate: %v", err)
	}
	if _, err := gate.Enter(context.Background(), "/grpc.health.v1.Health/Check"); err != nil {
		t.Errorf("health: %v", err)
	}
	if _, err := gate.Enter(context.Background(), "/grpc.health.v1.HealthX/Check"); err == nil {
		t.Error("a service that looks like health is open")
	}
}

type ensured struct {
	keyring  *auth.Keyring
	path     string
	stored   map[string]*statev1.AccessKeyRecord
	fail     error
	endpoint string
}

func (e *ensured) ensure() (bool, error) {
	return auth.EnsureAdmin(context.Background(), auth.EnsureAdminConfig{
		Path: e.path, Keyring: e.keyring, Keys: e.keys(), CA: []byte("PEM"), Endpoint: e.endpoint,
		Propose: func(_ context.Context, c *statev1.Command) (*statev1.Result, error) {
			if e.fail != nil {
				return nil, e.fail
			}
			record := c.GetCreateAccessKey().GetRecord()
			e.stored[record.GetAccessKey().GetId()] = record
			return &statev1.Result{}, nil
		},
	})
}

func (e *ensured) keys() iter.Seq[*statev1.AccessKeyRecord] { return maps.Values(e.stored) }

func TestEnsureAdmin(t *testing.T) {
	e := &ensured{keyring: newKeyring(t), path: filepath.Join(t.TempDir(), "admin.json"), stored: map[string]*statev1.AccessKeyRecord{}, endpoint: "127.0.0.1:7070"}
	bound, _ := e.keyring.MintKey(auth.KeySpec{Role: admin, Namespace: "team"})
	e.stored["bound"] = bound
	e.fail = errors.New("no leader")
	if _, err := e.ensure(); !errors.Is(err, e.fail) {
		t.Fatalf("error %v", err)
	}
	e.fail = nil
	if created, err := e.ensure(); err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	file, err := auth.ReadAdmin(e.path)
	if err != nil || file.CA != "PEM" || file.Endpoint != "127.0.0.1:7070" {
		t.Fatalf("%+v, %v", file, err)
	}
	record, ok := e.stored[file.ID]
	if !ok || record.GetAccessKey().GetRole() != admin || record.GetAccessKey().GetNamespace() != auth.AllNamespaces {
		t.Fatalf("stored %v", record)
	}
	if secret, err := e.keyring.OpenSecret(record); err != nil || secret != file.Secret {
		t.Fatalf("the file's secret is not the key's: %v", err)
	}
	info, err := os.Stat(e.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	e.endpoint = "127.0.0.1:8080"
	if created, err := e.ensure(); err != nil || created || len(e.stored) != 2 {
		t.Fatalf("created again: %v, %v", created, err)
	}
	moved, err := auth.ReadAdmin(e.path)
	if err != nil || moved.ID != file.ID || moved.Secret != file.Secret || moved.Endpoint != e.endpoint {
		t.Fatalf("%+v, %v", moved, err)
	}
	if err := os.Remove(e.path); err != nil {
		t.Fatal(err)
	}
	if created, err := e.ensure(); err != nil || created {
		t.Fatalf("a removed file is its owner's choice: %v, %v", created, err)
	}
}

func BenchmarkBearer(b *testing.B) {
	root, err := auth.EnsureRootKeys(filepath.Join(b.TempDir(), "root.key"))
	if err != nil {
		b.Fatal(err)
	}
	keyring, err := auth.NewKeyring(root...)
	if err != nil {
		b.Fatal(err)
	}
	record, secret := keyring.MintKey(auth.KeySpec{Role: invoker, Namespace: "default"})
	a := auth.NewAuthenticator(auth.AuthenticatorConfig{Keyring: keyring, Lookup: func(string) (*statev1.AccessKeyRecord, bool) { return record, true }})
	header := "Bearer " + record.GetAccessKey().GetId() + ":" + secret
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Bearer(header); err != nil {
			b.Fatal(err)
		}
	}
}
