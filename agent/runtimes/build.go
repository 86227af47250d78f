package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
)

// BuildOptions change how an image is built.
type BuildOptions struct {
	// Refresh builds again from the packages that Debian has now, even if the recipe has not changed.
	Refresh bool
}

// Build makes the image of a runtime the current one, and returns it. If an image of today's recipe exists it is
// returned at once. Builds of one runtime wait for each other. A build that fails, or whose ctx ends, leaves
// nothing but downloads. Unknown names have reason INVALID_RUNTIME, a full disk DISK_FULL, a host without root or
// mmdebstrap codes.FailedPrecondition.
func (im *Images) Build(ctx context.Context, name string, opts BuildOptions) (*Image, error) {
	r, err := recipeOf(name)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(); err != nil {
		return nil, err
	}
	if err := makeDir(im.path(name)); err != nil {
		return nil, fmt.Errorf("build %s: %w", name, wrapFull(err, im.dir))
	}
	unlock, err := lock(ctx, im.path(name, lockFile))
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", name, err)
	}
	defer unlock()
	b := &build{images: im, recipe: r}
	if image, err := im.find(r); err == nil && !image.Stale && !opts.Refresh {
		b.event("done", 1, "up to date")
		return image, nil
	}
	image, err := b.run(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", name, wrapFull(err, im.dir))
	}
	return image, nil
}

// BuildAll builds several images at once; they share downloads. All runtimes if names is empty.
func (im *Images) BuildAll(ctx context.Context, names []string, opts BuildOptions) ([]*Image, error) {
	if len(names) == 0 {
		names = Names()
	}
	images := make([]*Image, len(names))
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		g.Go(func() error {
			var err error
			images[i], err = im.Build(ctx, name, opts)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return images, nil
}

// build is one build of an image.
type build struct {
	images *Images
	recipe recipe
	work   string

	mu       sync.Mutex
	fraction float64
	received int64
	expected int64
}

// event tells progress; the fraction never falls.
func (b *build) event(stage string, fraction float64, format string, args ...any) {
	b.mu.Lock()
	b.fraction = max(b.fraction, fraction)
	e := Event{Runtime: b.recipe.Name, Stage: stage, Fraction: b.fraction, Text: fmt.Sprintf(format, args...)}
	b.mu.Unlock()
	b.images.cfg.Progress(e)
}

// run is called with the runtime's lock.
func (b *build) run(ctx context.Context, opts BuildOptions) (_ *Image, err error) {
	if err := b.openWork(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	base, err := b.base(ctx, opts.Refresh)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.work, "image")
	manifest, err := b.assemble(ctx, base, dir)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.images.publish(dir, manifest); err != nil {
		return nil, err
	}
	b.event("done", 1, "%s %s", manifest.Runtime, manifest.Version)
	b.images.cfg.Logger.Info("runtime image built", "runtime", manifest.Runtime, "version", manifest.Version,
		"digest", manifest.Digest, "size_bytes", manifest.SizeBytes)
	return b.images.find(b.recipe)
}

// openWork makes the directory of this build, and removes those that killed builds left.
func (b *build) openWork() error {
	home := b.images.path(b.recipe.Name)
	left, err := filepath.Glob(filepath.Join(home, buildPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an interrupted build: %w", err)
		}
	}
	b.work, err = os.MkdirTemp(home, buildPrefix)
	return err
}

func (im *Images) basesDir() string { return filepath.Join(im.cfg.CacheDir, "bases") }

func (im *Images) basePath(r recipe) string {
	return filepath.Join(im.basesDir(), r.Name+"-"+r.baseHash()+".tar.zst")
}

// base returns the file with the Debian part of the image, made before or now.
func (b *build) base(ctx context.Context, refresh bool) (string, error) {
	for _, dir := range []string{b.images.basesDir(), b.images.debsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	unlock, err := lock(ctx, filepath.Join(b.images.cfg.CacheDir, b.recipe.Name+lockFile))
	if err != nil {
		return "", err
	}
	defer unlock()
	path := b.images.basePath(b.recipe)
	if _, err := os.Stat(path); err == nil && !refresh {
		return path, nil
	}
	if err := checkTools(); err != nil {
		return "", err
	}
	root, err := b.bootstrap(ctx)
	if err != nil {
		return "", err
	}
	b.event("finish", 0.62, "preparing the file system")
	if err := (finisher{root: root, recipe: b.recipe}).run(ctx); err != nil {
		return "", err
	}
	b.event("finish", 0.78, "keeping the Debian part for later builds")
	if err := saveTree(path, root); err != nil {
		return "", fmt.Errorf("keep the Debian part: %w", err)
	}
	return path, os.RemoveAll(root)
}

// assemble makes an image directory of the Debian part and the bootstrap.
func (b *build) assemble(ctx context.Context, base, dir string) (Manifest, error) {
	b.event("install", 0.82, "installing the bootstrap")
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{dir, rootfs} {
		if err := makeDir(d); err != nil {
			return Manifest{}, err
		}
	}
	if err := loadTree(base, rootfs); err != nil {
		return Manifest{}, err
	}
	if err := b.installBootstrap(ctx, rootfs); err != nil {
		return Manifest{}, err
	}
	version, err := b.version(ctx, rootfs)
	if err != nil {
		return Manifest{}, err
	}
	b.event("digest", 0.92, "computing the digest")
	digest, size, err := treeDigest(rootfs)
	if err != nil {
		return Manifest{}, err
	}
	hash, err := b.recipe.hash()
	if err != nil {
		return Manifest{}, err
	}
	return Manifest{
		Runtime: b.recipe.Name, Version: version, Digest: digest, SizeBytes: size, BuiltAt: b.images.cfg.Now().UTC(),
		Recipe: hash, Command: b.recipe.Command, Mode: b.recipe.Mode,
	}, nil
}

func (b *build) version(ctx context.Context, rootfs string) (string, error) {
	command := b.recipe.VersionCommand
	if len(command) == 0 {
		return "", nil
	}
	return chrootOutput(ctx, rootfs, command[0], command[1:]...)
}

// installBootstrap copies the bootstrap and compiles it.
func (b *build) installBootstrap(ctx context.Context, rootfs string) error {
	files, err := b.recipe.bootstrap()
	if err != nil {
		return err
	}
	dir := filepath.Join(rootfs, "var/runtime")
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	if compile := b.recipe.Compile; len(compile) > 0 {
		if _, err := chrootOutput(ctx, rootfs, compile[0], compile[1:]...); err != nil {
			return err
		}
	}
	return readable(dir)
}

// readable lets everybody read what is below dir, whatever the umask.
func readable(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return root.Chmod(path, 0o755)
		}
		return root.Chmod(path, 0o644)
	})
}

// makeDir makes a directory that sandboxes can look into under their own uids, whatever the umask.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}
