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

// EnsureRootKey reads the key from path (64 hexadecimal digits), or makes one there with mode 0600, safe on disk before it is used, if there is no file.
func EnsureRootKey(path string) (*RootKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeRootKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the root key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != rootKeySize {
		return nil, fmt.Errorf("root key %s is damaged: want %d hexadecimal digits; restore it from your backup", path, 2*rootKeySize)
	}
	return newRootKey(key), nil
}

func makeRootKey(path string) (*RootKey, error) {
	key := make([]byte, rootKeySize)
	_, _ = rand.Read(key) // never fails
	if err := writeFile(path, []byte(hex.EncodeToString(key)+"\n")); err != nil {
		return nil, fmt.Errorf("store the root key: %w", err)
	}
	return newRootKey(key), nil
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
