package bundle_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/cli/bundle"
)

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// open packages path and returns its entries' names and the zip's bytes.
func open(t testing.TB, path string, o bundle.Options) (*zip.Reader, []byte) {
	t.Helper()
	p, err := bundle.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	data, err := io.ReadAll(p.File)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != p.SizeBytes {
		t.Errorf("size %d of %d bytes", p.SizeBytes, len(data))
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return z, data
}

func names(z *zip.Reader) []string {
	var all []string
	for _, f := range z.File {
		all = append(all, f.Name)
	}
	return all
}

func TestFolderLeavesOutWhatIsIgnored(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"main.py": "x", "a/b.py": "y", "a/skip.log": "-", "keep.log": "z", "build/out": "-", "a/build/in": "w",
		".git/config": "-", "__pycache__/x.pyc": "-", "a/__pycache__/y.pyc": "-",
		".mayflyignore": "# logs\n*.log\n!keep.log\n/build\n",
	})
	z, _ := open(t, dir, bundle.Options{})
	if want := []string{"a/b.py", "a/build/in", "keep.log", "main.py"}; !slices.Equal(names(z), want) {
		t.Errorf("got %v, want %v", names(z), want)
	}
}

func TestSameFilesSamePackage(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		files := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,3}(/[a-z]{4,6})?\.py`), rapid.String(), 1, 8).Draw(r, "files")
		var digests []string
		for i := range 2 {
			dir, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				r.Fatal(err)
			}
			write(t, dir, files)
			// Times, group and other's bits must not matter.
			for name := range files {
				path := filepath.Join(dir, name)
				stamp := time.Unix(int64(1e9+i*1e6), 0)
				if err := errors.Join(os.Chtimes(path, stamp, stamp), os.Chmod(path, []os.FileMode{0o644, 0o600}[i])); err != nil {
					r.Fatal(err)
				}
			}
			p, err := bundle.Open(dir, bundle.Options{})
			if err != nil {
				r.Fatal(err)
			}
			digests = append(digests, p.Digest)
			if err := p.Close(); err != nil {
				r.Fatal(err)
			}
		}
		if digests[0] != digests[1] {
			r.Fatalf("two packages of the same files: %v", digests)
		}
	})
}

func TestExecutableBitIsKept(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"bootstrap": "#!", "lib.so": "x"})
	if err := os.Chmod(filepath.Join(dir, "bootstrap"), 0o700); err != nil {
		t.Fatal(err)
	}
	z, _ := open(t, dir, bundle.Options{})
	if z.File[0].Mode() != 0o755 || z.File[1].Mode() != 0o644 {
		t.Errorf("modes %v and %v", z.File[0].Mode(), z.File[1].Mode())
	}
}

func TestSingleFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"server": "ELF"})
	z, _ := open(t, filepath.Join(dir, "server"), bundle.Options{})
	if z.File[0].Name != "server" || z.File[0].Mode() != 0o644 {
		t.Errorf("got %s %v", z.File[0].Name, z.File[0].Mode())
	}
	z, _ = open(t, filepath.Join(dir, "server"), bundle.Options{SingleName: "bootstrap"})
	if z.File[0].Name != "bootstrap" || z.File[0].Mode() != 0o755 {
		t.Errorf("renamed: got %s %v", z.File[0].Name, z.File[0].Mode())
	}
}

func TestZipIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	var made bytes.Buffer
	zw := zip.NewWriter(&made)
	if _, err := zw.Create("x.py"); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "made.ZIP")
	if err := os.WriteFile(path, made.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, data := open(t, path, bundle.Options{}); !bytes.Equal(data, made.Bytes()) {
		t.Error("the zip was changed")
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing the package took the zip: %v", err)
	}
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/real.py": "x"})
	if err := os.Symlink("../a/real.py", filepath.Join(dir, "a", "link.py")); err != nil {
		t.Fatal(err)
	}
	z, _ := open(t, dir, bundle.Options{})
	if f := z.File[0]; f.Name != "a/link.py" || f.Mode()&os.ModeSymlink == 0 {
		t.Errorf("got %s %v", f.Name, f.Mode())
	}
	for _, target := range []string{"/etc/passwd", "../../etc/passwd", "../.."} {
		bad := filepath.Join(dir, "a", "bad")
		if err := os.Symlink(target, bad); err != nil {
			t.Fatal(err)
		}
		if _, err := bundle.Open(dir, bundle.Options{}); !errors.Is(err, bundle.ErrUsage) || !strings.Contains(err.Error(), "outside") {
			t.Errorf("a link to %s: %v", target, err)
		}
		if err := os.Remove(bad); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"no.zip": "hello", "all/.mayflyignore": "*\n", "all/x": "y", "bad/.mayflyignore": "[a\n", "bad/x": "y"})
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"huge/sparse": ""})
	if err := os.Truncate(filepath.Join(dir, "huge", "sparse"), bundle.MaxUnpackedBytes+1); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"none": "no such file", "no.zip": "is none", "empty": "no file to deploy", "all": "no file to deploy",
		"bad": "malformed", "huge": "more than the limit",
	} {
		if _, err := bundle.Open(filepath.Join(dir, path), bundle.Options{}); !errors.Is(err, bundle.ErrUsage) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", path, err, says)
		}
	}
}

func TestIgnoreRules(t *testing.T) {
	for _, c := range []struct {
		rules, path string
		dir, want   bool
	}{
		{rules: "foo", path: "foo", want: true},
		{rules: "foo", path: "a/b/foo", want: true},
		{rules: "foo", path: "foobar", want: false},
		{rules: "/foo", path: "a/foo", want: false},
		{rules: "a/foo", path: "a/foo", want: true},
		{rules: "a/foo", path: "b/a/foo", want: false},
		{rules: "foo/", path: "foo", want: false},
		{rules: "foo/", path: "foo", dir: true, want: true},
		{rules: "*.log", path: "a/x.log", want: true},
		{rules: "a/*.log", path: "a/b/x.log", want: false},
		{rules: "a/**", path: "a", dir: true, want: false},
		{rules: "a/**", path: "a/b/c", want: true},
		{rules: "**/c", path: "c", want: true},
		{rules: "**/c", path: "a/b/c", want: true},
		{rules: "a/**/c", path: "a/c", want: true},
		{rules: "a/**/c", path: "a/x/y/c", want: true},
		{rules: "a/**/c", path: "b/a/c", want: false},
		{rules: "x?[0-9]", path: "xa7", want: true},
		{rules: "*\n!keep", path: "keep", want: false},
		{rules: "!keep\n*", path: "keep", want: true},
		{rules: "# foo", path: "# foo", want: false},
		{rules: `\# foo`, path: "# foo", want: true},
		{rules: `\!foo`, path: "!foo", want: true},
		{rules: "foo  ", path: "foo", want: true},
		{rules: `foo\ `, path: "foo ", want: true},
		{rules: "foo\r\n", path: "foo", want: true},
		{rules: "/", path: "x", want: false},
		{rules: "!.mayflyignore", path: ".mayflyignore", want: true},
	} {
		ig, err := bundle.ParseIgnore(c.rules)
		if err != nil {
			t.Errorf("%q: %v", c.rules, err)
			continue
		}
		if got := ig.Match(c.path, c.dir); got != c.want {
			t.Errorf("rules %q, path %q (folder: %v): got %v", c.rules, c.path, c.dir, got)
		}
	}
}

func FuzzIgnore(f *testing.F) {
	f.Add("*.log\n!a/**/b\n/c/", "a/x/b", false)
	f.Add("**/**/**/**/x", "a/a/a/a/a/a/a/a", true)
	f.Fuzz(func(t *testing.T, rules, path string, dir bool) {
		ig, err := bundle.ParseIgnore(rules)
		if err != nil {
			return
		}
		ignored := ig.Match(path, dir)
		// A last line that takes everything back, or leaves everything out, decides.
		for line, want := range map[string]bool{"\n**": true, "\n!**": path == bundle.IgnoreFile} {
			last, err := bundle.ParseIgnore(rules + line)
			if err != nil {
				t.Fatal(err)
			}
			if last.Match(path, dir) != want {
				t.Errorf("rules %q and %q, path %q: before %v, want %v", rules, line, path, ignored, want)
			}
		}
	})
}
