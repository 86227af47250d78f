package api_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// fakeState is a store and its state in one: it applies at once, under one lock, and hands out copies.
type fakeState struct {
	mu         sync.Mutex
	index      uint64
	commands   []*statev1.Command
	namespaces map[string]*mayflyv1.Namespace
	functions  map[string]*mayflyv1.Function
	versions   map[string]*mayflyv1.Version
	aliases    map[string]*mayflyv1.Alias
	keys       map[string]*statev1.AccessKeyRecord
	nodes      map[string]*mayflyv1.Node
	secrets    map[string]*statev1.SecretRecord
	settings   *mayflyv1.Settings
	// fail is what the next proposals answer.
	fail error
	// refuse may refuse a command.
	refuse func(*statev1.Command) error
}

func newFakeState() *fakeState {
	return &fakeState{
		namespaces: map[string]*mayflyv1.Namespace{"default": {Name: "default", AccountId: "000000000000", Quotas: api.DefaultQuotas()}},
		functions:  map[string]*mayflyv1.Function{}, versions: map[string]*mayflyv1.Version{}, aliases: map[string]*mayflyv1.Alias{},
		keys: map[string]*statev1.AccessKeyRecord{}, nodes: map[string]*mayflyv1.Node{}, secrets: map[string]*statev1.SecretRecord{},
		settings: &mayflyv1.Settings{Meta: &mayflyv1.Meta{Revision: 1}, Region: "us-east-1", UrlDomain: "localhost"}, index: 1,
	}
}

func (s *fakeState) Propose(_ context.Context, c *statev1.Command) (*statev1.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.GetProposalId() == "" || c.GetTime() == nil {
		return nil, errors.New("a command without id or time")
	}
	if s.fail != nil {
		return nil, s.fail
	}
	if s.refuse != nil {
		if err := s.refuse(c); err != nil {
			return nil, err
		}
	}
	s.index++
	s.commands = append(s.commands, proto.CloneOf(c))
	return s.apply(proto.CloneOf(c))
}

func (s *fakeState) meta() *mayflyv1.Meta { return &mayflyv1.Meta{Revision: s.index} }

func conflict(meta *mayflyv1.Meta, expected uint64) error {
	if expected != 0 && expected != meta.GetRevision() {
		return fault.New(codes.Aborted, mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT, "fake: revision")
	}
	return nil
}

func (s *fakeState) apply(c *statev1.Command) (*statev1.Result, error) {
	switch op := c.GetOperation().(type) {
	case *statev1.Command_CreateNamespace:
		ns := op.CreateNamespace.GetNamespace()
		ns.Meta = s.meta()
		s.namespaces[ns.GetName()] = ns
		return &statev1.Result{Resource: &statev1.Result_Namespace{Namespace: ns}}, nil
	case *statev1.Command_UpdateNamespace:
		ns := proto.CloneOf(s.namespaces[op.UpdateNamespace.GetName()])
		proto.Merge(ns.GetQuotas(), op.UpdateNamespace.GetQuotas())
		ns.Meta = s.meta()
		s.namespaces[ns.GetName()] = ns
		return &statev1.Result{Resource: &statev1.Result_Namespace{Namespace: ns}}, nil
	case *statev1.Command_DeleteNamespace:
		for _, fn := range s.functions {
			if fn.GetNamespace() == op.DeleteNamespace.GetName() {
				return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "fake: in use")
			}
		}
		delete(s.namespaces, op.DeleteNamespace.GetName())
	case *statev1.Command_CreateAccessKey:
		record := op.CreateAccessKey.GetRecord()
		record.AccessKey.Meta = s.meta()
		s.keys[record.GetAccessKey().GetId()] = record
		return &statev1.Result{Resource: &statev1.Result_AccessKey{AccessKey: record.GetAccessKey()}}, nil
	case *statev1.Command_UpdateAccessKey:
		return s.updateKey(op.UpdateAccessKey)
	case *statev1.Command_DeleteAccessKey:
		delete(s.keys, op.DeleteAccessKey.GetId())
	case *statev1.Command_PutNode:
		node := op.PutNode.GetNode()
		node.Meta = s.meta()
		s.nodes[node.GetId()] = node
	case *statev1.Command_DeleteNode:
		delete(s.nodes, op.DeleteNode.GetId())
	case *statev1.Command_UpdateSettings:
		if err := conflict(s.settings.GetMeta(), op.UpdateSettings.GetExpectedRevision()); err != nil {
			return nil, err
		}
		s.settings = proto.CloneOf(s.settings)
		proto.Merge(s.settings, op.UpdateSettings.GetSettings())
		s.settings.Meta = s.meta()
		return &statev1.Result{Resource: &statev1.Result_Settings{Settings: s.settings}}, nil
	default:
		return s.applyFunction(c)
	}
	return &statev1.Result{}, nil
}

