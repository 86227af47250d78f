package code

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// file is an entry of a zip to be made.
type file struct {
	name, content string
	mode          fs.FileMode
	change        func(*zip.FileHeader)
}

func makeZip(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate}
		if f.content == "" {
			h.Method = zip.Store // a compressor for each of 100,000 entries would take long
		}
		if f.mode != 0 {
			h.SetMode(f.mode)
		}
		var err error
		var out io.Writer
		if f.change != nil {
			f.change(h)
			out, err = w.CreateRaw(h)
		} else {
			out, err = w.CreateHeader(h)
		}
		if err == nil {
			_, err = io.WriteString(out, f.content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}

// source serves packages by digest and counts.
type source struct {
	packages map[string][]byte
	fetched  atomic.Int32
	err      error
}

func serve(packages ...[]byte) *source {
	s := &source{packages: map[string][]byte{}}
	for _, p := range packages {
		s.packages[digestOf(p)] = p
	}
	return s
}

func (s *source) fetch(_ context.Context, digest string) (io.ReadCloser, error) {
	s.fetched.Add(1)
	if s.err != nil {
		return nil, s.err
	}
	return io.NopCloser(bytes.NewReader(s.packages[digest])), nil
}

func openCache(t testing.TB, dir string, s *source, budget int64) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, Fetch: s.fetch, Budget: budget, BootID: "boot"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func entries(t testing.TB, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestAcquire(t *testing.T) {
	z := makeZip(t,
		file{name: "main.py", content: "print(1)", mode: 0o600},
		file{name: "bin/", mode: fs.ModeDir | 0o700},
		file{name: "bin/tool", content: "#!", mode: 0o4700},
		file{name: "deep/er/data", content: "x"},
		file{name: "bin/again", content: "../main.py", mode: fs.ModeSymlink | 0o777},
		file{name: "dangling", content: "nothing/here", mode: fs.ModeSymlink | 0o777},
	)
	s := serve(z)
	dir := t.TempDir()
	c := openCache(t, dir, s, 0)
	ref, err := c.Acquire(t.Context(), digestOf(z))
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	for name, mode := range map[string]fs.FileMode{"main.py": 0o644, "bin": fs.ModeDir | 0o755, "bin/tool": 0o755, "deep/er": fs.ModeDir | 0o755, ".": fs.ModeDir | 0o755} {
		info, err := os.Lstat(filepath.Join(ref.Dir, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v, error %v", name, info.Mode(), mode, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(ref.Dir, "bin/again")); err != nil || string(b) != "print(1)" {
		t.Fatalf("by the link: %q, %v", b, err)
	}
	again, err := openCache(t, dir, s, 0).Acquire(t.Context(), digestOf(z))
	if err != nil || s.fetched.Load() != 1 {
		t.Fatalf("fetched %d times, %v", s.fetched.Load(), err)
	}
	again.Release()
	if c.Bytes() != 8+2+1+10+12 {
		t.Fatalf("%d bytes", c.Bytes())
	}
}

func lying(size uint64) func(*zip.FileHeader) {
	return func(h *zip.FileHeader) {
		h.Method = zip.Store
		h.CompressedSize64, h.UncompressedSize64 = 5, size
		h.CRC32 = crc32.ChecksumIEEE([]byte("hello"))
	}
}

func badZips(t testing.TB) map[string][]byte {
	link := fs.ModeSymlink | 0o777
	many := make([]file, MaxEntries+1)
	for i := range many {
		many[i] = file{name: fmt.Sprint(i)}
	}
	good := makeZip(t, file{name: "a", content: "hello hello hello"})
	return map[string][]byte{
		"no zip":            []byte("hello"),
		"empty":             {},
		"cut":               good[:len(good)-10],
		"absolute":          makeZip(t, file{name: "/etc/passwd"}),
		"dot dot":           makeZip(t, file{name: "a/../../b"}),
		"dot dot inside":    makeZip(t, file{name: "a/../b"}),
		"backslash":         makeZip(t, file{name: `..\b`}),
		"zero byte":         makeZip(t, file{name: "a\x00b"}),
		"long name":         makeZip(t, file{name: strings.Repeat("a", 256)}),
		"device":            makeZip(t, file{name: "dev", mode: fs.ModeDevice | fs.ModeCharDevice | 0o666}),
		"block device":      makeZip(t, file{name: "dev", mode: fs.ModeDevice | 0o666}),
		"fifo":              makeZip(t, file{name: "dev", mode: fs.ModeNamedPipe | 0o666}),
		"socket":            makeZip(t, file{name: "dev", mode: fs.ModeSocket | 0o666}),
		"absolute link":     makeZip(t, file{name: "l", content: "/etc", mode: link}),
		"link out":          makeZip(t, file{name: "a/l", content: "../../etc", mode: link}),
		"link by link out":  makeZip(t, file{name: "a/b/l", content: "../..", mode: link}, file{name: "m", content: "a/b/l/..", mode: link}),
		"link circle":       makeZip(t, file{name: "a", content: "b", mode: link}, file{name: "b", content: "a", mode: link}),
		"empty link":        makeZip(t, file{name: "a", content: "", mode: link}),
		"below a link":      makeZip(t, file{name: "a", content: ".", mode: link}, file{name: "a/b", content: "x"}),
		"below a link, 2":   makeZip(t, file{name: "a/b", content: "x"}, file{name: "a", content: ".", mode: link}),
		"below a file":      makeZip(t, file{name: "a", content: "."}, file{name: "a/b/c", content: "x"}),
		"twice":             makeZip(t, file{name: "a", content: "1"}, file{name: "a", content: "2"}),
		"twice, other name": makeZip(t, file{name: "a", content: "1"}, file{name: "./a", content: "2"}),
		"file and dir":      makeZip(t, file{name: "a", content: "1"}, file{name: "a/", mode: fs.ModeDir | 0o755}),
		"encrypted":         makeZip(t, file{name: "a", content: "hello", change: func(h *zip.FileHeader) { lying(5)(h); h.Flags |= 1 }}),
		"other method":      makeZip(t, file{name: "a", content: "hello", change: func(h *zip.FileHeader) { lying(5)(h); h.Method = 12 }}),
		"wrong sum":         makeZip(t, file{name: "a", content: "hellO", change: lying(5)}),
		"lies short":        makeZip(t, file{name: "a", content: "hello", change: lying(3)}),
		"lies long":         makeZip(t, file{name: "a", content: "hello", change: lying(9)}),
		"declared bomb":     makeZip(t, file{name: "a", content: "hello", change: lying(MaxUnpacked + 1)}),
		"overflow":          makeZip(t, file{name: "a", content: "hello", change: lying(1 << 63)}, file{name: "b", content: "hello", change: lying(1 << 63)}),
		"sum too large":     makeZip(t, file{name: "a", content: "hello", change: lying(MaxUnpacked / 2)}, file{name: "b", content: "hello", change: lying(MaxUnpacked/2 + 1)}),
		"many entries":      makeZip(t, many...),
	}
}

func TestBadPackages(t *testing.T) {
	for name, z := range badZips(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := openCache(t, dir, serve(z), 0).Acquire(t.Context(), digestOf(z))
			if err == nil {
				t.Fatal("accepted")
			}
			reason := fault.From(err).Reason
			if reason != mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE && reason != mayflyv1.ErrorReason_ERROR_REASON_CODE_TOO_LARGE {
				t.Fatalf("reason %v: %v", reason, err)
			}
			if n := entries(t, dir); n != 0 {
				t.Fatalf("%d directories left", n)
			}
			if _, bad := CheckZip(bytes.NewReader(z), int64(len(z))); bad == nil || bad.Reason != reason {
				t.Fatalf("CheckZip: %v", bad)
			}
		})
	}
}

// A bomb whose headers lie about its size ends at the size that they say.
func TestDeflateBombThatLies(t *testing.T) {
	honest := makeZip(t, file{name: "a", content: strings.Repeat("\x00", 1<<20)})
	lied := bytes.ReplaceAll(honest, []byte{0, 0, 0x10, 0}, []byte{0, 0x10, 0, 0}) // 1 MiB to 4 KiB
	if bytes.Equal(honest, lied) {
		t.Fatal("no size was found to change")
	}
	if _, bad := CheckZip(bytes.NewReader(lied), int64(len(lied))); bad == nil {
		t.Fatal("accepted")
	}
}

func TestWrongDigest(t *testing.T) {
	z := makeZip(t, file{name: "a"})
	s := serve(z)
	other := digestOf([]byte("other"))
	s.packages[other] = z
	dir := t.TempDir()
	if _, err := openCache(t, dir, s, 0).Acquire(t.Context(), other); err == nil || entries(t, dir) != 0 {
		t.Fatalf("%v, %d directories left", err, entries(t, dir))
	}
	for _, d := range []string{"", "sha256:", "sha256:../../x", "md5:00", digestPrefix + strings.Repeat("AB", 32), digestPrefix + strings.Repeat("ab", 31)} {
		if _, err := openCache(t, dir, s, 0).Acquire(t.Context(), d); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT) {
			t.Errorf("%q: %v", d, err)
		}
	}
}

func TestConcurrentCallsShareTheWork(t *testing.T) {
	z := makeZip(t, file{name: "a", content: "x"})
	s := serve(z)
	c := openCache(t, t.TempDir(), s, 0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ref, err := c.Acquire(t.Context(), digestOf(z))
			if err != nil {
				t.Error(err)
				return
			}
			ref.Release()
			ref.Release()
		})
	}
	all.Wait()
	if n := s.fetched.Load(); n != 1 {
		t.Fatalf("fetched %d times", n)
	}
}

