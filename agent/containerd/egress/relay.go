package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// answerTimeout is how long a resolver of the host may take before the next one is asked.
	answerTimeout = 2500 * time.Millisecond
	// streamTimeout bounds a connection by TCP.
	streamTimeout = 10 * time.Second
	// maxAsking and maxAskingEach bound the questions under way, of all sandboxes and of one.
	maxAsking, maxAskingEach = 1024, 64
	// maxMessage is the size of a DNS message by UDP, in bytes; headerSize that of its header, which begins with an id.
	maxMessage, headerSize = 65535, 12
	// portAttempts is how often a port is looked for that is free for both protocols.
	portAttempts = 20
)

// relay carries DNS questions of sandboxes to the resolvers of the host, which they may not reach themselves, and the
// answers back. It doesn't look into them.
type relay struct {
	port      uint16
	packets   []*net.UDPConn
	listeners []*net.TCPListener
	resolvers *resolvers
	asking    quota
}

// listen takes one port of the gateways' addresses, the second of which may be invalid.
func listen(gateways ...netip.Addr) (*relay, error) {
	var err error
	for range portAttempts {
		r := &relay{resolvers: &resolvers{path: "/etc/resolv.conf"}, asking: quota{all: maxAsking, each: maxAskingEach, used: map[netip.Addr]int{}}}
		if err = r.bind(gateways); err == nil {
			return r, nil
		}
		err = errors.Join(err, r.close())
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, fmt.Errorf("listen for DNS questions of sandboxes: %w", err)
}

func (r *relay) bind(gateways []netip.Addr) error {
	// The IPv6 address is no interface's.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(cerr, err)
	}}
	for _, g := range gateways {
		if !g.IsValid() {
			continue
		}
		l, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(g, r.port).String())
		if err != nil {
			return err
		}
		r.listeners = append(r.listeners, l.(*net.TCPListener)) // what "tcp" makes
		at, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			return err
		}
		r.port = at.Port()
		p, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return err
		}
		r.packets = append(r.packets, p.(*net.UDPConn)) // what "udp" makes
	}
	return nil
}

func (r *relay) close() error {
	var errs []error
	for _, p := range r.packets {
		errs = append(errs, p.Close())
	}
	for _, l := range r.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// interrupt makes everybody who waits for questions look at ctx.
func (r *relay) interrupt() {
	for _, p := range r.packets {
		_ = p.SetReadDeadline(past()) // it may be closed
	}
	for _, l := range r.listeners {
		_ = l.SetDeadline(past()) // it may be closed
	}
}

func past() time.Time { return time.Unix(1, 0) }

// run serves until ctx ends, and ends when the last question has been dealt with.
func (r *relay) run(ctx context.Context, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, r.interrupt)()
	var questions sync.WaitGroup
	defer questions.Wait()
	for _, p := range r.packets {
		g.Go(func() error { return r.servePackets(ctx, p, &questions, log) })
	}
	for _, l := range r.listeners {
		g.Go(func() error { return r.serveStreams(ctx, l, &questions, log) })
	}
	return g.Wait()
}

func (r *relay) servePackets(ctx context.Context, p *net.UDPConn, questions *sync.WaitGroup, log *slog.Logger) error {
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := p.ReadFrom(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read DNS questions: %w", err)
		}
		source := addressOf(from)
		if n < headerSize || !r.asking.take(source) {
			continue // it is asked again
		}
		question := append([]byte(nil), buffer[:n]...)
		questions.Go(func() {
			defer r.asking.give(source)
			answer, err := r.ask(ctx, question)
			if err == nil {
				_, err = p.WriteTo(answer, from)
			}
			if err != nil && ctx.Err() == nil {
				log.Debug("a DNS question was not answered", "error", err)
			}
		})
	}
}

// ask asks the host's resolvers one after the other.
func (r *relay) ask(ctx context.Context, question []byte) ([]byte, error) {
	var errs []error
	for _, resolver := range r.resolvers.list() {
		answer, err := askOne(ctx, resolver, question)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func askOne(ctx context.Context, resolver string, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", resolver)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past()) })()
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= headerSize && answer[0] == question[0] && answer[1] == question[1] {
			return answer[:n], nil
		}
	}
}

func (r *relay) serveStreams(ctx context.Context, l *net.TCPListener, questions *sync.WaitGroup, log *slog.Logger) error {
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept DNS questions: %w", err)
		}
		source := addressOf(conn.RemoteAddr())
		if !r.asking.take(source) {
			_ = conn.Close() // refused
			continue
		}
		questions.Go(func() {
			defer r.asking.give(source)
			defer conn.Close()
			if err := r.carry(ctx, conn); err != nil && ctx.Err() == nil {
				log.Debug("a DNS connection failed", "error", err)
			}
		})
	}
}

// carry joins a connection with one to a resolver of the host.
func (r *relay) carry(ctx context.Context, inner net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	outer, err := r.dial(ctx)
	if err != nil {
		return err
	}
	defer outer.Close()
	defer context.AfterFunc(ctx, func() {
		_ = inner.SetDeadline(past())
		_ = outer.SetDeadline(past())
	})()
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() {
		_, _ = io.Copy(inner, outer)
		cancel() // the resolver has said all
	})
	if _, err := io.Copy(outer, inner); err != nil {
		return err
	}
	if half, ok := outer.(*net.TCPConn); ok {
		return half.CloseWrite()
	}
	return nil
}

func (r *relay) dial(ctx context.Context) (net.Conn, error) {
	var errs []error
	for _, resolver := range r.resolvers.list() {
		attempt, cancel := context.WithTimeout(ctx, answerTimeout)
		conn, err := (&net.Dialer{}).DialContext(attempt, "tcp", resolver)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func addressOf(a net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(a.String()) // of an IP socket
	return at.Addr()
}

// quota bounds what goes on at a time, so that no sandbox keeps others from being served.
type quota struct {
	all, each int
	mu        sync.Mutex
	total     int
	used      map[netip.Addr]int
}

func (q *quota) take(source netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total == q.all || q.used[source] == q.each {
		return false
	}
	q.total++
	q.used[source]++
	return true
}

func (q *quota) give(source netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.used[source]--; q.used[source] == 0 {
		delete(q.used, source)
	}
}

// resolvers are those of the host, as its file has them now.
type resolvers struct {
	path string
	mu   sync.Mutex
	read time.Time // the file's time when it was read
	all  []string  // host:port
}

func (r *resolvers) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st, err := os.Stat(r.path); err == nil && !st.ModTime().Equal(r.read) {
		if text, err := os.ReadFile(r.path); err == nil {
			r.read, r.all = st.ModTime(), nameservers(string(text))
		}
	}
	if len(r.all) == 0 {
		return []string{"127.0.0.1:53"} // as resolv.conf(5) has it
	}
	return r.all
}
