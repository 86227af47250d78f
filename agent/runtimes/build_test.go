package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// tempImages are Images of their own in a temporary directory; downloads are shared with other tests.
func tempImages(t *testing.T, cfg Config) *Images {
	t.Helper()
	cfg.Dir = t.TempDir()
	images, err := New(cfg)
	must(t, err)
	packages := filepath.Join(imageCache(t), "agent/runtimes/.cache/packages")
	must(t, os.MkdirAll(packages, 0o700))
	must(t, os.MkdirAll(images.cfg.CacheDir, 0o700))
	if err := os.Symlink(packages, images.debsDir()); !errors.Is(err, fs.ErrExist) {
		must(t, err)
	}
	return images
}

// The kept image is the other build, unless Debian has published packages since.
func TestBuildsOfOneRecipeAreIdentical(t *testing.T) {
	for _, name := range []string{"python3.11", "java17"} {
		t.Run(name, func(t *testing.T) {
			want := testImage(t, name).Digest
			image := buildUnderUmask(t, name, 0o077)
			if image.Digest != want {
				wantEqual(t, image.Digest, buildUnderUmask(t, name, 0o022).Digest)
			}
			out, err := exec.Command("find", filepath.Dir(filepath.Dir(image.RootFS)), "!", "-perm", "-0444", "!", "-type", "l", "!", "-name", lockFile).Output()
			must(t, err)
			wantEqual(t, string(out), "")
		})
	}
}

func buildUnderUmask(t *testing.T, name string, mask int) *Image {
	t.Helper()
	defer syscall.Umask(syscall.Umask(mask))
	image, err := tempImages(t, Config{}).Build(t.Context(), name, BuildOptions{})
	must(t, err)
	return image
}

func TestNewBootstrapKeepsTheDebianPart(t *testing.T) {
	for _, r := range recipes() {
		base := r.baseHash()
		whole, err := r.hash()
		must(t, err)
		changed := r
		changed.Command = []string{"other"}
		wantEqual(t, changed.baseHash(), base)
		if h, err := changed.hash(); err != nil || h == whole {
			t.Errorf("%s: the recipe's hash doesn't cover its command", r.Name)
		}
		changed.Packages = append([]string{"more"}, r.Packages...)
		if changed.baseHash() == base {
			t.Errorf("%s: the hash of the Debian part doesn't cover packages", r.Name)
		}
	}
}

func TestImageContents(t *testing.T) {
	for _, name := range Names() {
		image := testImage(t, name)
		for path, mode := range map[string]os.FileMode{
			"var/task": os.ModeDir | 0o755, "opt": os.ModeDir | 0o755, "var/runtime": os.ModeDir | 0o755, "tmp": os.ModeDir | os.ModeSticky | 0o777,
			"run": os.ModeDir | 0o755, "proc": os.ModeDir | 0o755, "sys": os.ModeDir | 0o755, "dev": os.ModeDir | 0o755, "etc/passwd": 0o644,
			"etc/group": 0o644, "etc/hosts": 0o644, "etc/resolv.conf": 0o644, "etc/ssl/certs/ca-certificates.crt": 0o644,
			"usr/share/zoneinfo/Europe/Berlin": 0o644, "bin": os.ModeSymlink | 0o777, "etc/ld.so.cache": 0o644,
		} {
			info, err := os.Lstat(filepath.Join(image.RootFS, path))
			if err != nil || info.Mode() != mode {
				t.Errorf("%s: %s: got %v, %v; want %v", name, path, info, err, mode)
			}
		}
		for _, path := range []string{"tmp/hsperfdata_root", "etc/machine-id", "etc/hostname", "var/cache/ldconfig", "var/lib/dpkg", "usr/share/doc"} {
			if _, err := os.Lstat(filepath.Join(image.RootFS, path)); err == nil {
				t.Errorf("%s: %s must not be in the image", name, path)
			}
		}
		out, err := chrootOutput(t.Context(), image.RootFS, "/bin/sh", "-c", "id -un 1000; curl --version | head -c 4; ls /dev /var/task")
		must(t, err)
		wantEqual(t, out, "sandbox\ncurl/dev:\n\n/var/task:")
		digest, size, err := treeDigest(image.RootFS)
		must(t, err)
		wantEqual(t, digest, image.Digest)
		wantEqual(t, size, image.SizeBytes)
	}
}

