package auth_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func sealed(namespace, name string, value []byte, rootKeyID string) *statev1.SecretRecord {
	return &statev1.SecretRecord{Secret: &mayflyv1.Secret{Namespace: namespace, Name: name}, SealedValue: value, RootKeyId: rootKeyID}
}

func TestSealedValues(t *testing.T) {
	keyring := newKeyring(t)
	value := bytes.Repeat([]byte("p4ss"), 16<<10)
	a, root := keyring.SealValue("default", "a", value)
	b, _ := keyring.SealValue("default", "a", value)
	if bytes.Equal(a, b) || bytes.Contains(a, []byte("p4ss")) || len(a) > len(value)+64 {
		t.Error("sealing is not what it should be")
	}
	if got, err := keyring.OpenValue(sealed("default", "a", a, root)); err != nil || !bytes.Equal(got, value) {
		t.Fatalf("opened %d bytes, %v", len(got), err)
	}
	if _, err := newKeyring(t).OpenValue(sealed("default", "a", a, root)); err == nil || !strings.Contains(err.Error(), "root key") {
		t.Errorf("another root key: %v", err)
	}
	damaged := bytes.Clone(a)
	damaged[len(damaged)/2] ^= 1
	for what, record := range map[string]*statev1.SecretRecord{
		"another name":      sealed("default", "b", a, root),
		"another namespace": sealed("team", "a", a, root),
		"a cut value":       sealed("default", "a", a[:20], root),
		"a damaged value":   sealed("default", "a", damaged, root),
	} {
		if _, err := keyring.OpenValue(record); err == nil {
			t.Errorf("%s was opened", what)
		}
	}
	// Keys of one kind open nothing of another.
	key, _ := keyring.MintKey(auth.KeySpec{Role: reader})
	if _, err := keyring.OpenValue(sealed("", key.GetAccessKey().GetId(), key.GetSealedSecret(), root)); err == nil {
		t.Error("the secret of an access key was opened as a value")
	}
}
