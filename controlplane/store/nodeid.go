package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

const nodeIDFile = "node-id"

// loadNodeID answers the id in dir, and writes want, or a new one, if there is none.
func loadNodeID(dir, want string) (string, error) {
	if want != "" {
		if _, err := uuid.Parse(want); err != nil {
			return "", fmt.Errorf("node id %q is no UUID: %w", want, err)
		}
	}
	path := filepath.Join(dir, nodeIDFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return writeNodeID(path, want)
	}
	if err != nil {
		return "", fmt.Errorf("read node id: %w", err)
	}
	have := strings.TrimSpace(string(raw))
	if _, err := uuid.Parse(have); err != nil {
		return "", fmt.Errorf("%s holds no UUID: restore it from a backup: %w", path, err)
	}
	if want != "" && want != have {
		return "", fmt.Errorf("%s belongs to node %s, not %s: use that node's own directory", dir, have, want)
	}
	return have, nil
}

// writeNodeID makes the file durable before anyone learns the id.
func writeNodeID(path, id string) (string, error) {
	if id == "" {
		id = uuid.NewString()
	}
	if err := writeSynced(path+".tmp", []byte(id+"\n")); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	return id, nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// EnsureNodeID answers the id of the node whose Raft directory is dir, and makes one if there is none. Certificates name
// the node before its store is open.
func EnsureNodeID(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	return loadNodeID(dir, "")
}
