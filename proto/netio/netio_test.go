package netio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pairs makes connections of each kind, wrapped at both ends, to test.
func pairs(t *testing.T, test func(t *testing.T, a, b net.Conn)) {
	t.Helper()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			below, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			l := Listener(below)
			defer l.Close()
			dialled, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			a := Wrap(dialled)
			defer a.Close()
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for _, c := range []net.Conn{a, b} {
				if _, ok := c.(*Conn); !ok {
					t.Fatalf("%T is not wrapped", c)
				}
			}
			test(t, a, b)
		})
	}
}

func TestBytesArriveWhole(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		for _, size := range []int{1, 100, largest, largest + 1, 8 << 20} { // the last is more than buffers hold
			data := bytes.Repeat([]byte("mayfly "), size/7+1)[:size]
			var sending sync.WaitGroup
			sending.Go(func() {
				if n, err := a.Write(data); n != size || err != nil {
					t.Errorf("wrote %d of %d: %v", n, size, err)
				}
			})
			got := make([]byte, size)
			if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes: %v, equal %v", size, err, bytes.Equal(got, data))
			}
			sending.Wait()
		}
	})
}

// A slow reader holds up the writer in the middle of a write, and nothing is lost.
func TestSmallWritesWaitForASlowReader(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		const parts, size = 400, 60 << 10
		var sending sync.WaitGroup
		sending.Go(func() {
			for i := range parts {
				if n, err := a.Write(bytes.Repeat([]byte{byte(i)}, size)); n != size || err != nil {
					t.Errorf("wrote %d: %v", n, err)
				}
			}
		})
		got := make([]byte, size)
		for i := range parts {
			if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, size)) {
				t.Fatalf("part %d: %v", i, err)
			}
		}
		sending.Wait()
	})
}

func TestTheEndIsEOF(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		got, err := io.ReadAll(b)
		if err != nil || string(got) != "x" {
			t.Errorf("%q, %v", got, err)
		}
		if n, err := b.Read(nil); n != 0 || err != nil {
			t.Errorf("reading nothing: %d, %v", n, err)
		}
	})
}

func TestDeadlinesAndClosing(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		if err := a.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("late: %v", err)
		}
		if err := a.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil {
			_, err = a.Write(make([]byte, largest))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("nobody reads: %v", err)
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := io.Copy(io.Discard, b); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed while reading: %v", err)
			}
		})
		_ = b.Close()
		reading.Wait()
		if _, err := b.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	})
}

func TestAReaderThatHasGoneIsAnError(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		_ = b.Close()
		var err error
		for range 100 {
			if _, err = a.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
}

func TestReadable(t *testing.T) {
	pairs(t, func(t *testing.T, a, b net.Conn) {
		readable := func() (there bool) {
			raw, err := b.(*Conn).SyscallConn() // see pairs
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { there, err = Readable(fd) }); err != nil {
				t.Fatal(err)
			}
			return there
		}
		if readable() {
			t.Error("nothing was sent")
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); !readable(); time.Sleep(time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatal("what was sent can't be read")
			}
		}
	})
}

func TestOtherConnectionsAreLeftAlone(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Wrap(a) != a {
		t.Error("a pipe was wrapped")
	}
}
