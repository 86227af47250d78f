// Package netio makes connections that read and write by system calls of which the Go scheduler isn't told.
//
// Around each ordinary system call a goroutine gives up its processor, and where CPUs are busy another thread takes it
// meanwhile: threads then wake up and hand processors to each other, which costs more than the call. Reading from and writing
// to a socket that doesn't block takes microseconds, so there is nothing to be gained by it.
//
// What belongs here: connections and listeners. What does not: what is said over them (lane, gRPC, HTTP).
package netio

import (
	"io"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// largest is how much one system call may copy, in bytes: more takes long enough to give up the processor.
const largest = 64 << 10

// Conn is a connection; deadlines and everything but reading and writing are those of the one below.
type Conn struct {
	net.Conn
	raw syscall.RawConn
	in  transfer
	out transfer
}

// Wrap wraps a connection of the kernel's, such as of TCP or a unix socket. Any other is returned as it is.
func Wrap(c net.Conn) net.Conn {
	below, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := below.SyscallConn()
	if err != nil {
		return c
	}
	w := &Conn{Conn: c, raw: raw}
	w.in.ready, w.out.ready = w.in.read, w.out.write
	return w
}

// SyscallConn implements syscall.Conn.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// Unwrap is the connection below.
func (c *Conn) Unwrap() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	n, err := c.in.run(c.raw.Read, p[:min(len(p), largest)])
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 || len(p) > largest {
		return c.Conn.Write(p)
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.run(c.raw.Write, p)
}

// transfer is one direction of a connection; one at a time uses it.
type transfer struct {
	mu    sync.Mutex
	ready func(fd uintptr) bool
	p     []byte
	n     int
	err   error
}

func (t *transfer) run(on func(func(uintptr) bool) error, p []byte) (int, error) {
	t.p, t.n, t.err = p, 0, nil
	err := on(t.ready)
	t.p = nil
	if err == nil {
		err = t.err
	}
	return t.n, err
}

// read tells whether there was something to read, the end, or an error.
func (t *transfer) read(fd uintptr) bool {
	n, again, err := Read(fd, t.p)
	t.n, t.err = n, err
	return !again
}

// write tells whether all is written, or nothing more can be.
func (t *transfer) write(fd uintptr) bool {
	for t.n < len(t.p) {
		n, again, err := call(unix.SYS_WRITE, fd, t.p[t.n:])
		if again {
			return false
		}
		if t.err = err; err != nil {
			return true
		}
		t.n += n
	}
	return true
}

// Read reads from a descriptor that doesn't block into p, which isn't empty. again: there is nothing yet. 0 is the end.
func Read(fd uintptr, p []byte) (n int, again bool, err error) { return call(unix.SYS_READ, fd, p) }

// Readable tells whether there is something to read: bytes, the end, or an error.
func Readable(fd uintptr) (bool, error) {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN} // a descriptor
	for {
		//nolint:gosec // as in call
		n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&unix.Timespec{})), 0, 0, 0)
		switch errno {
		case 0:
			return n > 0, nil
		case unix.EINTR:
		default:
			return false, errno
		}
	}
}

// call reads into or writes from p, which isn't empty. again: it would have to wait.
func call(number, fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		//nolint:gosec // there is no other way to make a system call that the scheduler isn't told of
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
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

// Listener wraps what a listener accepts.
func Listener(l net.Listener) net.Listener { return &listener{l} }

type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c), nil
}
