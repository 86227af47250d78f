package agent

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/proto/netio"
)

const (
	frameHeader = 5
	// farewell is how long a bootstrap may take to read that it is to shut down.
	farewell = 100 * time.Millisecond
	// Up to this size an event is copied behind its header, which is cheaper than a vector of two.
	copyLimit = 16 << 10
	// Larger events may not fit the socket's buffer: sending them needs a deadline.
	sendLimit = 64 << 10
	readSize  = 4 << 10
)

var errProtocol = errors.New("the runtime broke the frame protocol")

// exitError tells that the function's process has ended while process 1 has not yet.
type exitError struct{ frame.Exit }

func (e *exitError) Error() string { return fmt.Sprintf("the function ended with status %d", e.Status) }

func readExit(body []byte) error {
	e := &exitError{}
	if err := json.Unmarshal(body, &e.Exit); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	return e
}

// link is the connection with a bootstrap. One goroutine uses it at a time; close may come from any.
type link struct {
	conn    *net.UnixConn
	socket  net.Conn // the same, for small things
	raw     syscall.RawConn
	in      *bufio.Reader
	out     []byte
	meta    []byte
	polled  error
	look    func(fd uintptr)
	bounded bool // a write deadline is set
}

// newLink reads the bootstrap's Hello, until limit.
func newLink(conn *net.UnixConn, limit time.Time) (*link, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	socket := netio.Wrap(conn)
	l := &link{conn: conn, socket: socket, raw: raw, in: bufio.NewReaderSize(socket, readSize)}
	l.look = l.pollOnce
	if err := conn.SetReadDeadline(limit); err != nil {
		return nil, err
	}
	t, body, err := frame.Read(l.in)
	if err != nil {
		return nil, err
	}
	if t != frame.TypeHello || len(body) == 0 {
		return nil, fmt.Errorf("%w: first frame is of type %d", errProtocol, t)
	}
	return l, nil
}

func (l *link) close() { _ = l.conn.Close() }

// shutdown asks the bootstrap to end, and ends whoever waits for an answer.
func (l *link) shutdown(reason string) {
	body, _ := json.Marshal(frame.Shutdown{Reason: reason}) // a plain struct
	_ = l.conn.SetWriteDeadline(time.Now().Add(farewell))
	_, _ = l.conn.Write(frame.Append(nil, frame.TypeShutdown, body)) // it is killed in a moment in any case
	_ = l.conn.CloseRead()
}

// load sends a Load frame and waits for its answer: the body of Ready or InitError, or an exitError.
func (l *link) load(loadFrame []byte, limit time.Time) (ready bool, body []byte, err error) {
	if err := l.conn.SetDeadline(limit); err != nil {
		return false, nil, err
	}
	if _, err := l.conn.Write(loadFrame); err != nil {
		return false, nil, err
	}
	t, body, err := frame.Read(l.in)
	if err != nil {
		return false, nil, err
	}
	switch t {
	case frame.TypeReady, frame.TypeInitError:
		return t == frame.TypeReady, body, l.conn.SetDeadline(time.Time{})
	case frame.TypeExit:
		return false, nil, readExit(body)
	}
	return false, nil, fmt.Errorf("%w: Load was answered by type %d", errProtocol, t)
}

// quiet tells whether the bootstrap is there and has sent nothing unasked: then what is read next answers what is sent next.
func (l *link) quiet() error {
	if l.in.Buffered() > 0 {
		return errProtocol
	}
	if err := l.raw.Control(l.look); err != nil {
		return err
	}
	return l.polled
}

// spin waits for an answer for a moment without sleeping: waking up costs more than that moment, in virtual machines ten
// times as much. It returns when there is something to read, or at the limit.
func (l *link) spin(limit time.Duration) {
	for start := time.Now(); time.Since(start) < limit; runtime.Gosched() {
		if l.raw.Control(l.look) != nil || l.polled != nil {
			return
		}
	}
}

func (l *link) pollOnce(fd uintptr) {
	there, err := netio.Readable(fd)
	l.polled = err
	if there {
		l.polled = errProtocol // something to read, or hung up
	}
}

// send writes one Invoke frame, with one system call if the event fits the socket's buffer. meta is l.meta.
func (l *link) send(event []byte, limit time.Time) error {
	if len(event) > sendLimit || l.bounded {
		l.bounded = len(event) > sendLimit
		if !l.bounded {
			limit = time.Time{}
		}
		if err := l.conn.SetWriteDeadline(limit); err != nil {
			return err
		}
	}
	l.out = frame.AppendInvoke(l.out[:0], l.meta, len(event))
	if len(event) <= copyLimit {
		l.out = append(l.out, event...)
		_, err := l.socket.Write(l.out)
		return err
	}
	parts := net.Buffers{l.out, event}
	_, err := parts.WriteTo(l.conn)
	return err
}

// header reads a frame's type and the size of its body.
func (l *link) header() (frame.Type, int64, error) {
	h, err := l.in.Peek(frameHeader)
	if err != nil {
		return 0, 0, err
	}
	n := int64(binary.BigEndian.Uint32(h)) - 1
	t := frame.Type(h[4])
	if n < 0 {
		return 0, 0, errProtocol
	}
	_, err = l.in.Discard(frameHeader)
	return t, n, err
}

// body reads n bytes into memory of their own.
func (l *link) body(n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return nil, err
	}
	return b, nil
}

func (l *link) discard(n int64) error {
	_, err := io.CopyN(io.Discard, l.in, n)
	return err
}
