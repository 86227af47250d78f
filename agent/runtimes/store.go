package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

const (
	manifestFile = "manifest.json"
	currentLink  = "current"
	buildPrefix  = ".build-"
	tmpPrefix    = ".tmp-"
	lockFile     = ".lock"
	// keepDownloads is how long Prune keeps packages that no build asked for.
	keepDownloads = 30 * 24 * time.Hour
)

// ErrNotBuilt is in the chain of Find's error for a runtime that has no image here yet.
var ErrNotBuilt = errors.New("no image")

// Find returns the current image of a runtime. Unknown names have reason INVALID_RUNTIME; a runtime without an
// image is codes.FailedPrecondition with ErrNotBuilt.
func (im *Images) Find(name string) (*Image, error) {
	r, err := recipeOf(name)
	if err != nil {
		return nil, err
	}
	return im.find(r)
}

func (im *Images) find(r recipe) (*Image, error) {
	dir, err := os.Readlink(im.path(r.Name, currentLink))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notBuilt(r.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("current image of %s: %w", r.Name, err)
	}
	image, err := im.open(r, filepath.Base(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notBuilt(r.Name)
	}
	return image, err
}

func notBuilt(name string) error {
	e := fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME,
		"runtime %s has no image on this node; build it with `mayfly runtime build %s`", name, name)
	e.Cause = ErrNotBuilt
	return e
}

// List returns the current images of this node, sorted by name.
func (im *Images) List() ([]Image, error) {
	var images []Image
	for _, name := range Names() {
		image, err := im.Find(name)
		if errors.Is(err, ErrNotBuilt) {
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, *image)
	}
	return images, nil
}

func (im *Images) path(parts ...string) string {
	return filepath.Join(append([]string{im.dir}, parts...)...)
}

func (im *Images) open(r recipe, dir string) (*Image, error) {
	b, err := os.ReadFile(im.path(r.Name, dir, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("read image of %s: %w", r.Name, err)
	}
	image := &Image{RootFS: im.path(r.Name, dir, "rootfs")}
	if err := json.Unmarshal(b, &image.Manifest); err != nil {
		return nil, fmt.Errorf("read image of %s: %s: %w", r.Name, manifestFile, err)
	}
	want, err := r.hash()
	if err != nil {
		return nil, err
	}
	image.Stale = image.Recipe != want
	return image, nil
}

// publish makes the image in dir (its rootfs) the current one of its runtime.
func (im *Images) publish(dir string, m Manifest) error {
	if err := writeManifest(dir, m); err != nil {
		return err
	}
	home, name := im.path(m.Runtime), strings.TrimPrefix(m.Digest, digestPrefix)
	target := filepath.Join(home, name)
	if _, err := os.Stat(target); err == nil {
		// The same bits from another recipe: sandboxes may use them, so only the manifest changes.
		if err := os.Rename(filepath.Join(dir, manifestFile), filepath.Join(target, manifestFile)); err != nil {
			return fmt.Errorf("publish image: %w", err)
		}
	} else {
		if err := syncFS(dir); err != nil {
			return err
		}
		if err := os.Rename(dir, target); err != nil {
			return fmt.Errorf("publish image: %w", err)
		}
	}
	return switchLink(filepath.Join(home, currentLink), name)
}

func writeManifest(dir string, m Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	path := filepath.Join(dir, manifestFile)
	if err := errors.Join(os.WriteFile(path, append(b, '\n'), 0o644), os.Chmod(path, 0o644)); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// switchLink lets link point to target, at once.
func switchLink(link, target string) error {
	tmp := link + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("switch image: %w", err)
	}
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("switch image: %w", err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("switch image: %w", err)
	}
	return syncFS(filepath.Dir(link))
}

// Prune removes images that are neither current nor held (see Hold), what interrupted builds left, and downloads
// that no build asked for in 30 days. It returns how many images it removed. Runtimes that are being built are
// left alone.
func (im *Images) Prune() (int, error) {
	removed := 0
	var errs []error
	for _, r := range recipes() {
		n, err := im.pruneRuntime(r)
		removed += n
		errs = append(errs, err)
	}
	errs = append(errs, im.pruneCache())
	return removed, errors.Join(errs...)
}

func (im *Images) pruneRuntime(r recipe) (int, error) {
	if _, err := os.Stat(im.path(r.Name)); err != nil {
		return 0, nil // never built
	}
	unlock, err := tryLock(im.path(r.Name, lockFile))
	if unlock == nil {
		return 0, err
	}
	defer unlock()
	current, err := os.Readlink(im.path(r.Name, currentLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("prune %s: %w", r.Name, err)
	}
	entries, err := os.ReadDir(im.path(r.Name))
	if err != nil {
		return 0, fmt.Errorf("prune %s: %w", r.Name, err)
	}
	removed := 0
	for _, e := range entries {
		if !e.IsDir() || e.Name() == current {
			continue
		}
		gone, err := removeImage(im.path(r.Name, e.Name()))
		if err != nil {
			return removed, fmt.Errorf("prune %s: %w", r.Name, err)
		}
		if gone && !strings.HasPrefix(e.Name(), buildPrefix) {
			removed++
		}
	}
	return removed, nil
}

// removeImage removes a directory unless it is held.
func removeImage(dir string) (bool, error) {
	unlock, err := lockDir(dir, unix.LOCK_EX)
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unlock()
	return true, os.RemoveAll(dir)
}

// pruneCache removes old downloads, and Debian parts of recipes that are gone.
func (im *Images) pruneCache() error {
	bases := map[string]bool{}
	for _, r := range recipes() {
		bases[filepath.Base(im.basePath(r))] = true
	}
	oldest, unfinished := im.cfg.Now().Add(-keepDownloads), im.cfg.Now().Add(-24*time.Hour)
	err := filepath.WalkDir(im.cfg.CacheDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var drop bool
		switch {
		case strings.HasSuffix(d.Name(), lockFile):
		case strings.HasPrefix(d.Name(), tmpPrefix):
			drop = info.ModTime().Before(unfinished)
		case filepath.Dir(path) == im.basesDir():
			drop = !bases[d.Name()]
		default:
			drop = info.ModTime().Before(oldest)
		}
		if drop {
			return os.Remove(path) //nolint:gosec // a directory of root's alone
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("prune downloads: %w", err)
	}
	return nil
}

// wrapFull makes a full disk an error of its own.
func wrapFull(err error, dir string) error {
	if err == nil || !isDiskFull(err) {
		return err
	}
	e := fault.New(codes.ResourceExhausted, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL,
		"the disk of %s is full; a runtime image needs up to 600 MB while it is built; free space and build again", dir)
	e.Cause = err
	return e
}
