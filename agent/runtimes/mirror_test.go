package runtimes

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/singleflight"
)

// testMirror is a mirror of an archive that a test serves.
func testMirror(t *testing.T, h http.HandlerFunc) (m *mirror, url string) {
	t.Helper()
	upstream := httptest.NewServer(h)
	t.Cleanup(upstream.Close)
	m = newMirror(archive{Main: upstream.URL + "/d"}, aptSettings{HTTPProxy: "DIRECT"}, t.TempDir(), &singleflight.Group{}, slog.New(slog.DiscardHandler))
	url, stop, err := m.serve(t.Context())
	must(t, err)
	t.Cleanup(stop)
	return m, url
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // of this test
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(body)
}

func TestMirrorKeepsWhatNeverChanges(t *testing.T) {
	var calls atomic.Int64
	m, url := testMirror(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		_, _ = io.WriteString(w, r.URL.Path)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			code, body := get(t, url+"/debian/pool/main/l/lib+x/x_1%3a2.deb")
			if code != http.StatusOK || body != "/d/pool/main/l/lib+x/x_1:2.deb" {
				t.Errorf("got %d %s", code, body)
			}
		})
	}
	wg.Wait()
	wantEqual(t, calls.Load(), int64(1))
	for range 2 {
		get(t, url+"/debian/dists/bookworm/InRelease")
	}
	wantEqual(t, calls.Load(), int64(3))
	wantEqual(t, m.lastError(), nil)
}

func TestMirrorErrors(t *testing.T) {
	m, url := testMirror(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "absent"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, "short"):
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "less")
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	code, _ := get(t, url+"/debian/pool/absent")
	wantEqual(t, code, http.StatusNotFound)
	wantEqual(t, m.lastError(), nil)
	code, _ = get(t, url+"/debian/pool/short")
	wantEqual(t, code, http.StatusBadGateway)
	if !errors.Is(m.lastError(), io.ErrUnexpectedEOF) {
		t.Errorf("got %v", m.lastError())
	}
	code, _ = get(t, url+"/debian/pool/busy")
	wantEqual(t, code, http.StatusServiceUnavailable)
	wantContains(t, m.lastError().Error(), "/d/pool/busy: 503")
	for _, path := range []string{"/security/pool/x", "/other/x", "/debian/../etc/passwd"} {
		code, _ = get(t, url+path)
		wantEqual(t, code, http.StatusNotFound)
	}
	left, err := os.ReadDir(m.dir)
	must(t, err)
	wantEqual(t, len(left), 0)
}

func TestCanonicalTreeSurvivesStorage(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.MkdirAll(filepath.Join(from, "x/y"), 0o755))
	must(t, os.WriteFile(filepath.Join(from, "x/file"), []byte("text"), 0o600))
	must(t, os.WriteFile(filepath.Join(from, "x", strings.Repeat("n", 200)), []byte("ü"), 0o755))
	must(t, os.Symlink("/nowhere", filepath.Join(from, "link")))
	must(t, os.Chmod(filepath.Join(from, "x/y"), os.ModeSticky|0o777))
	must(t, os.Chmod(filepath.Join(from, "x/file"), os.ModeSetuid|0o711))
	want, size, err := treeDigest(from)
	must(t, err)
	wantEqual(t, size, int64(6))
	must(t, saveTree(filepath.Join(dir, "t.zst"), from))
	must(t, os.Mkdir(to, 0o755))
	must(t, loadTree(filepath.Join(dir, "t.zst"), to))
	got, _, err := treeDigest(to)
	must(t, err)
	wantEqual(t, got, want)
	info, err := os.Stat(filepath.Join(to, "x/file"))
	must(t, err)
	wantEqual(t, info.Mode(), os.FileMode(0o755))
	must(t, os.WriteFile(filepath.Join(to, "x/file"), []byte("tex!"), 0o755))
	if got, _, err = treeDigest(to); err != nil || got == want {
		t.Errorf("a changed file has the same digest %s, %v", got, err)
	}
}

func TestDiskFull(t *testing.T) {
	for _, text := range []string{"mmdebstrap: exit status 25:\nE: tar: write error: No space left on device"} {
		wantEqual(t, isDiskFull(errors.New(text)), true)
	}
	wantEqual(t, isDiskFull(errors.New("other")), false)
}

func TestMergeDir(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{"bin/sh": "sh", "usr/bin/awk": "awk", "lib/x/a.so": "a", "usr/lib/x/b.so": "b", "bin/target": "t"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
	}
	must(t, os.Symlink("/bin/target", filepath.Join(root, "usr/bin/target")))
	must(t, finisher{root: root}.mergeUsr(t.Context()))
	for path, text := range map[string]string{"usr/bin/sh": "sh", "bin/awk": "awk", "lib/x/a.so": "a", "lib/x/b.so": "b", "usr/bin/target": "t"} {
		b, err := os.ReadFile(filepath.Join(root, path))
		must(t, err)
		wantEqual(t, string(b), text)
	}
	link, err := os.Readlink(filepath.Join(root, "lib"))
	must(t, err)
	wantEqual(t, link, "usr/lib")
}
