package agent

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket reads and writes a connection by system calls that the Go scheduler isn't told of. They never block, so there is
// nothing to gain from giving the processor away meanwhile, and threads that hand it to each other cost more than the call.
// One goroutine reads and one writes at a time. Deadlines are those of the connection.
type socket struct {
	raw syscall.RawConn

	in      []byte
	inSize  int
	inErr   error
	read    func(fd uintptr) bool
	out     []byte
	outErr  error
	written func(fd uintptr) bool
}

func newSocket(conn *net.UnixConn) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{raw: raw}
	s.read, s.written = s.readOnce, s.writeOnce
	return s, nil
}

// Read implements io.Reader.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in = p
	err := s.raw.Read(s.read)
	s.in = nil
	switch {
	case err != nil:
		return 0, err
	case s.inErr != nil:
		return 0, s.inErr
	case s.inSize == 0:
		return 0, io.EOF
	}
	return s.inSize, nil
}

// readOnce tells whether there was something to read, or an error.
func (s *socket) readOnce(fd uintptr) bool {
	n, again, err := transfer(unix.SYS_READ, fd, s.in)
	s.inSize, s.inErr = n, err
	return !again
}

// Write implements io.Writer.
func (s *socket) Write(p []byte) (int, error) {
	s.out, s.outErr = p, nil
	err := s.raw.Write(s.written)
	n := len(p) - len(s.out)
	s.out = nil
	if err == nil {
		err = s.outErr
	}
	return n, err
}

// writeOnce tells whether all is written, or nothing more can be.
func (s *socket) writeOnce(fd uintptr) bool {
	for len(s.out) > 0 {
		n, again, err := transfer(unix.SYS_WRITE, fd, s.out)
		if again {
			return false
		}
		if s.outErr = err; err != nil {
			return true
		}
		s.out = s.out[n:]
	}
	return true
}

// transfer reads into or writes from p, which isn't empty. again: it would have to wait.
func transfer(call, fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		//nolint:gosec // there is no other way to make a system call that the scheduler isn't told of
		n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), false, nil // at most len(p)
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, errno
		}
	}
}
