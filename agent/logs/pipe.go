package logs

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/proto/netio"
)

// maxDrain is the most that one drain reads, in bytes: what a pipe holds, and more. What was written before the drain is in it.
const maxDrain = 1 << 20

// pipe reads a FIFO. Whoever holds the stream's lock may read: nothing that was read is ever on its way,
// so a read that finds the pipe empty proves that all lines are in.
type pipe struct {
	file    *os.File
	fd      int
	buffers *sync.Pool
	done    chan struct{}
}

// OpenPipe makes a FIFO at path, which anybody may write into, and takes what comes out of it until Close.
func (s *Stream) OpenPipe(path string) error {
	if err := unix.Mkfifo(path, 0o622); err != nil {
		return fmt.Errorf("make FIFO %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o622); err != nil { // the sandbox's user is not known here; its directory is private
		return err
	}
	// Read and write: the pipe never ends, whoever opens and closes it.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open FIFO %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	raw, err := file.SyscallConn()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	p := &pipe{file: file, fd: fd, buffers: &s.store.buffers, done: make(chan struct{})}
	s.mu.Lock()
	s.pipe = p
	s.mu.Unlock()
	go func() {
		defer close(p.done)
		_ = raw.Read(func(uintptr) bool { return s.poll(p) }) // returns when the file is closed
	}()
	return nil
}

// poll reads until the pipe is empty, and tells whether reading is over. The lock is free between two reads.
func (s *Stream) poll(p *pipe) bool {
	for {
		s.mu.Lock()
		if s.pipe != p {
			s.mu.Unlock()
			return true
		}
		n := s.readOnce()
		s.mu.Unlock()
		if n <= 0 {
			return false
		}
	}
}

// drain reads what the pipe holds; the lock is held.
func (s *Stream) drain() {
	for total := 0; s.pipe != nil && total < maxDrain; {
		n := s.readOnce()
		if n <= 0 {
			return
		}
		total += n
	}
}

func (s *Stream) readOnce() int {
	b := s.pipe.buffers.Get().(*[pipeBuffer]byte) // the pool's only type
	defer s.pipe.buffers.Put(b)
	n, again, err := netio.Read(uintptr(s.pipe.fd), b[:])
	if again || err != nil || n == 0 {
		return 0
	}
	s.take(b[:n])
	return n
}

// close ends the reader; the stream has let go of p.
func (p *pipe) close() {
	_ = p.file.Close()
	<-p.done
}
