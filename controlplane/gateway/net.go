package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
)

// isLoopback tells whether only this machine can reach an address.
func isLoopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	}
	return false
}

// peerIP is the address that r's connection came from; empty for a unix socket.
func peerIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	host, _, _ = strings.Cut(host, "%")
	return host
}

func peerIsLoopback(r *http.Request) bool {
	ip, err := netip.ParseAddr(peerIP(r))
	return err == nil && ip.Unmap().IsLoopback()
}

// localPort is the port that r came in by.
func localPort(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if _, port, err := net.SplitHostPort(a.String()); err == nil {
			return port
		}
	}
	return ""
}

// targetOf is path and query as the client sent them; net/http's parsing may have re-encoded the path.
func targetOf(r *http.Request) (path, query string) {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = r.URL
		}
		return u.EscapedPath(), u.RawQuery
	}
	path, query, _ = strings.Cut(target, "?")
	return path, query
}

// bufferPool holds buffers for request bodies. A buffer that grew large is left to the collector.
type bufferPool struct{ pool sync.Pool }

const maxPooled = 64 << 10

func (p *bufferPool) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 4<<10)
	return &b
}

func (p *bufferPool) put(b *[]byte) {
	if cap(*b) <= maxPooled {
		*b = (*b)[:0]
		p.pool.Put(b)
	}
}
