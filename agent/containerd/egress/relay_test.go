package egress

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// loopback is the address at which the relay listens in these tests, and 127.0.0.1 that of the resolver.
func loopback() netip.Addr { return netip.MustParseAddr("127.0.0.2") }

func TestNameservers(t *testing.T) {
	text := "# no\nsearch example.com\nnameserver 10.0.0.53\nnameserver\t2001:db8::53 # yes\nnameserver fe80::1%eth0\nnameserver x\noptions edns0\n"
	want := []string{"10.0.0.53:53", "[2001:db8::53]:53", "[fe80::1%eth0]:53"}
	if got := nameservers(text); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestResolversFollowTheFile(t *testing.T) {
	r := &resolvers{path: filepath.Join(t.TempDir(), "resolv.conf")}
	if got := r.list(); !slices.Equal(got, []string{"127.0.0.1:53"}) {
		t.Errorf("without a file: %v", got)
	}
	for i, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		if err := os.WriteFile(r.path, []byte("nameserver "+ip+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(r.path, time.Time{}, time.Unix(int64(i+1), 0)); err != nil {
			t.Fatal(err)
		}
		if got := r.list(); !slices.Equal(got, []string{ip + ":53"}) {
			t.Errorf("%v, want %s", got, ip)
		}
	}
}

// relayTo runs a relay whose resolvers are all.
func relayTo(t *testing.T, all ...string) *relay {
	t.Helper()
	r, err := listen(loopback())
	if err != nil {
		t.Fatal(err)
	}
	r.resolvers = &resolvers{path: filepath.Join(t.TempDir(), "none"), all: all}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- r.run(ctx, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := r.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

func message(id byte, text string) []byte { return append(append(make([]byte, 1), id), text...) }

func ask(t *testing.T, r *relay, question []byte) string {
	t.Helper()
	conn, err := net.Dial("udp", netip.AddrPortFrom(loopback(), r.port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(question); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[2:n])
}

// resolverOf answers each question, by UDP, with an answer to another one and then the right one.
func resolverOf(t *testing.T) string {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(message(b[1]+1, "of another question"), from)
			_, _ = p.WriteTo(append(slices.Clone(b[:n]), " answered"...), from)
		}
	}()
	return p.LocalAddr().String()
}

func TestRelayAnswersByTheRightResponse(t *testing.T) {
	r := relayTo(t, resolverOf(t))
	if got := ask(t, r, message(7, "the question")); got != "the question answered" {
		t.Errorf("answered %q", got)
	}
}

func TestRelayAsksTheNextResolver(t *testing.T) {
	// Nothing listens at the first: the kernel says so at once.
	r := relayTo(t, "127.0.0.1:1", resolverOf(t))
	if got := ask(t, r, message(7, "the question")); got != "the question answered" {
		t.Errorf("answered %q", got)
	}
}

func TestRelayIgnoresWhatIsNoQuestion(t *testing.T) {
	r := relayTo(t, resolverOf(t))
	conn, err := net.Dial("udp", netip.AddrPortFrom(loopback(), r.port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("short")); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, r, message(7, "the question")); got != "the question answered" {
		t.Errorf("answered %q after it", got)
	}
}

func TestRelayCarriesStreams(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		_, _ = conn.Write(append(b, " answered"...))
	}()
	r := relayTo(t, "127.0.0.1:1", l.Addr().String())
	conn, err := net.Dial("tcp", netip.AddrPortFrom(loopback(), r.port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "the question"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "the question answered" {
		t.Errorf("answered %q: %v", b, err)
	}
}

func TestQuota(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	q := quota{all: 3, each: 2, used: map[netip.Addr]int{}}
	var got []string
	for _, source := range []netip.Addr{a, a, a, b, c} {
		got = append(got, map[bool]string{true: "yes", false: "no"}[q.take(source)])
	}
	if text := strings.Join(got, " "); text != "yes yes no yes no" {
		t.Errorf("%s: one may have two, all three", text)
	}
	for _, source := range []netip.Addr{a, a, b} {
		q.give(source)
	}
	if q.total != 0 || len(q.used) != 0 {
		t.Errorf("%d are left, %v", q.total, q.used)
	}
}
