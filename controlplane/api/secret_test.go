package api_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	noSecret = mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND
	// theValue must be nowhere but in an answer of GetSecretValue.
	theValue = "correct-horse-battery-staple"
)

func (s *fakeState) applySecret(c *statev1.Command) (*statev1.Result, error) {
	switch op := c.GetOperation().(type) {
	case *statev1.Command_CreateSecret:
		return s.putSecret(op.CreateSecret.GetRecord(), true), nil
	case *statev1.Command_UpdateSecret:
		u := op.UpdateSecret
		record := proto.CloneOf(s.secrets[u.GetNamespace()+"/"+u.GetName()])
		if err := conflict(record.GetSecret().GetMeta(), u.GetExpectedRevision()); err != nil {
			return nil, err
		}
		if u.Description != nil {
			record.Secret.Description = u.GetDescription()
		}
		if len(u.GetSealedValue()) > 0 {
			record.SealedValue, record.RootKeyId = u.GetSealedValue(), u.GetRootKeyId()
			record.Secret.SizeBytes, record.Secret.Binary = u.GetSizeBytes(), u.GetBinary()
		}
		return s.putSecret(record, len(u.GetSealedValue()) > 0), nil
	case *statev1.Command_DeleteSecret:
		d := op.DeleteSecret
		if users := usersOf(s.functions, d.GetNamespace(), d.GetName()); len(users) > 0 && !d.GetForce() {
			return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "fake: in use by %v", users)
		}
		delete(s.secrets, d.GetNamespace()+"/"+d.GetName())
		return &statev1.Result{}, nil
	}
	return nil, errors.New("fake: unknown command")
}

func (s *fakeState) putSecret(record *statev1.SecretRecord, value bool) *statev1.Result {
	record.Secret.Meta = s.meta()
	if value {
		record.Secret.Version++
		record.Secret.ValueRevision = s.index
	}
	s.secrets[record.GetSecret().GetNamespace()+"/"+record.GetSecret().GetName()] = record
	return &statev1.Result{Resource: &statev1.Result_Secret{Secret: record.GetSecret()}}
}

func usersOf(functions map[string]*mayflyv1.Function, ns, name string) (users []string) {
	for _, f := range functions {
		c := f.GetConfiguration()
		if f.GetNamespace() == ns && (slices.Contains(c.GetSecretFiles(), name) || slices.Contains(slices.Collect(maps.Values(c.GetSecretEnvironment())), name)) {
			users = append(users, f.GetName())
		}
	}
	return users
}

func (v *fakeView) Secret(ns, name string) (*statev1.SecretRecord, bool) {
	return get(v.secrets, ns+"/"+name)
}

func (v *fakeView) Secrets(ns, after string) iter.Seq[*statev1.SecretRecord] {
	return sorted(v.secrets, func(r *statev1.SecretRecord) string { return r.GetSecret().GetName() }, func(r *statev1.SecretRecord) bool {
		return r.GetSecret().GetNamespace() == ns && r.GetSecret().GetName() > after
	})
}

func (v *fakeView) SecretUsers(ns, name string, _ int) []string {
	return usersOf(v.functions, ns, name)
}

func (v *fakeView) SecretsRevision(ns string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string) {
	for _, name := range slices.Concat(slices.Collect(maps.Values(c.GetSecretEnvironment())), c.GetSecretFiles()) {
		r, ok := v.Secret(ns, name)
		if !ok {
			return 0, name
		}
		revision = max(revision, r.GetSecret().GetValueRevision())
	}
	return revision, ""
}

