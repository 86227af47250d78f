// Package blob keeps bytes by their SHA-256 digest on the local disk: deployment packages now, objects and large
// payloads later.
//
// What belongs here: durable writes, reads, and the collection of what nobody refers to. What does not: what the bytes
// mean, who may read them, and who refers to them (state knows).
//
// A blob is a file DIR/ab/cdef… named by its digest; DIR/tmp holds writes under way and is emptied by Open.
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	digestPrefix   = "sha256:"
	digestLength   = len(digestPrefix) + 2*sha256.Size
	defaultMinFree = 512 << 20
	// watermarkEvery is after how many written bytes free space is looked at again.
	watermarkEvery = 16 << 20
)

// Config says where the blobs are.
type Config struct {
	// Dir is made if it is missing. No other process may use it.
	Dir string
	// MinFree is the watermark in bytes: writes that would leave less free are refused with DISK_FULL. Default 512 MiB.
	MinFree int64
	// Now is the clock that blobs are stamped with; default time.Now.
	Now func() time.Time
	// Free answers how many bytes may still be written below a directory; default asks the file system.
	Free func(dir string) (int64, error)
}

// Store is a directory of blobs. Its methods may be called at once.
type Store struct {
	cfg Config
	// mu orders renames and touches against Collect's look-then-unlink.
	mu sync.Mutex
}

// Open makes the directory if needed and removes what a crash left of unfinished writes.
func Open(cfg Config) (*Store, error) {
	if cfg.MinFree == 0 {
		cfg.MinFree = defaultMinFree
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Free == nil {
		cfg.Free = free
	}
	s := &Store{cfg: cfg}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("remove unfinished blobs: %w", err)
	}
	if err := os.MkdirAll(s.tmp(), 0o700); err != nil {
		return nil, fmt.Errorf("make the blob directory: %w", err)
	}
	if err := syncDir(cfg.Dir); err != nil {
		return nil, err
	}
	return s, syncDir(filepath.Dir(cfg.Dir))
}

// Put stores what r gives and returns its digest ("sha256:" and 64 hexadecimal digits) and size in bytes once both are
// safe on disk. More than limit bytes are refused with PAYLOAD_TOO_LARGE, a disk below the watermark with DISK_FULL;
// an error of r is returned as it is. Nothing is left behind by a Put that fails. A blob that exists is as if new: Collect's grace starts again.
func (s *Store) Put(ctx context.Context, r io.Reader, limit int64) (digest string, size int64, err error) {
	return s.PutChecked(ctx, r, limit, nil)
}

// PutChecked is Put with a last word: check sees the whole content before anybody else can, and its error is returned instead of storing it.
func (s *Store) PutChecked(ctx context.Context, r io.Reader, limit int64, check func(content io.ReaderAt, size int64) error) (digest string, size int64, err error) {
	f, err := os.CreateTemp(s.tmp(), "put-")
	if err != nil {
		return "", 0, diskError("make a blob", err)
	}
	defer func() {
		err = errors.Join(err, closeOnce(f))
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	digest, size, err = s.fill(ctx, f, r, limit)
	if err != nil {
		return "", 0, err
	}
	if check != nil {
		if err := check(f, size); err != nil {
			return "", 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return "", 0, diskError("sync a blob", err)
	}
	return digest, size, s.publish(f.Name(), digest)
}

// closeOnce closes f; only its first error matters, as Sync came before.
func closeOnce(f *os.File) error {
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close a blob: %w", err)
	}
	return nil
}

func (s *Store) fill(ctx context.Context, f *os.File, r io.Reader, limit int64) (string, int64, error) {
	hash := sha256.New()
	var size int64
	for {
		if err := s.checkFree(); err != nil {
			return "", 0, err
		}
		in := io.LimitReader(&contextReader{ctx, r}, min(watermarkEvery, limit-size+1))
		out := &diskWriter{w: io.MultiWriter(f, hash)}
		n, err := io.Copy(out, in)
		size += n
		switch {
		case out.err != nil:
			return "", 0, diskError("write a blob", out.err)
		case err != nil:
			return "", 0, err
		case size > limit:
			return "", 0, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, "the content is larger than %d bytes", limit)
		case n < watermarkEvery:
			return digestPrefix + hex.EncodeToString(hash.Sum(nil)), size, nil
		}
	}
}

