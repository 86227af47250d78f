package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const rootKeySize = 32

// RootKey seals every secret of a cluster. It never enters Raft, logs or backups of the state.
type RootKey struct {
	bytes []byte
	id    string
}

// ID names the key without telling it: the first 16 hexadecimal digits of a hash.
func (k *RootKey) ID() string { return k.id }

// EnsureRootKeys reads the keys from path, a line of 64 hexadecimal digits for each: the newest first, and while a rotation
// is under way the one before. If there is no file it makes one with a new key and mode 0600, safe on disk before it is used.
func EnsureRootKeys(path string) ([]*RootKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		keys := []*RootKey{makeRootKey()}
		return keys, writeRootKeys(path, keys)
	}
	if err != nil {
		return nil, fmt.Errorf("read the root key: %w", err)
	}
	var keys []*RootKey
	for line := range strings.Lines(strings.TrimSpace(string(data))) {
		key, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil || len(key) != rootKeySize {
			return nil, damaged(path)
		}
		keys = append(keys, newRootKey(key))
	}
	if len(keys) == 0 {
		return nil, damaged(path)
	}
	return keys, nil
}

func damaged(path string) error {
	return fmt.Errorf("root key %s is damaged: want %d hexadecimal digits; restore it from your backup", path, 2*rootKeySize)
}

func makeRootKey() *RootKey {
	key := make([]byte, rootKeySize)
	_, _ = rand.Read(key) // never fails
	return newRootKey(key)
}

// writeRootKeys replaces the file; what it held before, or what it holds now, is on disk after a crash at any moment.
func writeRootKeys(path string, keys []*RootKey) error {
	var text strings.Builder
	for _, k := range keys {
		text.WriteString(hex.EncodeToString(k.bytes) + "\n")
	}
	if err := writeFile(path, []byte(text.String())); err != nil {
		return fmt.Errorf("store the root key: %w", err)
	}
	return nil
}

func newRootKey(key []byte) *RootKey {
	sum := sha256.Sum256(append([]byte("mayfly root key id\x00"), key...))
	return &RootKey{bytes: key, id: hex.EncodeToString(sum[:8])}
}

// writeFile writes a file of mode 0600, whole or not at all, safe on disk when it returns. Its directory is made with mode 0700.
func writeFile(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