func (c *client) createSecret(t *testing.T, name, value string) *mayflyv1.Secret {
	t.Helper()
	r, err := c.secret.CreateSecret(testContext(t), &mayflyv1.CreateSecretRequest{Name: name, Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetSecret()
}

func TestSecretIsShownOnlyByGetSecretValue(t *testing.T) {
	b := newBench(t)
	c := b.as(t, roleDeveloper, "default")
	created := c.createSecret(t, "db", theValue)
	if created.GetVersion() != 1 || created.GetSizeBytes() != int64(len(theValue)) || created.GetBinary() {
		t.Fatalf("created %v", created)
	}
	get, err := c.secret.GetSecret(testContext(t), &mayflyv1.GetSecretRequest{Name: "db"})
	if err != nil || !proto.Equal(get.GetSecret(), created) {
		t.Fatalf("%v, %v", get, err)
	}
	list, err := c.secret.ListSecrets(testContext(t), &mayflyv1.ListSecretsRequest{})
	if err != nil || len(list.GetSecrets()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	update, err := c.secret.UpdateSecret(testContext(t), &mayflyv1.UpdateSecretRequest{Name: "db", Value: []byte(theValue + "\x00"), ExpectedRevision: created.GetMeta().GetRevision()})
	if err != nil || update.GetSecret().GetVersion() != 2 || !update.GetSecret().GetBinary() {
		t.Fatalf("%v, %v", update, err)
	}
	for _, m := range []proto.Message{created, get, list, update} {
		contains(t, string(m.ProtoReflect().Descriptor().Name()), m)
	}
	value, err := c.secret.GetSecretValue(testContext(t), &mayflyv1.GetSecretValueRequest{Name: "db"})
	if err != nil || string(value.GetValue()) != theValue+"\x00" || value.GetVersion() != 2 {
		t.Fatalf("%v, %v", value, err)
	}
	// What goes to Raft is sealed, and the log names who read it, not what.
	for _, command := range b.state.commands {
		contains(t, "a command", command)
	}
	if text := b.log.String(); strings.Contains(text, theValue) || !strings.Contains(text, "secret=db") || !strings.Contains(text, "access_key="+c.id) {
		t.Fatalf("the log says %s", text)
	}
}

// contains fails if m has the value.
func contains(t *testing.T, what string, m proto.Message) {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil || bytes.Contains(raw, []byte(theValue)) {
		t.Errorf("%s shows the value (%v)", what, err)
	}
}

func TestSecretRoles(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	b.as(t, roleDeveloper, "default").createSecret(t, "db", theValue)
	calls := map[string]func(c *client, ns string) error{
		"create": func(c *client, ns string) error {
			_, err := c.secret.CreateSecret(testContext(t), &mayflyv1.CreateSecretRequest{Namespace: ns, Name: "x", Value: []byte("y")})
			return err
		},
		"update": func(c *client, ns string) error {
			_, err := c.secret.UpdateSecret(testContext(t), &mayflyv1.UpdateSecretRequest{Namespace: ns, Name: "db", Value: []byte("y")})
			return err
		},
		"delete": func(c *client, ns string) error {
			_, err := c.secret.DeleteSecret(testContext(t), &mayflyv1.DeleteSecretRequest{Namespace: ns, Name: "db", Force: true})
			return err
		},
		"get-value": func(c *client, ns string) error {
			_, err := c.secret.GetSecretValue(testContext(t), &mayflyv1.GetSecretValueRequest{Namespace: ns, Name: "db"})
			return err
		},
		"get": func(c *client, ns string) error {
			_, err := c.secret.GetSecret(testContext(t), &mayflyv1.GetSecretRequest{Namespace: ns, Name: "db"})
			return err
		},
		"list": func(c *client, ns string) error {
			_, err := c.secret.ListSecrets(testContext(t), &mayflyv1.ListSecretsRequest{Namespace: ns})
			return err
		},
	}
	for name, call := range calls {
		wantReason(t, name+" as invoker", call(b.as(t, roleInvoker, "default"), ""), permission)
		wantReason(t, name+" of another namespace", call(b.as(t, roleDeveloper, "team"), "default"), permission)
		err := call(b.as(t, roleReader, "default"), "")
		if name == "get" || name == "list" {
			if err != nil {
				t.Errorf("%s as reader: %v", name, err)
			}
			continue
		}
		wantReason(t, name+" as reader", err, permission)
	}
	if b.proposals() != 1 {
		t.Errorf("%d proposals", b.proposals())
	}
}

func TestSecretRules(t *testing.T) {
	b := newBench(t)
	c := b.admin
	created := c.createSecret(t, "db", "v")
	before := b.proposals()
	create := func(change func(*mayflyv1.CreateSecretRequest)) error {
		r := &mayflyv1.CreateSecretRequest{Name: "new", Value: []byte(theValue)}
		change(r)
		_, err := c.secret.CreateSecret(testContext(t), r)
		return err
	}
	for _, name := range []string{"", "a/b", "..", "a.b", "ä", strings.Repeat("x", 65)} {
		wantReason(t, "name "+name, create(func(r *mayflyv1.CreateSecretRequest) { r.Name = name }), badName, "name")
	}
	wantReason(t, "no value", create(func(r *mayflyv1.CreateSecretRequest) { r.Value = nil }), invalidArgument, "value", "65536")
	err := create(func(r *mayflyv1.CreateSecretRequest) { r.Value = bytes.Repeat([]byte(theValue), 4000) })
	wantReason(t, "large value", err, invalidArgument, "value", "65536")
	if strings.Contains(err.Error(), theValue) {
		t.Error("the error tells the value")
	}
	wantReason(t, "description", create(func(r *mayflyv1.CreateSecretRequest) { r.Description = strings.Repeat("x", 257) }), invalidArgument, "description")
	wantReason(t, "taken", create(func(r *mayflyv1.CreateSecretRequest) { r.Name = "db" }), exists)
	wantReason(t, "namespace", create(func(r *mayflyv1.CreateSecretRequest) { r.Namespace = "nowhere" }), noNamespace)

	update := func(r *mayflyv1.UpdateSecretRequest) error {
		_, err := c.secret.UpdateSecret(testContext(t), r)
		return err
	}
	wantReason(t, "nothing", update(&mayflyv1.UpdateSecretRequest{Name: "db"}), invalidArgument, "nothing")
	wantReason(t, "empty value", update(&mayflyv1.UpdateSecretRequest{Name: "db", Value: []byte{}}), invalidArgument, "value")
	wantReason(t, "missing", update(&mayflyv1.UpdateSecretRequest{Name: "nope", Value: []byte("x")}), noSecret, "nope")
	wantReason(t, "stale", update(&mayflyv1.UpdateSecretRequest{Name: "db", Value: []byte("x"), ExpectedRevision: created.GetMeta().GetRevision() - 1}), revision)
	_, err = c.secret.DeleteSecret(testContext(t), &mayflyv1.DeleteSecretRequest{Name: "nope"})
	wantReason(t, "delete missing", err, noSecret)
	_, err = c.secret.GetSecretValue(testContext(t), &mayflyv1.GetSecretValueRequest{Name: "nope"})
	wantReason(t, "value of missing", err, noSecret)
	if b.proposals() != before {
		t.Error("a bad request was proposed")
	}
	if err := create(func(r *mayflyv1.CreateSecretRequest) { r.Value = make([]byte, 64<<10) }); err != nil {
		t.Errorf("the largest value: %v", err)
	}
}

// A value that was sealed for one name opens under no other.
func TestSwappedValuesAreRefused(t *testing.T) {
	b := newBench(t)
	b.admin.createSecret(t, "one", theValue)
	b.admin.createSecret(t, "two", "other")
	b.state.mu.Lock()
	swapped := proto.CloneOf(b.state.secrets["default/two"])
	swapped.SealedValue = b.state.secrets["default/one"].GetSealedValue()
	b.state.secrets["default/two"] = swapped
	b.state.mu.Unlock()
	_, err := b.admin.secret.GetSecretValue(testContext(t), &mayflyv1.GetSecretValueRequest{Name: "two"})
	wantReason(t, "a swapped value", err, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL, "two")
}

func TestSecretsOfFunctions(t *testing.T) {
	b := newBench(t)
	c := b.admin
	c.createSecret(t, "db", "v")
	create := func(name string, change func(*mayflyv1.FunctionConfiguration)) error {
		r := createRequest(t, name)
		change(r.GetConfiguration())
		_, err := c.function.CreateFunction(testContext(t), r)
		return err
	}
	type conf = mayflyv1.FunctionConfiguration
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint("V", i)] = "db"
	}
	before := b.proposals()
	for _, bad := range []struct {
		what   string
		reason mayflyv1.ErrorReason
		change func(*conf)
	}{
		{"missing", noSecret, func(c *conf) { c.SecretFiles = []string{"nope"} }},
		{"missing variable", noSecret, func(c *conf) { c.SecretEnvironment = map[string]string{"A": "nope"} }},
		{"bad variable", invalidArgument, func(c *conf) { c.SecretEnvironment = map[string]string{"1A": "db"} }},
		{"reserved variable", invalidArgument, func(c *conf) { c.SecretEnvironment = map[string]string{"AWS_REGION": "db"} }},
		{"twice", invalidArgument, func(c *conf) {
			c.Environment, c.SecretEnvironment = map[string]string{"A": "b"}, map[string]string{"A": "db"}
		}},
		{"bad name", badName, func(c *conf) { c.SecretEnvironment = map[string]string{"A": "../db"} }},
		{"bad file", badName, func(c *conf) { c.SecretFiles = []string{"../db"} }},
		{"file twice", invalidArgument, func(c *conf) { c.SecretFiles = []string{"db", "db"} }},
		{"too many", invalidArgument, func(c *conf) { c.SecretEnvironment = many }},
	} {
		wantReason(t, bad.what, create("f", bad.change), bad.reason)
	}
	if b.proposals() != before {
		t.Error("a bad function was proposed")
	}
	if err := create("f", func(c *conf) {
		c.SecretEnvironment, c.SecretFiles = map[string]string{"DB": "db"}, []string{"db"}
	}); err != nil {
		t.Fatal(err)
	}
	get, err := c.secret.GetSecret(testContext(t), &mayflyv1.GetSecretRequest{Name: "db"})
	if err != nil || !slices.Equal(get.GetFunctions(), []string{"f"}) {
		t.Fatalf("%v, %v", get, err)
	}
	_, err = c.secret.DeleteSecret(testContext(t), &mayflyv1.DeleteSecretRequest{Name: "db"})
	wantReason(t, "delete in use", err, inUse, "f")

	updateFunction := func(r *mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.Function, error) {
		r.Name = "f"
		response, err := c.function.UpdateFunctionConfiguration(testContext(t), r)
		return response.GetFunction(), err
	}
	_, err = updateFunction(&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &conf{SecretFiles: []string{"db"}}})
	wantReason(t, "not in replace", err, invalidArgument, "secret_files", "replace")
	_, err = updateFunction(&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &conf{Environment: map[string]string{"DB": "x"}}, Replace: []string{"environment"}})
	wantReason(t, "taken by a secret", err, invalidArgument, "DB")
	fn, err := updateFunction(&mayflyv1.UpdateFunctionConfigurationRequest{Replace: []string{"secret_environment"}})
	if err != nil || len(fn.GetConfiguration().GetSecretEnvironment()) != 0 || len(fn.GetConfiguration().GetSecretFiles()) != 1 {
		t.Fatalf("%v, %v", fn, err)
	}
	if _, err := c.secret.DeleteSecret(testContext(t), &mayflyv1.DeleteSecretRequest{Name: "db", Force: true}); err != nil {
		t.Fatal(err)
	}
	_, err = c.function.UpdateFunctionCode(testContext(t), &mayflyv1.UpdateFunctionCodeRequest{
		Name: "f", Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: helloZip(t)},
	})
	wantReason(t, "code for a function without its secret", err, noSecret, "db")
}