func (s *fakeState) updateKey(u *statev1.UpdateAccessKey) (*statev1.Result, error) {
	record := proto.CloneOf(s.keys[u.GetId()])
	if err := conflict(record.GetAccessKey().GetMeta(), u.GetExpectedRevision()); err != nil {
		return nil, err
	}
	key := record.GetAccessKey()
	if u.Disabled != nil {
		key.Disabled = u.GetDisabled()
	}
	if u.GetRole() != 0 {
		key.Role = u.GetRole()
	}
	if u.Description != nil {
		key.Description = u.GetDescription()
	}
	key.Meta = s.meta()
	s.keys[u.GetId()] = record
	return &statev1.Result{Resource: &statev1.Result_AccessKey{AccessKey: key}}, nil
}

func (s *fakeState) applyFunction(c *statev1.Command) (*statev1.Result, error) {
	switch op := c.GetOperation().(type) {
	case *statev1.Command_CreateFunction:
		fn := op.CreateFunction.GetFunction()
		if op.CreateFunction.GetPublish() {
			s.publish(fn, "")
		}
		return s.put(fn), nil
	case *statev1.Command_UpdateFunctionCode:
		u := op.UpdateFunctionCode
		return s.change(u.GetNamespace(), u.GetName(), u.GetExpectedRevision(), func(fn *mayflyv1.Function) { fn.Code = u.GetCode() })
	case *statev1.Command_UpdateFunctionConfiguration:
		u := op.UpdateFunctionConfiguration
		return s.change(u.GetNamespace(), u.GetName(), u.GetExpectedRevision(), func(fn *mayflyv1.Function) { s.configure(fn, u) })
	case *statev1.Command_DeleteFunction:
		u := op.DeleteFunction
		if err := conflict(s.functions[u.GetNamespace()+"/"+u.GetName()].GetMeta(), u.GetExpectedRevision()); err != nil {
			return nil, err
		}
		delete(s.functions, u.GetNamespace()+"/"+u.GetName())
	case *statev1.Command_SetFunctionConcurrency:
		u := op.SetFunctionConcurrency
		return s.change(u.GetNamespace(), u.GetName(), 0, func(fn *mayflyv1.Function) { fn.ReservedConcurrency = u.ReservedConcurrency })
	case *statev1.Command_SetFunctionUrl:
		u := op.SetFunctionUrl
		return s.change(u.GetNamespace(), u.GetName(), 0, func(fn *mayflyv1.Function) { fn.Url = u.GetUrl() })
	case *statev1.Command_PublishVersion:
		u := op.PublishVersion
		fn := proto.CloneOf(s.functions[u.GetNamespace()+"/"+u.GetFunction()])
		if err := conflict(fn.GetMeta(), u.GetExpectedRevision()); err != nil {
			return nil, err
		}
		last := s.versions[versionKey(u.GetNamespace(), u.GetFunction(), fn.GetLastVersion())]
		if proto.Equal(last.GetCode(), fn.GetCode()) && proto.Equal(last.GetConfiguration(), fn.GetConfiguration()) {
			return &statev1.Result{Resource: &statev1.Result_Version{Version: last}}, nil
		}
		version := s.publish(fn, u.GetDescription())
		s.put(fn)
		return &statev1.Result{Resource: &statev1.Result_Version{Version: version}}, nil
	case *statev1.Command_DeleteVersion:
		u := op.DeleteVersion
		delete(s.versions, versionKey(u.GetNamespace(), u.GetFunction(), u.GetNumber()))
	case *statev1.Command_CreateAlias:
		return s.putAlias(op.CreateAlias.GetAlias()), nil
	case *statev1.Command_UpdateAlias:
		return s.updateAlias(op.UpdateAlias)
	case *statev1.Command_DeleteAlias:
		u := op.DeleteAlias
		delete(s.aliases, u.GetNamespace()+"/"+u.GetFunction()+"/"+u.GetName())
	default:
		return s.applySecret(c)
	}
	return &statev1.Result{}, nil
}

