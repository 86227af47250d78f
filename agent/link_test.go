package agent

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// linked is a link with the bootstrap's end of its connection.
func linked(t *testing.T) (*link, net.Conn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bootstrap, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bootstrap.Close() })
	if _, err := bootstrap.Write(frame.Append(nil, frame.TypeHello, []byte(`{"protocol":1}`))); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	got, err := newLink(conn, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(got.close)
	return got, bootstrap
}

func TestSpinEndsWithTheAnswerOrAtItsLimit(t *testing.T) {
	l, bootstrap := linked(t)
	l.spin(time.Millisecond)
	if l.polled != nil {
		t.Fatal("there was nothing to read")
	}
	if _, err := bootstrap.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	l.spin(time.Hour)
	if l.polled == nil {
		t.Error("spin did not see the answer")
	}
	bootstrap.Close()
	l.spin(time.Hour) // a process that hangs up ends it, too
}
