package blob_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/controlplane/blob"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const childEnv = "MAYFLY_BLOB_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// child stores one blob, then hangs in the middle of a second one until it is killed.
func child(dir string) {
	s, err := blob.Open(blob.Config{Dir: dir, MinFree: 1})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	digest, _, err := s.Put(context.Background(), strings.NewReader("acknowledged"), 100)
	fmt.Println(digest, err)
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
		fmt.Println("half")
	}()
	_, _, _ = s.Put(context.Background(), r, 100<<20)
}

func open(t *testing.T, cfg blob.Config) *blob.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "blobs")
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = 1
	}
	s, err := blob.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *blob.Store, content string) string {
	t.Helper()
	digest, size, err := s.Put(context.Background(), strings.NewReader(content), 1<<20)
	if err != nil || size != int64(len(content)) {
		t.Fatalf("Put: size %d, %v", size, err)
	}
	return digest
}

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPutThenOpenGivesTheSameBytes(t *testing.T) {
	s := open(t, blob.Config{})
	for _, content := range []string{"", "a", strings.Repeat("0123456789", 50_000)} {
		digest := put(t, s, content)
		if digest != digestOf(content) {
			t.Fatalf("digest %s, want %s", digest, digestOf(content))
		}
		f, size, err := s.OpenVerified(digest)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(got) != content || size != int64(len(content)) {
			t.Fatalf("read %d bytes of %d: %v", len(got), len(content), err)
		}
	}
}

func TestPutCrossesTheWatermarkInterval(t *testing.T) {
	s := open(t, blob.Config{})
	const n = 33 << 20
	digest, size, err := s.Put(context.Background(), io.LimitReader(zeros{}, n), n)
	if err != nil || size != n {
		t.Fatalf("size %d, %v", size, err)
	}
	f, _, err := s.OpenVerified(digest)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	// Exactly the interval: the copy ends on its border.
	if _, size, err := s.Put(context.Background(), io.LimitReader(zeros{}, 16<<20), n); err != nil || size != 16<<20 {
		t.Fatalf("size %d, %v", size, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRefusedPutsLeaveNothing(t *testing.T) {
	broken := errors.New("the reader broke")
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for name, test := range map[string]struct {
		ctx    context.Context
		free   int64
		r      io.Reader
		check  func(io.ReaderAt, int64) error
		reason mayflyv1.ErrorReason
		err    error
	}{
		"too large":      {r: strings.NewReader("12345678901"), reason: mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE},
		"disk full":      {r: strings.NewReader("x"), free: -1, reason: mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL},
		"broken reader":  {r: io.MultiReader(strings.NewReader("x"), failing{broken}), err: broken},
		"gone caller":    {ctx: gone, r: strings.NewReader("x"), err: context.Canceled},
		"failed check":   {r: strings.NewReader("x"), check: func(io.ReaderAt, int64) error { return broken }, err: broken},
		"check sees all": {r: strings.NewReader("0123456789"), check: seesAll, err: io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "blobs")
			s := open(t, blob.Config{Dir: dir, Free: func(string) (int64, error) { return 1 + test.free, nil }})
			ctx := test.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			_, _, err := s.PutChecked(ctx, test.r, 10, test.check)
			if test.err != nil && !errors.Is(err, test.err) || test.err == nil && !fault.Is(err, test.reason) {
				t.Fatalf("error %v", err)
			}
			if left := files(t, dir); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

func seesAll(content io.ReaderAt, size int64) error {
	got := make([]byte, size)
	if _, err := content.ReadAt(got, 0); err != nil || string(got) != "0123456789" {
		return fmt.Errorf("saw %q: %w", got, err)
	}
	return io.EOF
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestLimitIsInclusive(t *testing.T) {
	s := open(t, blob.Config{})
	if _, _, err := s.Put(context.Background(), strings.NewReader("1234567890"), 10); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatIsNoDigestAndWhatIsNotThere(t *testing.T) {
	s := open(t, blob.Config{})
	for _, digest := range []string{"", "sha256:", "../../etc/passwd", "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("../", 21) + "x", "md5:" + strings.Repeat("0", 67)} {
		if _, _, err := s.Open(digest); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT) {
			t.Errorf("Open(%q): %v", digest, err)
		}
	}
	if _, _, err := s.Open(digestOf("nothing")); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND) {
		t.Error(err)
	}
	if err := s.Touch(digestOf("nothing")); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND) {
		t.Error(err)
	}
	if err := s.Delete(digestOf("nothing")); err != nil {
		t.Error(err)
	}
}

func TestDamageIsFoundAndHealedByStoringAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	s := open(t, blob.Config{Dir: dir})
	digest := put(t, s, "content")
	if err := os.WriteFile(files(t, dir)[0], []byte("c0ntent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.OpenVerified(digest); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("error %v", err)
	}
	put(t, s, "content")
	f, _, err := s.OpenVerified(digest)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestConcurrentPutsOfOneDigest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	s := open(t, blob.Config{Dir: dir})
	content := strings.Repeat("same", 10_000)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if _, _, err := s.Put(context.Background(), strings.NewReader(content), 1<<20); err != nil {
				t.Error(err)
			}
			f, _, err := s.OpenVerified(digestOf(content))
			if err != nil {
				t.Error(err)
				return
			}
			f.Close()
		})
	}
	all.Wait()
	if left := files(t, dir); len(left) != 1 {
		t.Fatalf("files: %v", left)
	}
}

func TestCollectKeepsTheReferencedAndTheFresh(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := open(t, blob.Config{Now: func() time.Time { return now }})
	used, old, again, touched := put(t, s, "used"), put(t, s, "old"), put(t, s, "again"), put(t, s, "touched")
	now = now.Add(2 * time.Hour)
	fresh := put(t, s, "fresh")
	put(t, s, "again")
	var late string
	deleted, err := s.Collect(func(digest string) bool {
		// A caller decides for this one while it is being looked at.
		if digest == touched {
			if err := s.Touch(touched); err != nil {
				t.Error(err)
			}
			late = digest
		}
		return digest == used
	}, time.Hour)
	if err != nil || deleted != 1 || late != touched {
		t.Fatalf("deleted %d, late %q, %v", deleted, late, err)
	}
	left := map[string]int64{}
	if err := s.Walk(func(b blob.Info) error { left[b.Digest] = b.Size; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{used, again, touched, fresh} {
		if _, ok := left[digest]; !ok {
			t.Errorf("%s is gone", digest)
		}
	}
	if _, ok := left[old]; ok || len(left) != 4 {
		t.Errorf("left: %v", left)
	}
}

func TestWalkEndsWithItsVisitorsError(t *testing.T) {
	s := open(t, blob.Config{})
	put(t, s, "a")
	put(t, s, "b")
	stop := errors.New("stop")
	seen := 0
	if err := s.Walk(func(blob.Info) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Fatalf("seen %d, %v", seen, err)
	}
}

func TestKilledInMidPut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	acknowledged := lines.Text()
	lines.Scan()
	half := lines.Text()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if acknowledged != digestOf("acknowledged")+" <nil>" || half != "half" {
		t.Fatalf("child said %q, %q", acknowledged, half)
	}
	if left := files(t, dir); len(left) != 2 {
		t.Fatalf("want the blob and the unfinished one before recovery: %v", left)
	}
	s := open(t, blob.Config{Dir: dir})
	if left := files(t, dir); len(left) != 1 {
		t.Fatalf("left after recovery: %v", left)
	}
	f, _, err := s.OpenVerified(digestOf("acknowledged"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
