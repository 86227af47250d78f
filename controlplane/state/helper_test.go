package state_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// machine is a state on a file system in memory, with an applier that numbers commands.
type machine struct {
	t     fataler
	fs    vfs.FS
	state *state.State
	index uint64
}

func newMachine(t fataler) *machine { return openMachine(t, vfs.NewMem(), 0) }

func openMachine(t fataler, fs vfs.FS, index uint64) *machine {
	t.Helper()
	tbl, err := table.Open(table.Config{Dir: "state", FS: fs, MemTableBytes: 256 << 10, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatalf("open table: %v", err)
	}
	s, err := state.New(state.Config{Table: tbl})
	if err != nil {
		t.Fatalf("new state: %v", err)
	}
	return &machine{t: t, fs: fs, state: s, index: index}
}

func (m *machine) close() {
	m.t.Helper()
	if err := m.state.Close(); err != nil {
		m.t.Fatalf("close state: %v", err)
	}
}

func (m *machine) apply(c *statev1.Command) *statev1.Result {
	m.t.Helper()
	m.index++
	r, err := m.state.Apply([]state.Entry{{Index: m.index, Term: 1, Command: c}})
	if err != nil {
		m.t.Fatalf("apply: %v", err)
	}
	return r[0]
}

// ok applies what must not be refused.
func (m *machine) ok(c *statev1.Command) *statev1.Result {
	m.t.Helper()
	r := m.apply(c)
	if r.GetRefusal() != nil {
		m.t.Fatalf("entry %d was refused: %v", m.index, r.GetRefusal())
	}
	return r
}

// refused applies what must be refused for a reason, leaving no trace.
func (m *machine) refused(want mayflyv1.ErrorReason, c *statev1.Command) *statev1.Refusal {
	m.t.Helper()
	before := m.records()
	r := m.apply(c)
	if got := r.GetRefusal().GetReason(); got != want {
		m.t.Fatalf("entry %d: refusal %v, want %v", m.index, r.GetRefusal(), want)
	}
	if r.GetResource() != nil || r.GetRefusal().GetCode() == 0 || len(r.GetRefusal().GetMessage()) < 20 {
		m.t.Fatalf("entry %d: refusal lacks code or message, or has a resource: %v", m.index, r)
	}
	if after := m.records(); before != after {
		m.t.Fatalf("entry %d was refused and left a trace:\n%s\n---\n%s", m.index, before, after)
	}
	return r.GetRefusal()
}

func (m *machine) snapshot() []byte {
	m.t.Helper()
	snap, err := m.state.Snapshot()
	if err != nil {
		m.t.Fatalf("snapshot: %v", err)
	}
	defer snap.Close()
	var b bytes.Buffer
	if err := snap.Write(&b); err != nil {
		m.t.Fatalf("write snapshot: %v", err)
	}
	return b.Bytes()
}

// records prints everything that a view shows.
func (m *machine) records() string {
	v := m.state.View()
	var b bytes.Buffer
	for n := range v.Namespaces() {
		fmt.Fprintln(&b, n, v.Usage(n.GetName()))
		for s := range v.Secrets(n.GetName(), "") {
			fmt.Fprintln(&b, s)
		}
	}
	for f := range v.Functions("", "") {
		fmt.Fprintln(&b, f)
		for x := range v.Versions(f.GetNamespace(), f.GetName(), 0) {
			fmt.Fprintln(&b, x)
		}
		for x := range v.Aliases(f.GetNamespace(), f.GetName(), "") {
			fmt.Fprintln(&b, x)
		}
	}
	for k := range v.AccessKeys("", "") {
		fmt.Fprintln(&b, k)
	}
	for n := range v.Nodes() {
		fmt.Fprintln(&b, n)
	}
	fmt.Fprintln(&b, v.Settings(), v.Cluster().GetClusterId())
	return b.String()
}

func at(seconds int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(seconds, 0)) }

func initCluster() *statev1.Command {
	return &statev1.Command{ProposalId: "init", Time: at(1), Operation: &statev1.Command_InitCluster{InitCluster: &statev1.InitCluster{
		ClusterId: "c1", DefaultNamespace: &mayflyv1.Namespace{AccountId: "000000000001"},
	}}}
}

// ready is a machine with a cluster.
func ready(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	t.Cleanup(m.close)
	m.ok(initCluster())
	return m
}

func digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func code(n int) *mayflyv1.Code {
	return &mayflyv1.Code{Digest: digest(n), SizeBytes: int64(100 + n), UnpackedSizeBytes: 1000}
}

func configuration() *mayflyv1.FunctionConfiguration {
	return &mayflyv1.FunctionConfiguration{
		Runtime: "python3.11", Handler: "app.handler", MemoryMb: 128,
		Timeout: durationpb.New(3 * time.Second), EphemeralStorageMb: 512,
	}
}