func (s *fakeState) put(fn *mayflyv1.Function) *statev1.Result {
	fn.Meta = s.meta()
	s.functions[fn.GetNamespace()+"/"+fn.GetName()] = fn
	return &statev1.Result{Resource: &statev1.Result_Function{Function: fn}}
}

func (s *fakeState) change(ns, name string, expected uint64, how func(*mayflyv1.Function)) (*statev1.Result, error) {
	fn := proto.CloneOf(s.functions[ns+"/"+name])
	if err := conflict(fn.GetMeta(), expected); err != nil {
		return nil, err
	}
	how(fn)
	return s.put(fn), nil
}

func (s *fakeState) configure(fn *mayflyv1.Function, u *statev1.UpdateFunctionConfiguration) {
	change := proto.CloneOf(u.GetConfiguration())
	if change != nil {
		change.Environment, change.Description, change.SecretEnvironment, change.SecretFiles = nil, "", nil, nil
		proto.Merge(fn.GetConfiguration(), change)
	}
	if slices.Contains(u.GetReplace(), "environment") {
		fn.Configuration.Environment = u.GetConfiguration().GetEnvironment()
	}
	if slices.Contains(u.GetReplace(), "description") {
		fn.Configuration.Description = u.GetConfiguration().GetDescription()
	}
	if slices.Contains(u.GetReplace(), "secret_environment") {
		fn.Configuration.SecretEnvironment = u.GetConfiguration().GetSecretEnvironment()
	}
	if slices.Contains(u.GetReplace(), "secret_files") {
		fn.Configuration.SecretFiles = u.GetConfiguration().GetSecretFiles()
	}
	if slices.Contains(u.GetReplace(), "tags") {
		fn.Tags = u.GetTags()
	}
}

func versionKey(ns, fn string, number int64) string {
	return ns + "/" + fn + "/" + strconv.FormatInt(number, 10)
}

func (s *fakeState) publish(fn *mayflyv1.Function, description string) *mayflyv1.Version {
	fn.LastVersion++
	v := &mayflyv1.Version{
		Meta: s.meta(), Namespace: fn.GetNamespace(), Function: fn.GetName(), Number: fn.GetLastVersion(),
		Description: description, Configuration: fn.GetConfiguration(), Code: fn.GetCode(),
	}
	s.versions[versionKey(v.GetNamespace(), v.GetFunction(), v.GetNumber())] = v
	return v
}

func (s *fakeState) putAlias(a *mayflyv1.Alias) *statev1.Result {
	a.Meta = s.meta()
	s.aliases[a.GetNamespace()+"/"+a.GetFunction()+"/"+a.GetName()] = a
	return &statev1.Result{Resource: &statev1.Result_Alias{Alias: a}}
}