// publish gives a synced file its name; it replaces an equal one, so that a damaged blob is healed by storing it again.
func (s *Store) publish(tmp, digest string) error {
	final := s.path(digest)
	shard := filepath.Dir(final)
	if err := s.makeShard(shard); err != nil {
		return err
	}
	now := s.cfg.Now()
	if err := os.Chtimes(tmp, now, now); err != nil {
		return fmt.Errorf("stamp a blob: %w", err)
	}
	if err := s.rename(tmp, final); err != nil {
		return diskError("name a blob", err)
	}
	return syncDir(shard)
}

func (s *Store) rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return os.Rename(from, to)
}

func (s *Store) makeShard(shard string) error {
	err := os.Mkdir(shard, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return diskError("make a blob directory", err)
	}
	// Synced even if it exists: its maker may not have come to that yet.
	return syncDir(s.cfg.Dir)
}

// Open returns a blob for reading and its size in bytes, or CODE_NOT_FOUND.
func (s *Store) Open(digest string) (*os.File, int64, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, 0, err
	}
	f, err := os.Open(s.path(digest))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, notFound(digest)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob %s: %w", digest, err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("look at blob %s: %w", digest, err)
	}
	return f, info.Size(), nil
}

// OpenVerified is Open after a read of the whole content that proved it equal to its digest.
func (s *Store) OpenVerified(digest string) (*os.File, int64, error) {
	f, size, err := s.Open(digest)
	if err != nil {
		return nil, 0, err
	}
	if err := verify(f, digest); err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

func verify(f *os.File, digest string) error {
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return fmt.Errorf("read blob %s: %w", digest, err)
	}
	if got := digestPrefix + hex.EncodeToString(hash.Sum(nil)); got != digest {
		return fault.New(codes.DataLoss, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL, "blob %s is damaged: its content has the digest %s; store it again", digest, got)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind blob %s: %w", digest, err)
	}
	return nil
}

// Touch restarts Collect's grace for a blob that is about to be referred to. It answers CODE_NOT_FOUND if there is none.
func (s *Store) Touch(digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	err := os.Chtimes(s.path(digest), now, now)
	if errors.Is(err, os.ErrNotExist) {
		return notFound(digest)
	}
	if err != nil {
		return fmt.Errorf("touch blob %s: %w", digest, err)
	}
	return nil
}

// Delete removes a blob; one that isn't there is no error.
func (s *Store) Delete(digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.path(digest)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", digest, err)
	}
	return nil
}

func (s *Store) tmp() string { return filepath.Join(s.cfg.Dir, "tmp") }

// path expects a digest that CheckDigest accepts.
func (s *Store) path(digest string) string {
	digits := digest[len(digestPrefix):]
	return filepath.Join(s.cfg.Dir, digits[:2], digits[2:])
}

func (s *Store) checkFree() error {
	left, err := s.cfg.Free(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look at the free space of %s: %w", s.cfg.Dir, err)
	}
	if left < s.cfg.MinFree {
		return diskFull()
	}
	return nil
}

// CheckDigest tells whether digest has the form of one: "sha256:" and 64 lower-case hexadecimal digits.
func CheckDigest(digest string) error {
	if len(digest) == digestLength && strings.HasPrefix(digest, digestPrefix) && strings.Trim(digest[len(digestPrefix):], "0123456789abcdef") == "" {
		return nil
	}
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, `digest %.100q is not "sha256:" and 64 lower-case hexadecimal digits`, digest)
}

func notFound(digest string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "there is no package %s; upload it again", digest)
}

func diskFull() error {
	return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL, "the disk of this control-plane node is nearly full: writes are refused until there is room")
}

func diskError(what string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull()
	}
	return fmt.Errorf("%s: %w", what, err)
}

func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync a directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return diskError("sync "+dir, err)
	}
	return nil
}

// contextReader ends a copy when its caller has gone.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// diskWriter remembers that an error came from the disk, and not from the reader.
type diskWriter struct {
	w   io.Writer
	err error
}

func (d *diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil {
		d.err = err
	}
	return n, err
}