func TestSecretPages(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		b.admin.createSecret(t, fmt.Sprint("s", i), "v")
	}
	var names []string
	for token := ""; ; {
		r, err := b.admin.secret.ListSecrets(testContext(t), &mayflyv1.ListSecretsRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.GetSecrets() {
			names = append(names, s.GetName())
		}
		if token = r.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"s0", "s1", "s2", "s3", "s4"}) {
		t.Fatal(names)
	}
}

// What was sealed just before the root key was rotated is sealed anew.
func TestSealingIsRepeatedAfterARotation(t *testing.T) {
	b := newBench(t)
	refused := 0
	b.state.refuse = func(c *statev1.Command) error {
		if c.GetCreateSecret() == nil && c.GetUpdateSecret() == nil && c.GetCreateAccessKey() == nil || refused%3 == 2 {
			refused = 0
			return nil
		}
		refused++
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED, "fake: rotated")
	}
	b.admin.createSecret(t, "db", "v")
	if _, err := b.admin.secret.UpdateSecret(testContext(t), &mayflyv1.UpdateSecretRequest{Name: "db", Value: []byte(theValue)}); err != nil {
		t.Error(err)
	}
	value, err := b.admin.secret.GetSecretValue(testContext(t), &mayflyv1.GetSecretValueRequest{Name: "db"})
	if err != nil || string(value.GetValue()) != theValue {
		t.Errorf("%v, %v", value, err)
	}
	key, err := b.admin.key.CreateAccessKey(testContext(t), &mayflyv1.CreateAccessKeyRequest{Role: roleReader})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.with(key.GetAccessKey().GetId(), key.GetSecret()).secret.ListSecrets(testContext(t), &mayflyv1.ListSecretsRequest{}); err != nil {
		t.Errorf("the key that was made at last doesn't work: %v", err)
	}
	b.state.refuse = func(*statev1.Command) error {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED, "fake: rotated")
	}
	_, err = b.admin.secret.CreateSecret(testContext(t), &mayflyv1.CreateSecretRequest{Name: "new", Value: []byte("v")})
	wantReason(t, "rotated for ever", err, mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED)
}