func (s *fakeState) updateAlias(u *statev1.UpdateAlias) (*statev1.Result, error) {
	a := proto.CloneOf(s.aliases[u.GetNamespace()+"/"+u.GetFunction()+"/"+u.GetName()])
	if err := conflict(a.GetMeta(), u.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if u.GetVersion() != "" {
		a.Version = u.GetVersion()
	}
	if slices.Contains(u.GetReplace(), "weights") {
		a.Weights = u.GetWeights()
	}
	if slices.Contains(u.GetReplace(), "description") {
		a.Description = u.GetDescription()
	}
	return s.putAlias(a), nil
}

// View copies the maps; the records are shared, as the real ones are.
func (s *fakeState) View() api.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &fakeView{
		index: s.index, namespaces: maps.Clone(s.namespaces), functions: maps.Clone(s.functions), versions: maps.Clone(s.versions),
		aliases: maps.Clone(s.aliases), keys: maps.Clone(s.keys), nodes: maps.Clone(s.nodes), settings: s.settings, secrets: maps.Clone(s.secrets),
	}
}

type fakeView struct {
	index      uint64
	namespaces map[string]*mayflyv1.Namespace
	functions  map[string]*mayflyv1.Function
	versions   map[string]*mayflyv1.Version
	aliases    map[string]*mayflyv1.Alias
	keys       map[string]*statev1.AccessKeyRecord
	nodes      map[string]*mayflyv1.Node
	secrets    map[string]*statev1.SecretRecord
	settings   *mayflyv1.Settings
}

// sorted gives the values that keep wants, in order of key.
func sorted[T any, K cmp.Ordered](m map[string]T, key func(T) K, keep func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		values := slices.SortedFunc(maps.Values(m), func(a, b T) int { return cmp.Compare(key(a), key(b)) })
		for _, v := range values {
			if keep(v) && !yield(v) {
				return
			}
		}
	}
}

func get[T any](m map[string]T, key string) (T, bool) { v, ok := m[key]; return v, ok }

func (v *fakeView) Index() uint64 { return v.index }

func (v *fakeView) Namespace(name string) (*mayflyv1.Namespace, bool) { return get(v.namespaces, name) }

func (v *fakeView) Namespaces() iter.Seq[*mayflyv1.Namespace] { return maps.Values(v.namespaces) }

func (v *fakeView) NamespaceByAccount(id string) (*mayflyv1.Namespace, bool) {
	for _, ns := range v.namespaces {
		if ns.GetAccountId() == id {
			return ns, true
		}
	}
	return nil, false
}

func (v *fakeView) Function(ns, name string) (*mayflyv1.Function, bool) {
	return get(v.functions, ns+"/"+name)
}

func (v *fakeView) Functions(ns, after string) iter.Seq[*mayflyv1.Function] {
	return sorted(v.functions, (*mayflyv1.Function).GetName, func(f *mayflyv1.Function) bool {
		return f.GetNamespace() == ns && f.GetName() > after
	})
}

func (v *fakeView) Version(ns, fn string, n int64) (*mayflyv1.Version, bool) {
	return get(v.versions, versionKey(ns, fn, n))
}

func (v *fakeView) Versions(ns, fn string, after int64) iter.Seq[*mayflyv1.Version] {
	return sorted(v.versions, (*mayflyv1.Version).GetNumber, func(x *mayflyv1.Version) bool {
		return x.GetNamespace() == ns && x.GetFunction() == fn && x.GetNumber() > after
	})
}

func (v *fakeView) Alias(ns, fn, name string) (*mayflyv1.Alias, bool) {
	return get(v.aliases, ns+"/"+fn+"/"+name)
}

func (v *fakeView) Aliases(ns, fn, after string) iter.Seq[*mayflyv1.Alias] {
	return sorted(v.aliases, (*mayflyv1.Alias).GetName, func(a *mayflyv1.Alias) bool {
		return a.GetNamespace() == ns && a.GetFunction() == fn && a.GetName() > after
	})
}

func (v *fakeView) AccessKey(id string) (*statev1.AccessKeyRecord, bool) { return get(v.keys, id) }

