package runtimes

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// finisher turns extracted packages into a root file system: it does what their maintainer scripts would have
// done, and drops what a function never needs and what differs from build to build.
type finisher struct {
	root   string
	recipe recipe
}

func (f finisher) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		f.mergeUsr, f.drop, f.writeFiles, f.makeLinks, f.installCertificates, f.installJavaTrust, f.compress, f.compilePython, f.linkLibraries,
	} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("finish %s: %w", f.recipe.Name, err)
		}
	}
	return nil
}

func (f finisher) path(p string) string { return filepath.Join(f.root, p) }

// mergeUsr moves /bin, /lib … into /usr and leaves links.
func (f finisher) mergeUsr(context.Context) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat(f.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			continue // mmdebstrap did it
		}
		if err := mergeDir(f.path(name), f.path("usr/"+name)); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, f.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// mergeDir moves everything in from to the directory to, and removes from.
func mergeDir(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		info, err := os.Lstat(dst)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = os.Rename(src, dst)
		case err != nil:
		case e.IsDir() && info.IsDir():
			err = mergeDir(src, dst)
		case info.Mode()&fs.ModeSymlink != 0:
			err = os.Rename(src, dst) // the link pointed here
		default:
			err = os.Remove(src)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(from)
}

// dropped is removed; names ending in a slash are emptied.
func dropped() []string {
	return []string{
		"boot", "home/", "media", "mnt", "srv", "dev/", "proc/", "sys/", "run/", "tmp/", "root/",
		"etc/apt", "etc/cron.daily", "etc/debconf.conf", "etc/default", "etc/dpkg", "etc/fstab", "etc/hostname", "etc/init.d",
		"etc/kernel", "etc/logrotate.d", "etc/machine-id", "etc/motd", "etc/skel", "etc/systemd", "etc/update-motd.d",
		"usr/share/bash-completion", "usr/share/bug", "usr/share/debconf", "usr/share/doc", "usr/share/doc-base",
		"usr/share/dpkg", "usr/share/gdb", "usr/share/info", "usr/share/keyrings", "usr/share/lintian", "usr/share/locale",
		"usr/share/man", "usr/share/menu", "usr/share/perl5", "usr/share/pixmaps", "usr/share/tabset", "usr/share/apport",
		"usr/lib/dpkg", "usr/lib/systemd", "usr/lib/python3.11/test", "usr/lib/python3.11/__phello__",
		"etc/python3.11", "usr/lib/python3.11/sitecustomize.py", "usr/share/python3", "usr/share/binfmts",
		"usr/lib/python3.13/test", "usr/lib/python3.13/__phello__", "etc/python3.13", "usr/lib/python3.13/sitecustomize.py",
		"usr/share/ca-certificates-java", "usr/share/ri", "usr/share/rubygems-integration/all/doc",
		"usr/share/zoneinfo/posix", "usr/share/zoneinfo/right", "var/backups", "var/cache/", "var/lib/", "var/log/", "var/mail", "var/spool",
	}
}

func (f finisher) drop(context.Context) error {
	for _, name := range dropped() {
		if err := os.RemoveAll(f.path(name)); err != nil {
			return err
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(f.path(name), 0o755); err != nil {
				return err
			}
		}
	}
	// Package managers can't work in a read-only image.
	tools, err := filepath.Glob(f.path("usr/bin/dpkg*"))
	if err != nil {
		return err
	}
	for _, tool := range tools {
		if err := os.Remove(tool); err != nil {
			return err
		}
	}
	return nil
}

// sandboxFiles are the files that every sandbox sees, below /etc.
func sandboxFiles() map[string]string {
	return map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n" +
			"sandbox:x:1000:1000:function:/tmp:/bin/sh\n",
		"group":         "root:x:0:\nnogroup:x:65534:\nsandbox:x:1000:\n",
		"hosts":         "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
		"resolv.conf":   "",
		"timezone":      "Etc/UTC\n",
	}
}

// mountPoints are directories that sandboxes mount something on.
func mountPoints() []string {
	return []string{"dev", "opt", "proc", "run", "sys", "tmp", "var/runtime", "var/task"}
}

