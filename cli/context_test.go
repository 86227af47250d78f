package cli_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/cli/config"
	"github.com/mayfly-faas/mayfly/controlplane/peer"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestContextCommands(t *testing.T) {
	b := newBench(t)
	admin, err := json.Marshal(config.Admin{ID: testKey, Secret: testSecret, CA: b.api.ca, Endpoint: b.api.address})
	if err != nil {
		t.Fatal(err)
	}
	file := b.file("admin.json", string(admin))
	b.file("broken.json", "{}")
	b.file("ca.pem", b.api.ca)
	b.transcript("context", [][]string{
		{"context", "show"},
		{"context", "import", file, "--name", "home"},
		{"context", "show"},
		{"context", "import", b.dir + "/none.json"},
		{"context", "import", b.dir + "/broken.json"},
		{"context", "add", "prod", "--endpoint", "mayfly.example.com:7070", "--ca", b.dir + "/ca.pem", "--access-key", "AKIA1:s", "--namespace", "shop"},
		{"context", "add", "prod"},
		{"context", "add", "prod", "--endpoint", "x:1", "--ca", "nothing"},
		{"context", "add", "prod", "--endpoint", "x:1", "--ca", file},
		{"context", "add", "prod", "--endpoint", "x:1", "--access-key", "AKIA1"},
		{"context", "show", "--output", "json"},
		{"context", "use", "test"},
		{"context", "use", "nope"},
		{"context", "remove", "prod"},
		{"context", "remove", "prod"},
		{"context", "list", "--quiet"},
		{"status", "--context", "nope"},
	}...)
	info, err := os.Stat(b.configPath())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestEnvironmentAloneIsEnough(t *testing.T) {
	b := newBench(t)
	on(b.api, mayflyv1.ClusterService_GetInfo_FullMethodName, func(*mayflyv1.GetInfoRequest) (*mayflyv1.GetInfoResponse, error) {
		return &mayflyv1.GetInfoResponse{NodeName: "box"}, nil
	})
	b.env["XDG_CONFIG_HOME"] = t.TempDir()
	if o := b.run("status"); o.code != cli.ExitUsage || !strings.Contains(o.stderr, "mayfly context import") {
		t.Errorf("without anything: %+v", o)
	}
	b.env["MAYFLY_ENDPOINT"], b.env["MAYFLY_CA"], b.env["MAYFLY_ACCESS_KEY"] = b.api.address, b.api.ca, testKey+":"+testSecret
	if o := b.run("status"); o.code != 0 {
		t.Errorf("with the environment: %+v", o)
	}
	b.env["MAYFLY_ACCESS_KEY"] = testKey + ":wrong"
	if o := b.run("status"); o.code != cli.ExitDenied {
		t.Errorf("with a wrong key: %+v", o)
	}
}

func TestErrorsOfTheConnectionSayWhatToDo(t *testing.T) {
	b := newBench(t)
	if o := b.run("status", "--endpoint", "127.0.0.1:1"); o.code != cli.ExitUnavailable || !strings.Contains(o.stderr, "Is Mayfly running?") {
		t.Errorf("refused: %+v", o)
	}
	_, other := certificate(t)
	b.env["MAYFLY_CA"] = other
	if o := b.run("status"); o.code != cli.ExitUnavailable || !strings.Contains(o.stderr, "mayfly context import") {
		t.Errorf("another CA: %+v", o)
	}
}

func TestLogsFollowEndsWithAnInterrupt(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	onStream(b.api, mayflyv1.LogService_ReadLogs_FullMethodName, func(_ *mayflyv1.ReadLogsRequest, s grpc.ServerStream) error {
		cancel()
		<-s.Context().Done()
		return s.Context().Err()
	})
	if o := b.runWith(ctx, "logs", "hello", "--follow"); o.code != 0 {
		t.Errorf("got %+v", o)
	}
}

func TestNodeEnroll(t *testing.T) {
	b := newBench(t)
	ca, err := peer.EnsureCA(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	on(b.api, mayflyv1.NodeService_EnrollNode_FullMethodName, func(q *mayflyv1.EnrollNodeRequest) (*mayflyv1.EnrollNodeResponse, error) {
		cert, id, err := ca.SignCSR(q.GetCertificateSigningRequest(), q.GetName(), "")
		return &mayflyv1.EnrollNodeResponse{Certificate: cert, CaCertificate: ca.CertificatePEM(), NodeId: id}, err
	})
	dir := filepath.Join(b.dir, "identity")
	o := b.run("node", "enroll", "worker-1", "--identity", dir)
	credentials, err := peer.Load(dir)
	if o.code != 0 || err != nil {
		t.Fatalf("got %+v, %v", o, err)
	}
	id, err := credentials.Identity()
	if err != nil || id.Name != "worker-1" || !strings.Contains(o.stdout, id.ID) {
		t.Errorf("identity %+v, %v; said %s", id, err, o.stdout)
	}
	if info, err := os.Stat(filepath.Join(dir, cli.IdentityKey)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}
	if o := b.run("node", "enroll", "worker-1", "--identity", dir); o.code != cli.ExitConflict {
		t.Errorf("again: %+v", o)
	}
}

func TestCompletionOfNames(t *testing.T) {
	b := newBench(t)
	on(b.api, mayflyv1.FunctionService_ListFunctions_FullMethodName, func(q *mayflyv1.ListFunctionsRequest) (*mayflyv1.ListFunctionsResponse, error) {
		return &mayflyv1.ListFunctionsResponse{Functions: []*mayflyv1.Function{{Name: q.GetNamePrefix() + "llo"}}}, nil
	})
	on(b.api, mayflyv1.AliasService_ListAliases_FullMethodName, func(*mayflyv1.ListAliasesRequest) (*mayflyv1.ListAliasesResponse, error) {
		return &mayflyv1.ListAliasesResponse{Aliases: []*mayflyv1.Alias{{Name: "live"}}}, nil
	})
	for want, args := range map[string][]string{
		"hello\n":      {"__complete", "invoke", "he"},
		"live\n":       {"__complete", "alias", "get", "hello", ""},
		"test\n":       {"__complete", "context", "use", ""},
		"python3.11\n": {"__complete", "deploy", ".", "--runtime", ""},
	} {
		if o := b.run(args...); o.code != 0 || !strings.HasPrefix(o.stdout, want) {
			t.Errorf("%v: got %+v, want %q", args, o, want)
		}
	}
	b.env["MAYFLY_ENDPOINT"] = "127.0.0.1:1"
	if o := b.run("__complete", "invoke", ""); o.code != 0 || o.stdout != ":4\n" {
		t.Errorf("with nobody to ask: %+v", o)
	}
}
