package containerd

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	helperName     = "init"
	embeddedHelper = "helper/bin/mayfly-init"
)

// The directory holds a README when the helper has not been built.
//
//go:embed helper/bin
var helperFiles embed.FS

// installHelper puts the helper in a directory of its own, named by its content, and returns the directory: an
// upgrade doesn't touch the binary that running sandboxes execute.
func installHelper(cfg Config) (dir string, err error) {
	binary, err := readHelper(cfg.HelperPath)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(binary)
	dir = filepath.Join(cfg.StateDir, "helper", hex.EncodeToString(sum[:8]))
	path := filepath.Join(dir, helperName)
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(binary)) {
		return dir, nil
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := makeDir(d); err != nil {
			return "", err
		}
	}
	return dir, writeExecutable(path, binary)
}

func readHelper(path string) ([]byte, error) {
	if path != "" {
		return os.ReadFile(path)
	}
	b, err := helperFiles.ReadFile(embeddedHelper)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("mayfly was built without the helper that is process 1 of sandboxes: build it with `make build`")
	}
	return b, err
}

// writeExecutable replaces path in one step, so that a half-written file is never found there.
func writeExecutable(path string, content []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, content, 0o755); err != nil {
		return fmt.Errorf("install the helper: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("install the helper: %w", err)
	}
	return os.Chmod(path, 0o755)
}
