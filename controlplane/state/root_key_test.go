package state_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const rotated = mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED

func setRootKey(id string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_SetRootKey{SetRootKey: &statev1.SetRootKey{RootKeyId: id}}}
}

func resealSecret(name, from, to string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_ResealSecret{ResealSecret: &statev1.ResealSecret{
		Namespace: "default", Name: name, FromRootKeyId: from, SealedValue: []byte("anew"), RootKeyId: to,
	}}}
}

func resealKey(id, from, to string) *statev1.Command {
	return &statev1.Command{Operation: &statev1.Command_ResealAccessKey{ResealAccessKey: &statev1.ResealAccessKey{
		Id: id, FromRootKeyId: from, SealedSecret: []byte("anew"), RootKeyId: to,
	}}}
}

func TestRootKeyRotation(t *testing.T) {
	early := newMachine(t)
	defer early.close()
	early.refused(invalid, setRootKey("r2"))

	m := ready(t)
	m.ok(createSecret("default", "s", false))
	m.ok(createKey("AKIA1", "default", developer))
	m.refused(invalid, setRootKey(""))
	m.ok(setRootKey("r2"))
	// Nothing that the old key seals comes in any more, and what is there stays.
	m.refused(rotated, createSecret("default", "t", false))
	m.refused(rotated, updateSecret(newValue("s")))
	m.refused(rotated, createKey("AKIA2", "default", developer))
	m.refused(rotated, resealSecret("s", "r1", "r1"))
	m.refused(rotated, resealKey("AKIA1", "r1", "r3"))
	m.ok(updateSecret(&statev1.UpdateSecret{Name: "s", Description: new("d")}))

	secret, _ := m.state.View().Secret("default", "s")
	access, _ := m.state.View().AccessKey("AKIA1")
	m.ok(resealSecret("s", "r1", "r2"))
	m.ok(resealKey("AKIA1", "r1", "r2"))
	s, _ := m.state.View().Secret("default", "s")
	k, _ := m.state.View().AccessKey("AKIA1")
	if string(s.GetSealedValue()) != "anew" || s.GetRootKeyId() != "r2" || !proto.Equal(s.GetSecret(), secret.GetSecret()) {
		t.Errorf("the secret is %v, was %v", s, secret)
	}
	if string(k.GetSealedSecret()) != "anew" || k.GetRootKeyId() != "r2" || !proto.Equal(k.GetAccessKey(), access.GetAccessKey()) {
		t.Errorf("the key is %v, was %v", k, access)
	}

	// What was sealed anew already, or is gone, is left alone.
	before := m.records()
	for _, c := range []*statev1.Command{resealSecret("s", "r1", "r2"), resealSecret("t", "r1", "r2"), resealKey("AKIA1", "r1", "r2"), resealKey("AKIA9", "r1", "r2")} {
		m.ok(c)
	}
	if m.records() != before {
		t.Error("sealing anew twice changed something")
	}
	u := newValue("s")
	u.RootKeyId = "r2"
	m.ok(updateSecret(u))

	// A restart knows the key.
	m.close()
	again := openMachine(t, m.fs, m.index)
	m.state = again.state // closed by the test's end
	if id := again.state.View().Cluster().GetRootKeyId(); id != "r2" {
		t.Errorf("after a restart the root key is %q", id)
	}
	again.refused(rotated, createSecret("default", "t", false))
}
