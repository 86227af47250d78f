package runtimes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

func (im *Images) debsDir() string { return filepath.Join(im.cfg.CacheDir, "packages") }

// bootstrap extracts the recipe's packages into a new directory.
func (b *build) bootstrap(ctx context.Context) (string, error) {
	b.event("prepare", 0.01, "reading the package lists")
	keyring, err := findKeyring("/usr/share/keyrings", "/etc/apt/trusted.gpg.d")
	if err != nil {
		return "", err
	}
	settings := readAptSettings(ctx)
	source := findArchive(b.images.cfg.Mirror, "/etc/apt", b.recipe.Suite)
	m := newMirror(source, settings, b.images.debsDir(), &b.images.flight, b.images.cfg.Logger)
	m.received = b.downloaded
	url, stop, err := m.serve(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
	tmp := filepath.Join(b.work, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	target := filepath.Join(b.work, "debian")
	err = debootstrap{
		suite: b.recipe.Suite, packages: b.recipe.Packages, base: url, security: source.Security != "", settings: settings,
		keyring: keyring, target: target, tmp: tmp, onLine: b.output,
	}.run(ctx)
	if err == nil {
		return target, nil
	}
	if cause := m.lastError(); cause != nil && ctx.Err() == nil {
		return "", fmt.Errorf("cannot fetch packages from %s (set %s to use another mirror of Debian): %w", source.Main, MirrorEnv, cause)
	}
	return "", err
}

// downloaded is called by the mirror.
func (b *build) downloaded(n int64) {
	b.mu.Lock()
	b.received += n
	expected := b.expected
	if expected == 0 {
		expected = b.recipe.DownloadBytes
	}
	done := min(float64(b.received)/float64(expected), 1)
	text := fmt.Sprintf("%.1f of %.1f MB", float64(min(b.received, expected))/1e6, float64(expected)/1e6)
	b.mu.Unlock()
	b.event("download", 0.05+0.35*done, "downloading packages: %s", text)
}

// output reads mmdebstrap's messages for progress.
func (b *build) output(line string) {
	b.images.cfg.Logger.Debug("mmdebstrap", "runtime", b.recipe.Name, "line", line)
	if n, ok := neededBytes(line); ok {
		b.mu.Lock()
		b.expected = b.received + n
		b.mu.Unlock()
		b.event("download", 0.05, "downloading packages: %.1f MB", float64(n)/1e6)
		return
	}
	if line == "I: extracting archives..." {
		b.event("extract", 0.42, "extracting packages")
	}
}