func TestRotateRootKey(t *testing.T) {
	b := newBench(t)
	rotated := 0
	b.rotation = func() (auth.Rotation, error) {
		rotated++
		return auth.Rotation{RootKeyID: "0123", AccessKeys: 2, Secrets: 3}, nil
	}
	rotate := func(c *client) (*mayflyv1.RotateRootKeyResponse, error) {
		return c.cluster.RotateRootKey(testContext(t), &mayflyv1.RotateRootKeyRequest{})
	}
	r, err := rotate(b.admin)
	if err != nil || r.GetRootKeyId() != "0123" || r.GetAccessKeys() != 2 || r.GetSecrets() != 3 {
		t.Fatalf("%v, %v", r, err)
	}
	_, err = rotate(b.as(t, roleAdmin, "default"))
	wantReason(t, "a key for one namespace", err, permission)
	_, err = rotate(b.as(t, roleDeveloper, "*"))
	wantReason(t, "a developer", err, permission)
	b.state.mu.Lock()
	for _, id := range []string{"a", "b"} {
		b.state.nodes[id] = &mayflyv1.Node{Id: id, Name: id, Server: true}
	}
	b.state.mu.Unlock()
	_, err = rotate(b.admin)
	wantReason(t, "two control-plane nodes", err, mayflyv1.ErrorReason_ERROR_REASON_UNIMPLEMENTED, "2")
	if rotated != 1 {
		t.Errorf("rotated %d times", rotated)
	}
}
