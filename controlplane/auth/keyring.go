package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
	valueInfo     = "mayfly secret values v1"
)

// Keyring makes access keys, and seals and opens their secrets and the values of secrets under keys of the root key.
type Keyring struct {
	sealers  atomic.Pointer[sealers]
	rotation sync.Mutex // held by a rotation
}

// sealers are what can open; current seals. They are never changed.
type sealers struct {
	current *sealer
	all     []*sealer // newest first
}

// sealer is the keys of one root key, one for each purpose.
type sealer struct {
	root               *RootKey
	accessKeys, values cipher.AEAD
}

// NewKeyring derives the sealing keys. The first root key seals; the others open what they have sealed.
func NewKeyring(roots ...*RootKey) (*Keyring, error) {
	s := &sealers{}
	for _, root := range roots {
		one, err := newSealer(root)
		if err != nil {
			return nil, err
		}
		s.all = append(s.all, one)
	}
	if len(s.all) == 0 {
		return nil, errors.New("a keyring needs a root key")
	}
	s.current = s.all[0]
	k := &Keyring{}
	k.sealers.Store(s)
	return k, nil
}

func newSealer(root *RootKey) (*sealer, error) {
	accessKeys, err := root.derive(accessKeyInfo)
	if err != nil {
		return nil, fmt.Errorf("derive the key of access keys: %w", err)
	}
	values, err := root.derive(valueInfo)
	if err != nil {
		return nil, fmt.Errorf("derive the key of secrets: %w", err)
	}
	return &sealer{root: root, accessKeys: accessKeys, values: values}, nil
}

// find is what opens a record.
func (k *Keyring) find(rootKeyID string) (*sealer, error) {
	s := k.sealers.Load()
	for _, one := range s.all {
		if one.root.id == rootKeyID {
			return one, nil
		}
	}
	return nil, fmt.Errorf("it was sealed with root key %s, this node has %s", rootKeyID, s.current.root.id)
}

// derive makes the key for one purpose; it draws a nonce for each seal.
func (k *RootKey) derive(info string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.bytes, nil, info, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
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
	s := k.sealers.Load().current
	return &statev1.AccessKeyRecord{AccessKey: key, SealedSecret: s.sealSecret(key.GetId(), secret), RootKeyId: s.root.id}, secret
}

func (s *sealer) sealSecret(id, secret string) []byte {
	return s.accessKeys.Seal(nil, nil, []byte(secret), []byte(id)) //nolint:gosec // this AEAD draws a nonce for each seal
}

// OpenSecret returns the secret of a stored key. It fails if another root key sealed it, or if the record was tampered with.
func (k *Keyring) OpenSecret(record *statev1.AccessKeyRecord) (string, error) {
	id := record.GetAccessKey().GetId()
	s, err := k.find(record.GetRootKeyId())
	if err != nil {
		return "", fmt.Errorf("open the secret of access key %s: %w", id, err)
	}
	secret, err := s.accessKeys.Open(nil, nil, record.GetSealedSecret(), []byte(id))
	if err != nil {
		return "", fmt.Errorf("open the secret of access key %s: %w", id, err)
	}
	return string(secret), nil
}

// SealValue seals the value of a secret for its namespace and name: nowhere else can it be opened. rootKeyID says under which root key.
func (k *Keyring) SealValue(namespace, name string, value []byte) (sealed []byte, rootKeyID string) {
	s := k.sealers.Load().current
	return s.sealValue(namespace, name, value), s.root.id
}

func (s *sealer) sealValue(namespace, name string, value []byte) []byte {
	return s.values.Seal(nil, nil, value, secretData(namespace, name)) //nolint:gosec // this AEAD draws a nonce for each seal
}

// OpenValue returns the value of a stored secret. It fails if another root key sealed it, or if the record was tampered with.
func (k *Keyring) OpenValue(record *statev1.SecretRecord) ([]byte, error) {
	namespace, name := record.GetSecret().GetNamespace(), record.GetSecret().GetName()
	s, err := k.find(record.GetRootKeyId())
	if err != nil {
		return nil, fmt.Errorf("open the value of secret %s/%s: %w", namespace, name, err)
	}
	value, err := s.values.Open(nil, nil, record.GetSealedValue(), secretData(namespace, name))
	if err != nil {
		return nil, fmt.Errorf("open the value of secret %s/%s: %w", namespace, name, err)
	}
	return value, nil
}

// secretData is what a sealed value is bound to. Neither name contains a slash.
func secretData(namespace, name string) []byte { return []byte(namespace + "/" + name) }
