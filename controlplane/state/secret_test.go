package state_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const noSecret = mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND

func createSecret(ns, name string, binary bool) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_CreateSecret{CreateSecret: &statev1.CreateSecret{Record: &statev1.SecretRecord{
		Secret:      &mayflyv1.Secret{Namespace: ns, Name: name, SizeBytes: 5, Binary: binary},
		SealedValue: []byte("SeAlEd1"), RootKeyId: "r1",
	}}}}
}

func updateSecret(u *statev1.UpdateSecret) *statev1.Command {
	u.Namespace = "default"
	return &statev1.Command{Operation: &statev1.Command_UpdateSecret{UpdateSecret: u}}
}

func newValue(name string) *statev1.UpdateSecret {
	return &statev1.UpdateSecret{Name: name, SealedValue: []byte("SeAlEd2"), RootKeyId: "r1", SizeBytes: 7}
}

func deleteSecret(name string, force bool, revision uint64) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_DeleteSecret{DeleteSecret: &statev1.DeleteSecret{
		Namespace: "default", Name: name, Force: force, ExpectedRevision: revision,
	}}}
}

// refer makes a function refer to secrets, as variables V0, V1… and as files.
func refer(function string, variables, files []string) *statev1.Command {
	c := &mayflyv1.FunctionConfiguration{SecretEnvironment: map[string]string{}, SecretFiles: files}
	for i, name := range variables {
		c.SecretEnvironment[fmt.Sprint("V", i)] = name
	}
	return updateConfiguration(&statev1.UpdateFunctionConfiguration{
		Name: function, Configuration: c, Replace: []string{"secret_environment", "secret_files"},
	})
}

func TestSecretLifeCycle(t *testing.T) {
	m := ready(t)
	c := createSecret("default", "s", false)
	c.Time = at(10)
	s := m.ok(c).GetSecret()
	want := &mayflyv1.Secret{
		Meta:      &mayflyv1.Meta{Revision: m.index, CreatedAt: at(10), UpdatedAt: at(10)},
		Namespace: "default", Name: "s", Version: 1, SizeBytes: 5, ValueRevision: m.index,
	}
	if !proto.Equal(s, want) {
		t.Fatalf("created %v, want %v", s, want)
	}
	m.refused(exists, createSecret("default", "s", false))
	m.refused(noNamespace, createSecret("nowhere", "s", false))
	m.refused(badName, createSecret("default", "", false))

	// A description is no new value.
	s = m.ok(updateSecret(&statev1.UpdateSecret{Name: "s", Description: new("d")})).GetSecret()
	if s.GetDescription() != "d" || s.GetVersion() != 1 || s.GetValueRevision() != want.GetMeta().GetRevision() || s.GetMeta().GetRevision() != m.index {
		t.Fatalf("after a new description: %v", s)
	}
	u := newValue("s")
	u.ExpectedRevision = want.GetMeta().GetRevision()
	m.refused(conflict, updateSecret(u))
	u = newValue("s")
	u.ExpectedRevision = s.GetMeta().GetRevision()
	s = m.ok(updateSecret(u)).GetSecret()
	if s.GetVersion() != 2 || s.GetValueRevision() != m.index || s.GetSizeBytes() != 7 || s.GetDescription() != "d" {
		t.Fatalf("after a new value: %v", s)
	}
	r, _ := m.state.View().Secret("default", "s")
	if string(r.GetSealedValue()) != "SeAlEd2" || !proto.Equal(r.GetSecret(), s) {
		t.Fatalf("stored %v", r)
	}
	m.refused(noSecret, updateSecret(newValue("t")))
	m.refused(noSecret, deleteSecret("t", true, 0))
	m.refused(conflict, deleteSecret("s", false, 1))
	m.ok(deleteSecret("s", false, s.GetMeta().GetRevision()))
	m.refused(noSecret, deleteSecret("s", false, 0))
}

func TestSecretValueIsBounded(t *testing.T) {
	m := ready(t)
	for _, change := range []func(*statev1.SecretRecord){
		func(r *statev1.SecretRecord) { r.SealedValue = nil },
		func(r *statev1.SecretRecord) { r.RootKeyId = "" },
		func(r *statev1.SecretRecord) { r.Secret.SizeBytes = 0 },
		func(r *statev1.SecretRecord) { r.Secret.SizeBytes = state.MaxSecretBytes + 1 },
		func(r *statev1.SecretRecord) { r.SealedValue = make([]byte, state.MaxSecretBytes*2) },
	} {
		c := createSecret("default", "s", false)
		change(c.GetCreateSecret().GetRecord())
		m.refused(invalid, c)
	}
	c := createSecret("default", "s", false)
	c.GetCreateSecret().GetRecord().Secret.SizeBytes = state.MaxSecretBytes
	c.GetCreateSecret().GetRecord().SealedValue = make([]byte, state.MaxSecretBytes+28)
	m.ok(c)
	u := newValue("s")
	u.SizeBytes = state.MaxSecretBytes + 1
	m.refused(invalid, updateSecret(u))
}

func TestSecretQuota(t *testing.T) {
	m := ready(t)
	m.ok(updateNamespace("default", &mayflyv1.Quotas{Secrets: 2}, 0))
	m.ok(createSecret("default", "a", false))
	m.ok(createSecret("default", "b", false))
	m.refused(overQuota, createSecret("default", "c", false))
	m.ok(updateSecret(newValue("a")))
	m.ok(deleteSecret("a", false, 0))
	m.ok(createSecret("default", "c", false))
	if u := m.state.View().Usage("default"); u.Secrets != 2 {
		t.Fatalf("usage %+v", u)
	}
	m.refused(invalid, updateNamespace("default", &mayflyv1.Quotas{Secrets: -1}, 0))

	m.ok(createNamespace("team", "000000000002", nil))
	m.ok(createSecret("team", "a", false))
	m.refused(inUse, deleteNamespace("team"))
}

