package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const lockPoll = 100 * time.Millisecond

// lock takes the exclusive lock of a file, across processes, and waits for it until ctx ends. The file stays.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another build (%s): %w", path, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// tryLock is lock without waiting: unlock is nil if someone else has it.
func tryLock(path string) (unlock func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	unlock, err = lock(ctx, path)
	if errors.Is(err, context.Canceled) {
		return nil, nil
	}
	return unlock, err
}

// ErrGone is returned by Hold for an image that is being removed, or was.
var ErrGone = errors.New("the image is gone")

// Hold keeps Prune, of any process, from removing the image in a directory until release is called. It never waits.
func Hold(dir string) (release func(), err error) {
	return lockDir(dir, unix.LOCK_SH)
}

// lockDir locks a directory, or fails with ErrGone if it is locked in a way that excludes that, or isn't there.
func lockDir(dir string, how int) (unlock func(), err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("lock image: %w", err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		// It may have been removed, and even made anew, since it was opened.
		var locked, now os.FileInfo
		if locked, err = f.Stat(); err == nil {
			now, err = os.Stat(dir)
		}
		if err == nil && os.SameFile(locked, now) {
			return func() { _ = f.Close() }, nil
		}
	}
	_ = f.Close()
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	return nil, fmt.Errorf("lock image %s: %w", dir, err)
}