func TestByteCodeIsNeverChecked(t *testing.T) {
	root, compiled := testImage(t, "python3.11").RootFS, 0
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".pyc" {
			return err
		}
		compiled++
		b, err := os.ReadFile(path)
		if err == nil && b[4] != 1 { // flags: by hash, and the hash isn't looked at
			t.Errorf("%s is checked against its source", path)
		}
		return err
	})
	must(t, err)
	wantEqual(t, compiled > 800, true)
}

func TestManifestOnDisk(t *testing.T) {
	image := testImage(t, "provided")
	var m map[string]any
	b, err := os.ReadFile(filepath.Join(filepath.Dir(image.RootFS), "manifest.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &m))
	wantEqual(t, m["mode"], "runtime-api")
	wantEqual(t, m["command"], []any{"/var/task/bootstrap"})
	home := filepath.Join(imageCache(t), "provided")
	target, err := os.Readlink(filepath.Join(home, "current"))
	must(t, err)
	wantEqual(t, "sha256:"+target, image.Digest)
	wantEqual(t, filepath.Join(home, target, "rootfs"), image.RootFS)
}

func TestUnknownRuntime(t *testing.T) {
	images := tempImages(t, Config{})
	_, buildErr := images.Build(t.Context(), "../x", BuildOptions{})
	_, findErr := images.Find("ruby")
	for _, err := range []error{buildErr, findErr} {
		if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME) {
			t.Errorf("got %v", err)
		}
		wantContains(t, err.Error(), "java17, nodejs18, nodejs20, provided, python3.11, python3.13, ruby3.1")
	}
	_, err := images.Find("provided")
	if !errors.Is(err, ErrNotBuilt) || fault.From(err).Code != codes.FailedPrecondition {
		t.Errorf("got %v", err)
	}
	list, err := images.List()
	must(t, err)
	wantEqual(t, len(list), 0)
}

func TestMissingTools(t *testing.T) {
	images := tempImages(t, Config{})
	t.Setenv("PATH", t.TempDir())
	_, err := images.Build(t.Context(), "provided", BuildOptions{})
	if fault.From(err).Code != codes.FailedPrecondition {
		t.Errorf("got %v", err)
	}
	wantContains(t, err.Error(), "needs mmdebstrap", "apt-get install mmdebstrap debian-archive-keyring")
	_, err = findKeyring(t.TempDir())
	wantContains(t, err.Error(), "apt-get install debian-archive-keyring")
}

func TestUnreachableMirrorLeavesNothing(t *testing.T) {
	images := tempImages(t, Config{Mirror: "http://127.0.0.1:1/debian"})
	_, err := images.Build(t.Context(), "provided", BuildOptions{})
	if err == nil {
		t.Fatal("built without a mirror")
	}
	wantContains(t, err.Error(), "cannot fetch packages from http://127.0.0.1:1/debian", MirrorEnv, "connection refused")
	wantOnly(t, images, "provided", lockFile)
}

// wantOnly checks what is left in the directory of a runtime.
func wantOnly(t *testing.T, images *Images, name string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(images.path(name))
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	wantEqual(t, got, want)
	bases, err := filepath.Glob(filepath.Join(images.basesDir(), tmpPrefix+"*"))
	must(t, err)
	wantEqual(t, len(bases), 0)
}

func TestInterruptedBuildsLeaveNothing(t *testing.T) {
	cache := t.TempDir()
	for _, stage := range []string{"prepare", "extract", "finish", "install", "digest"} {
		t.Run(stage, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			images := tempImages(t, Config{CacheDir: cache, Progress: func(e Event) {
				if e.Stage == stage {
					cancel()
				}
			}})
			_, err := images.Build(ctx, "provided", BuildOptions{})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			wantOnly(t, images, "provided", lockFile)
		})
	}
}