func (f finisher) writeFiles(context.Context) error {
	for name, text := range sandboxFiles() {
		path := f.path("etc/" + name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range mountPoints() {
		if err := os.MkdirAll(f.path(name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"tmp", "var/tmp"} {
		if err := os.MkdirAll(f.path(name), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(f.path(name), fs.ModeSticky|0o777); err != nil {
			return err
		}
	}
	return nil
}

// makeLinks makes the links that packages leave to update-alternatives and the like, where their targets exist.
func (f finisher) makeLinks(context.Context) error {
	links := []struct{ name, target string }{
		{"etc/localtime", "/usr/share/zoneinfo/Etc/UTC"},
		{"usr/bin/awk", "mawk"},
		{"usr/bin/python", "python3"},
		{"usr/bin/java", "../lib/jvm/java-17-openjdk-" + runtime.GOARCH + "/bin/java"},
		{"usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"},
		{"var/run", "/run"},
		{"var/lock", "/run/lock"},
	}
	for _, l := range links {
		target := filepath.Join(filepath.Dir(l.name), l.target)
		if filepath.IsAbs(l.target) {
			target = l.target
		}
		if _, err := os.Lstat(f.path(target)); err != nil && !strings.HasPrefix(l.target, "/run") && !strings.HasPrefix(l.target, "/etc") {
			continue // not in this image
		}
		if err := os.RemoveAll(f.path(l.name)); err != nil {
			return err
		}
		if err := os.Symlink(l.target, f.path(l.name)); err != nil {
			return err
		}
	}
	return nil
}

// installCertificates does what update-ca-certificates would: one bundle, and links by hash.
func (f finisher) installCertificates(ctx context.Context) error {
	files, err := filepath.Glob(f.path("usr/share/ca-certificates/mozilla/*.crt")) // sorted
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("no CA certificates in the package ca-certificates")
	}
	var bundle bytes.Buffer
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimSpace(pem))
		bundle.WriteByte('\n')
		name := strings.TrimSuffix(filepath.Base(file), ".crt") + ".pem"
		if err := os.Symlink("/usr/share/ca-certificates/mozilla/"+filepath.Base(file), f.path("etc/ssl/certs/"+name)); err != nil {
			return err
		}
	}
	if err := f.chroot(ctx, "/usr/bin/openssl", "rehash", "/etc/ssl/certs"); err != nil {
		return err
	}
	return os.WriteFile(f.path("etc/ssl/certs/ca-certificates.crt"), bundle.Bytes(), 0o644)
}

// compress replaces JSON by its gzipped form in the directories of the recipe.
func (f finisher) compress(context.Context) error {
	for _, dir := range f.recipe.GzipDirs {
		err := filepath.WalkDir(f.path(dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != ".json" {
				return err
			}
			return gzipFile(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func gzipFile(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed) // its header has no time
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(path+".gz", packed.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Remove(path)
}

// compilePython writes byte code that is never checked against its source: nothing changes in an image. One
// process compiles a directory in order, since the bits depend on what was compiled before; it must not write byte code
// of what it imports itself (-B), which would be checked.
func (f finisher) compilePython(ctx context.Context) error {
	for _, dir := range f.recipe.PythonDirs {
		err := f.chroot(ctx, f.recipe.Python, "-I", "-S", "-B", "-m", "compileall", "-q", "-f",
			"--invalidation-mode", "unchecked-hash", "-x", `lib2to3/tests|/bad_`, dir)
		if err != nil {
			return err
		}
	}
	return nil
}

// linkLibraries makes the cache of the dynamic linker.
func (f finisher) linkLibraries(ctx context.Context) error {
	if err := f.chroot(ctx, "/usr/sbin/ldconfig"); err != nil {
		return err
	}
	return os.RemoveAll(f.path("var/cache/ldconfig")) // it holds times
}

// chroot runs a command of the image in it.
func (f finisher) chroot(ctx context.Context, name string, args ...string) error {
	_, err := chrootOutput(ctx, f.root, name, args...)
	return err
}

func chrootOutput(ctx context.Context, root, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: root, Setpgid: true}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%s in the image: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