func TestAnotherTakesOver(t *testing.T) {
	z := makeZip(t, file{name: "a", content: "x"})
	started := make(chan struct{}, 2)
	var calls atomic.Int32
	c, err := Open(Config{Dir: t.TempDir(), BootID: "b", Fetch: func(ctx context.Context, _ string) (io.ReadCloser, error) {
		started <- struct{}{}
		if calls.Add(1) == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return io.NopCloser(bytes.NewReader(z)), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Acquire(ctx, digestOf(z)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-started
	all.Go(func() {
		if ref, err := c.Acquire(t.Context(), digestOf(z)); err != nil {
			t.Error(err)
		} else {
			ref.Release()
		}
	})
	cancel()
	all.Wait()
}

func TestFailedFetchLeavesNothing(t *testing.T) {
	z := makeZip(t, file{name: "a", content: "x"})
	s := serve(z)
	s.err = fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "gone")
	dir := t.TempDir()
	c := openCache(t, dir, s, 0)
	if _, err := c.Acquire(t.Context(), digestOf(z)); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND) || entries(t, dir) != 0 {
		t.Fatalf("%v, %d left", err, entries(t, dir))
	}
	s.err = nil
	if _, err := c.Acquire(t.Context(), digestOf(z)); err != nil {
		t.Fatal(err)
	}
}

func TestIncompleteCodeIsDoneAgain(t *testing.T) {
	z := makeZip(t, file{name: "a", content: "x"})
	s := serve(z)
	for name, spoil := range map[string]func(dir string){
		"no mark": func(dir string) { _ = os.Remove(filepath.Join(dir, digestOf(z)[7:], markName)) },
		"bad mark": func(dir string) {
			_ = os.WriteFile(filepath.Join(dir, digestOf(z)[7:], markName), []byte("boot"), 0o600)
		},
		"another boot": func(dir string) {
			_ = os.WriteFile(filepath.Join(dir, digestOf(z)[7:], markName), []byte("b 1"), 0o600)
		},
		"temporary": func(dir string) { _ = os.Rename(filepath.Join(dir, digestOf(z)[7:]), filepath.Join(dir, "tmp-1")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := openCache(t, dir, s, 0).Acquire(t.Context(), digestOf(z)); err != nil {
				t.Fatal(err)
			}
			spoil(dir)
			before := s.fetched.Load()
			c := openCache(t, dir, s, 0)
			if n := entries(t, dir); n != 0 || c.Bytes() != 0 {
				t.Fatalf("%d directories, %d bytes kept", n, c.Bytes())
			}
			if _, err := c.Acquire(t.Context(), digestOf(z)); err != nil || s.fetched.Load() != before+1 {
				t.Fatalf("%v, fetched %d times", err, s.fetched.Load()-before)
			}
		})
	}
}

// Whatever is acquired and released in whatever order: code in use is there, the rest is within the budget.
func TestEviction(t *testing.T) {
	var packages [][]byte
	for i := range 6 {
		packages = append(packages, makeZip(t, file{name: "a", content: strings.Repeat("x", 100+i)}))
	}
	s := serve(packages...)
	const budget = 250
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		c := openCache(t, dir, s, budget)
		var held []*Ref
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(rt, "release") {
				i := rapid.IntRange(0, len(held)-1).Draw(rt, "which")
				held[i].Release()
				held = append(held[:i], held[i+1:]...)
			} else {
				ref, err := c.Acquire(t.Context(), digestOf(rapid.SampledFrom(packages).Draw(rt, "package")))
				if err != nil {
					rt.Fatal(err)
				}
				held = append(held, ref)
			}
			inUse := map[string]bool{}
			for _, ref := range held {
				inUse[ref.Dir] = true
				if _, err := os.Stat(filepath.Join(ref.Dir, "a")); err != nil {
					rt.Fatalf("evicted in use: %v", err)
				}
			}
			if c.Bytes() > max(budget, int64(len(inUse))*106) {
				rt.Fatalf("%d bytes with %d in use", c.Bytes(), len(inUse))
			}
		}
		if n := entries(t, dir); n != len(c.entries) {
			rt.Fatalf("%d directories for %d packages", n, len(c.entries))
		}
	})
}

func FuzzCheckZip(f *testing.F) {
	for _, z := range badZips(f) {
		if len(z) < 10_000 {
			f.Add(z)
		}
	}
	f.Add(makeZip(f, file{name: "a/b", content: "x"}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, z []byte) {
		n, bad := CheckZip(bytes.NewReader(z), int64(len(z)))
		c := openCache(t, filepath.Join(dir, "c"), serve(z), 1)
		ref, err := c.Acquire(t.Context(), digestOf(z))
		if (bad == nil) != (err == nil) || n > MaxUnpacked {
			t.Fatalf("check: %d, %v; unpack: %v", n, bad, err)
		}
		if err == nil {
			ref.Release()
		}
	})
}