func TestConcurrentBuildsMakeOneImage(t *testing.T) {
	var mu sync.Mutex
	var extracted, last int
	stages := map[string]bool{}
	images := tempImages(t, Config{Progress: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		stages[e.Stage] = true
		if e.Stage == "extract" {
			extracted++
		}
		last = int(e.Fraction * 100)
	}})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := images.Build(t.Context(), "provided", BuildOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantEqual(t, extracted, 1)
	wantEqual(t, last, 100)
	for _, stage := range []string{"prepare", "download", "extract", "finish", "install", "digest", "done"} {
		if !stages[stage] {
			t.Errorf("no event of stage %s", stage)
		}
	}
}

// copyImage makes an older image of a runtime beside the current one.
func copyImage(t *testing.T, images *Images, name string) string {
	t.Helper()
	image, err := images.Find(name)
	must(t, err)
	digest := strings.Repeat("0", 64)
	must(t, os.CopyFS(images.path(name, digest), os.DirFS(filepath.Dir(image.RootFS))))
	return "sha256:" + digest
}

func TestPrune(t *testing.T) {
	later := time.Now().Add(40 * 24 * time.Hour)
	images := tempImages(t, Config{Now: func() time.Time { return later }})
	must(t, os.Remove(images.debsDir()))
	must(t, os.MkdirAll(images.debsDir(), 0o700))
	fakeImage(t, images, "provided", "aa", "some recipe")
	old := copyImage(t, images, "provided")
	must(t, os.Mkdir(images.path("provided", ".build-1"), 0o755))
	must(t, os.MkdirAll(images.basesDir(), 0o700))
	r, err := recipeOf("provided")
	must(t, err)
	files := []string{images.basePath(r), filepath.Join(images.basesDir(), "provided-old.tar.zst"), filepath.Join(images.debsDir(), "x.deb")}
	for _, file := range files {
		must(t, os.WriteFile(file, nil, 0o600))
	}

	release, err := Hold(images.path("provided", strings.TrimPrefix(old, "sha256:")))
	must(t, err)
	n, err := images.Prune()
	must(t, err)
	wantEqual(t, n, 0)
	wantOnly(t, images, "provided", lockFile, strings.TrimPrefix(old, "sha256:"), "aa", "current")
	left := slices.DeleteFunc(files, func(f string) bool { _, err := os.Stat(f); return err != nil })
	wantEqual(t, left, []string{images.basePath(r)})

	release()
	n, err = images.Prune()
	must(t, err)
	wantEqual(t, n, 1)
	if _, err := Hold(images.path("provided", strings.TrimPrefix(old, "sha256:"))); !errors.Is(err, ErrGone) {
		t.Errorf("held what is gone: %v", err)
	}
	wantOnly(t, images, "provided", lockFile, "aa", "current")
}

func TestPruneLeavesBuildsAlone(t *testing.T) {
	images := tempImages(t, Config{})
	fakeImage(t, images, "provided", "aa", "some recipe")
	must(t, os.Mkdir(images.path("provided", ".build-1"), 0o755))
	unlock, err := lock(t.Context(), images.path("provided", lockFile))
	must(t, err)
	defer unlock()
	_, err = images.Prune()
	must(t, err)
	wantOnly(t, images, "provided", ".build-1", lockFile, "aa", "current")
}

// fakeImage publishes an image with one file.
func fakeImage(t *testing.T, images *Images, name, digest, recipe string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	must(t, os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755))
	must(t, os.MkdirAll(images.path(name), 0o755))
	must(t, images.publish(dir, Manifest{Runtime: name, Digest: digestPrefix + digest, Recipe: recipe}))
}

func TestPublishReplacesAndRepeats(t *testing.T) {
	images := tempImages(t, Config{})
	r, err := recipeOf("provided")
	must(t, err)
	recipe, err := r.hash()
	must(t, err)
	for _, c := range []struct {
		digest, recipe string
		stale          bool
	}{{"aa", "old", true}, {"bb", "old", true}, {"bb", recipe, false}} {
		fakeImage(t, images, "provided", c.digest, c.recipe)
		image, err := images.Find("provided")
		must(t, err)
		wantEqual(t, image.Digest, digestPrefix+c.digest)
		wantEqual(t, image.Stale, c.stale)
	}
	list, err := images.List()
	must(t, err)
	wantEqual(t, len(list), 1)
}