func createFunction(ns, name string, n int) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateFunction{CreateFunction: &statev1.CreateFunction{
		Function: &mayflyv1.Function{Namespace: ns, Name: name, Configuration: configuration(), Code: code(n)},
	}}}
}

func updateCode(name string, n int, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_UpdateFunctionCode{UpdateFunctionCode: &statev1.UpdateFunctionCode{
		Namespace: "default", Name: name, Code: code(n), ExpectedRevision: revision,
	}}}
}

func updateConfiguration(u *statev1.UpdateFunctionConfiguration) *statev1.Command {
	u.Namespace = "default"
	return &statev1.Command{Operation: &statev1.Command_UpdateFunctionConfiguration{UpdateFunctionConfiguration: u}}
}

func deleteFunction(name string, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteFunction{DeleteFunction: &statev1.DeleteFunction{
		Namespace: "default", Name: name, ExpectedRevision: revision,
	}}}
}

func setState(name string, codeRevision uint64, st mayflyv1.FunctionState) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_SetFunctionState{SetFunctionState: &statev1.SetFunctionState{
		Namespace: "default", Name: name, CodeRevision: codeRevision, State: st,
	}}}
}

func reserve(name string, n *int32) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_SetFunctionConcurrency{SetFunctionConcurrency: &statev1.SetFunctionConcurrency{
		Namespace: "default", Name: name, ReservedConcurrency: n,
	}}}
}

func setURL(name string, url *mayflyv1.FunctionUrl) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_SetFunctionUrl{SetFunctionUrl: &statev1.SetFunctionUrl{
		Namespace: "default", Name: name, Url: url,
	}}}
}

func publish(p *statev1.PublishVersion) *statev1.Command {
	p.Namespace = "default"
	return &statev1.Command{Operation: &statev1.Command_PublishVersion{PublishVersion: p}}
}

func deleteVersion(name string, n int64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteVersion{DeleteVersion: &statev1.DeleteVersion{
		Namespace: "default", Function: name, Number: n,
	}}}
}

func createAlias(fn, name, version string, weights map[string]float64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateAlias{CreateAlias: &statev1.CreateAlias{
		Alias: &mayflyv1.Alias{Namespace: "default", Function: fn, Name: name, Version: version, Weights: weights},
	}}}
}

func updateAlias(u *statev1.UpdateAlias) *statev1.Command {
	u.Namespace = "default"
	return &statev1.Command{Operation: &statev1.Command_UpdateAlias{UpdateAlias: u}}
}

func deleteAlias(fn, name string, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteAlias{DeleteAlias: &statev1.DeleteAlias{
		Namespace: "default", Function: fn, Name: name, ExpectedRevision: revision,
	}}}
}

func createNamespace(name, account string, q *mayflyv1.Quotas) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateNamespace{CreateNamespace: &statev1.CreateNamespace{
		Namespace: &mayflyv1.Namespace{Name: name, AccountId: account, Quotas: q},
	}}}
}

func updateNamespace(name string, q *mayflyv1.Quotas, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_UpdateNamespace{UpdateNamespace: &statev1.UpdateNamespace{
		Name: name, Quotas: q, ExpectedRevision: revision,
	}}}
}

func deleteNamespace(name string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteNamespace{DeleteNamespace: &statev1.DeleteNamespace{Name: name}}}
}

func createKey(id, ns string, role mayflyv1.Role) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateAccessKey{CreateAccessKey: &statev1.CreateAccessKey{
		Record: &statev1.AccessKeyRecord{
			AccessKey:    &mayflyv1.AccessKey{Id: id, Namespace: ns, Role: role},
			SealedSecret: []byte("sealed"), RootKeyId: "r1",
		},
	}}}
}

func updateKey(u *statev1.UpdateAccessKey) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_UpdateAccessKey{UpdateAccessKey: u}}
}

func deleteKey(id string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteAccessKey{DeleteAccessKey: &statev1.DeleteAccessKey{Id: id}}}
}

func putNode(id, name string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_PutNode{PutNode: &statev1.PutNode{
		Node: &mayflyv1.Node{Id: id, Name: name, Agent: true, Sandboxes: 7, State: mayflyv1.NodeState_NODE_STATE_UP},
	}}}
}

func deleteNode(id string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteNode{DeleteNode: &statev1.DeleteNode{Id: id}}}
}

func updateSettings(s *mayflyv1.Settings, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_UpdateSettings{UpdateSettings: &statev1.UpdateSettings{
		Settings: s, ExpectedRevision: revision,
	}}}
}
