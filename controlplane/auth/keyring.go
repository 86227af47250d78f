package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	idPrefix      = "AKIA"
	idRandomBytes = 10 // 16 characters of base32
	secretBytes   = 30 // 40 characters of base64
	accessKeyInfo = "mayfly access key secrets v1"
)

// Keyring makes access keys, and seals and opens their secrets under the root key.
type Keyring struct {
	aead   cipher.AEAD
	rootID string
}

// NewKeyring derives the sealing key.
func NewKeyring(root *RootKey) (*Keyring, error) {
	key, err := hkdf.Key(sha256.New, root.bytes, nil, accessKeyInfo, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of access keys: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the key of access keys: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive the key of access keys: %w", err)
	}
	return &Keyring{aead: aead, rootID: root.id}, nil
}

// KeySpec says what key to make.
type KeySpec struct {
	Role mayflyv1.Role
	// Namespace or AllNamespaces.
	Namespace   string
	Description string
	// ExpiresAt is zero for a key without end.
	ExpiresAt time.Time
}

// MintKey makes a new key: the record to store, and the secret to show once. Nothing is stored.
func (k *Keyring) MintKey(spec KeySpec) (record *statev1.AccessKeyRecord, secret string) {
	var random [idRandomBytes + secretBytes]byte
	_, _ = rand.Read(random[:]) // never fails
	key := &mayflyv1.AccessKey{
		Id:          idPrefix + base32.StdEncoding.EncodeToString(random[:idRandomBytes]),
		Namespace:   spec.Namespace,
		Role:        spec.Role,
		Description: spec.Description,
	}
	if !spec.ExpiresAt.IsZero() {
		key.ExpiresAt = timestamppb.New(spec.ExpiresAt)
	}
	secret = base64.StdEncoding.EncodeToString(random[idRandomBytes:])
	return &statev1.AccessKeyRecord{
		AccessKey:    key,
		SealedSecret: k.aead.Seal(nil, nil, []byte(secret), []byte(key.GetId())), //nolint:gosec // this AEAD draws a nonce for each seal
		RootKeyId:    k.rootID,
	}, secret
}

// OpenSecret returns the secret of a stored key. It fails if another root key sealed it, or if the record was tampered with.
func (k *Keyring) OpenSecret(record *statev1.AccessKeyRecord) (string, error) {
	id := record.GetAccessKey().GetId()
	if record.GetRootKeyId() != k.rootID {
		return "", fmt.Errorf("access key %s was sealed with root key %s, this node has %s", id, record.GetRootKeyId(), k.rootID)
	}
	secret, err := k.aead.Open(nil, nil, record.GetSealedSecret(), []byte(id))
	if err != nil {
		return "", fmt.Errorf("open the secret of access key %s: %w", id, err)
	}
	return string(secret), nil
}