func TestSecretsOfFunctions(t *testing.T) {
	m := ready(t)
	m.ok(createSecret("default", "a", false))
	m.ok(createSecret("default", "b", true))
	f := createFunction("default", "f", 1)
	f.GetCreateFunction().Function.Configuration.SecretFiles = []string{"missing"}
	m.refused(noSecret, f)
	m.ok(createFunction("default", "f", 1))
	m.ok(createFunction("default", "g", 1))
	m.refused(noSecret, refer("f", []string{"missing"}, nil))
	m.refused(invalid, refer("f", []string{"b"}, nil))
	m.ok(refer("f", []string{"a"}, []string{"b"}))
	if fn, _ := m.state.View().Function("default", "f"); fn.GetCodeRevision() != m.index {
		t.Fatalf("new references kept the code revision: %v", fn)
	}
	m.ok(refer("g", []string{"a"}, nil))
	m.ok(publish(&statev1.PublishVersion{Function: "g"}))
	m.ok(refer("g", nil, nil))

	// In use by f, and by a version of g.
	r := m.refused(inUse, deleteSecret("a", false, 0))
	if !strings.Contains(r.GetMessage(), "functions f, g refer") {
		t.Fatalf("the refusal names no functions: %s", r.GetMessage())
	}
	binary := newValue("a")
	binary.Binary = true
	m.refused(inUse, updateSecret(binary))
	if users := m.state.View().SecretUsers("default", "a", 1); len(users) != 1 {
		t.Fatalf("users %v", users)
	}

	m.ok(deleteSecret("a", true, 0))
	m.refused(noSecret, updateCode("f", 2, 0))
	m.refused(noSecret, updateConfiguration(&statev1.UpdateFunctionConfiguration{Name: "f", Configuration: &mayflyv1.FunctionConfiguration{MemoryMb: 512}}))
	m.ok(updateConfiguration(&statev1.UpdateFunctionConfiguration{
		Name: "f", Configuration: &mayflyv1.FunctionConfiguration{Description: "d"}, Replace: []string{"description"},
	}))
	m.ok(refer("f", nil, []string{"b"}))
	m.refused(inUse, deleteSecret("b", false, 0))
	m.ok(deleteFunction("f", 0))
	m.ok(deleteSecret("b", false, 0))
}

func TestRefusalNamesFewFunctions(t *testing.T) {
	m := ready(t)
	m.ok(createSecret("default", "a", false))
	for i := range 15 {
		f := createFunction("default", fmt.Sprintf("f%02d", i), 1)
		f.GetCreateFunction().Function.Configuration.SecretFiles = []string{"a"}
		m.ok(f)
	}
	r := m.refused(inUse, deleteSecret("a", false, 0))
	if !strings.Contains(r.GetMessage(), "f09 and others") || strings.Contains(r.GetMessage(), "f10") {
		t.Fatal(r.GetMessage())
	}
}

// The revision of a configuration's secrets changes with each change of a value, and never comes back to one that it had.
func TestSecretsRevision(t *testing.T) {
	m := ready(t)
	both := &mayflyv1.FunctionConfiguration{SecretEnvironment: map[string]string{"A": "a"}, SecretFiles: []string{"b"}}
	if r, missing := m.state.View().SecretsRevision("default", &mayflyv1.FunctionConfiguration{}); r != 0 || missing != "" {
		t.Fatalf("without secrets: %d, %q", r, missing)
	}
	seen := map[uint64]string{}
	step := func(what string, c *statev1.Command) {
		t.Helper()
		m.ok(c)
		r, missing := m.state.View().SecretsRevision("default", both)
		if missing != "" {
			return
		}
		if before, ok := seen[r]; ok {
			t.Fatalf("%s: revision %d was that after %s", what, r, before)
		}
		seen[r] = what
	}
	step("a", createSecret("default", "a", false))
	if r, missing := m.state.View().SecretsRevision("default", both); r != 0 || missing != "b" {
		t.Fatalf("without b: %d, %q", r, missing)
	}
	step("b", createSecret("default", "b", false))
	step("a again", updateSecret(newValue("a")))
	step("b again", updateSecret(newValue("b")))
	step("b deleted", deleteSecret("b", true, 0))
	step("b created", createSecret("default", "b", false))
	if len(seen) != 4 {
		t.Fatalf("saw %v", seen)
	}
	m.ok(updateSecret(&statev1.UpdateSecret{Name: "a", Description: new("no value")}))
	if r, _ := m.state.View().SecretsRevision("default", both); seen[r] != "b created" {
		t.Fatalf("a description changed the revision to %d", r)
	}
}

// Whatever happens: no secret that a function refers to goes without force, and sealed values are in no result.
func TestSecretInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		defer m.close()
		for _, e := range anyLog(t) {
			before := m.state.View()
			r := m.applyAll([]state.Entry{e})[0]
			if raw, err := proto.Marshal(r); err != nil || bytes.Contains(raw, []byte("SeAlEd")) {
				t.Fatalf("the result %v holds a sealed value (%v)", r, err)
			}
			d := e.Command.GetDeleteSecret()
			if d == nil || d.GetForce() || r.GetRefusal() != nil {
				continue
			}
			_, was := before.Secret(d.GetNamespace(), d.GetName())
			_, is := m.state.View().Secret(d.GetNamespace(), d.GetName())
			if users := before.SecretUsers(d.GetNamespace(), d.GetName(), 9); len(users) > 0 && was && !is {
				t.Fatalf("secret %s was deleted while %v refer to it", d.GetName(), users)
			}
		}
	})
}