func (v *fakeView) AccessKeys(ns, after string) iter.Seq[*statev1.AccessKeyRecord] {
	id := func(r *statev1.AccessKeyRecord) string { return r.GetAccessKey().GetId() }
	return sorted(v.keys, id, func(r *statev1.AccessKeyRecord) bool {
		return id(r) > after && (ns == "" || r.GetAccessKey().GetNamespace() == ns)
	})
}

func (v *fakeView) Node(id string) (*mayflyv1.Node, bool) { return get(v.nodes, id) }

func (v *fakeView) NodeByName(name string) (*mayflyv1.Node, bool) {
	for _, node := range v.nodes {
		if node.GetName() == name {
			return node, true
		}
	}
	return nil, false
}

func (v *fakeView) Nodes() iter.Seq[*mayflyv1.Node] { return maps.Values(v.nodes) }

func (v *fakeView) Settings() *mayflyv1.Settings { return v.settings }

func (v *fakeView) Cluster() *statev1.ClusterRecord {
	return &statev1.ClusterRecord{ClusterId: "cluster-1"}
}

// fakeBlobs keeps blobs as files, as Open must give one.
type fakeBlobs struct{ dir string }

func (b fakeBlobs) PutChecked(_ context.Context, r io.Reader, limit int64, check func(io.ReaderAt, int64) error) (string, int64, error) {
	f, err := os.CreateTemp(b.dir, "tmp-")
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = errors.New("fake: over the limit")
	}
	if err == nil {
		err = check(f, n)
	}
	if err != nil {
		return "", 0, errors.Join(err, os.Remove(f.Name()))
	}
	digest := "sha256:" + hex.EncodeToString(hash.Sum(nil))
	return digest, n, os.Rename(f.Name(), b.path(digest))
}

func (b fakeBlobs) path(digest string) string { return filepath.Join(b.dir, digest) }

func (b fakeBlobs) Open(digest string) (*os.File, int64, error) {
	if err := b.Touch(digest); err != nil {
		return nil, 0, err
	}
	f, err := os.Open(b.path(digest))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	return f, info.Size(), err
}

func (b fakeBlobs) Touch(digest string) error {
	if _, err := os.Stat(b.path(digest)); err != nil {
		return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "fake: no blob")
	}
	return nil
}

func (b fakeBlobs) count(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// fakeInvoker answers what do says.
type fakeInvoker struct {
	do      func(ctx context.Context, in *api.Invocation, emit func([]byte) error) (*mayflyv1.InvokeResponse, error)
	resolve func(ns, fn, qualifier string) (string, error)
}

func (i *fakeInvoker) Invoke(ctx context.Context, in *api.Invocation, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	return i.do(ctx, in, emit)
}

func (i *fakeInvoker) Resolve(ns, fn, qualifier string) (string, error) {
	return i.resolve(ns, fn, qualifier)
}

type fakeFleet struct {
	nodes    []*mayflyv1.Node
	runtimes []*mayflyv1.RuntimeImage
	lines    []string
	query    *mayflyv1.ReadLogsRequest
}

func (f *fakeFleet) Nodes() []*mayflyv1.Node { return f.nodes }

func (f *fakeFleet) Runtimes() []*mayflyv1.RuntimeImage { return f.runtimes }

func (f *fakeFleet) ReadLogs(ctx context.Context, query *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	f.query = query
	for _, line := range f.lines {
		if err := emit(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{{Text: line}}}); err != nil {
			return err
		}
	}
	if query.GetFollow() {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

type fakeCertificates struct{}

func (fakeCertificates) SignCSR(csr []byte, name, id string) ([]byte, string, error) {
	if string(csr) != "csr" {
		return nil, "", fault.New(codes.InvalidArgument, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "fake: bad request")
	}
	if id == "" {
		id = "id-of-" + name
	}
	return []byte("certificate of " + name), id, nil
}

func (fakeCertificates) CertificatePEM() []byte { return []byte("CA") }
