package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Below 512 MiB or 2 % of its file system, whichever is more, a node refuses writes: Raft itself can still write then.
const (
	minFreeBytes   = 512 << 20
	minFreePercent = 2
)

// watermark knows whether there is room for writes.
type watermark struct {
	dir   string
	low   uint64
	free  func(dir string) (uint64, error)
	bytes atomic.Uint64
}

func newWatermark(cfg *Config) (*watermark, error) {
	w := &watermark{dir: cfg.Dir, low: cfg.MinFreeBytes, free: cfg.FreeBytes}
	if w.low == 0 {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(cfg.Dir, &fs); err != nil {
			return nil, fmt.Errorf("ask for the size of the file system of %s: %w", cfg.Dir, err)
		}
		w.low = max(minFreeBytes, fs.Blocks*uint64(fs.Bsize)/100*minFreePercent)
	}
	return w, w.check()
}

func (w *watermark) check() error {
	n, err := w.free(w.dir)
	if err != nil {
		return fmt.Errorf("ask for free space below %s: %w", w.dir, err)
	}
	w.bytes.Store(n)
	return nil
}

// refuse answers DISK_FULL below the watermark.
func (w *watermark) refuse() error {
	if free := w.bytes.Load(); free < w.low {
		return fault.New(codes.ResourceExhausted, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL,
			"writes are refused: %d MiB are free below %s, which is less than the watermark of %d MiB; free some space there", free>>20, w.dir, w.low>>20)
	}
	return nil
}

// watchDisk looks at the free space from time to time.
func (s *Store) watchDisk(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.DiskCheckInterval)
	defer tick.Stop()
	full := s.disk.refuse() != nil
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.disk.check(); err != nil {
			s.log.Warn("can't tell the free space", "error", err)
			continue
		}
		if now := s.disk.refuse() != nil; now != full {
			full = now
			s.log.Warn("free space crossed the watermark", "free_bytes", s.disk.bytes.Load(), "watermark_bytes", s.disk.low, "refusing_writes", full)
		}
	}
}

func freeBytes(dir string) (uint64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}
