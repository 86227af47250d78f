package runtimes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// mirror is a caching copy of the archive on loopback, for the time of a build: builds share what they fetch, and
// later ones find it on disk. It keeps what never changes under its name: packages, and indices by hash. apt
// checks signatures and hashes of all that comes from it, as with any mirror.
type mirror struct {
	routes map[string]string // first segment of the path -> URL
	dir    string
	client *http.Client
	log    *slog.Logger
	flight *singleflight.Group
	// received is told how many bytes of packages arrived.
	received func(n int64)

	mu  sync.Mutex
	err error
}

// newMirror returns a mirror that keeps files in dir. Several may share dir and flight.
func newMirror(a archive, s aptSettings, dir string, flight *singleflight.Group, log *slog.Logger) *mirror {
	transport := &http.Transport{
		Proxy:                 proxyFunc(s),
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		MaxIdleConnsPerHost:   4,
	}
	routes := map[string]string{"debian": a.Main}
	if a.Security != "" {
		routes["security"] = a.Security
	}
	return &mirror{
		routes: routes, dir: dir, flight: flight, log: log,
		client: &http.Client{Transport: transport}, received: func(int64) {},
	}
}

// proxyFunc follows apt's own settings, else the environment.
func proxyFunc(s aptSettings) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		set := s.HTTPProxy
		if r.URL.Scheme == "https" && s.HTTPSProxy != "" {
			set = s.HTTPSProxy
		}
		switch set {
		case "":
			return http.ProxyFromEnvironment(r)
		case "DIRECT":
			return nil, nil
		}
		return url.Parse(set)
	}
}

// serve listens on loopback until stop is called. base is the URL of the listener.
func (m *mirror) serve(ctx context.Context) (base string, stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("serve packages: %w", err)
	}
	srv := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			m.fail(err)
		}
	}()
	stop = func() {
		_ = srv.Close()
		<-done
		m.client.CloseIdleConnections()
	}
	return "http://" + l.Addr().String(), stop, nil
}

// lastError is the last failure to fetch something, nil if there was none.
func (m *mirror) lastError() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *mirror) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean(r.URL.Path), "/"), "/")
	base, ok := m.routes[route]
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	source := base + "/" + (&url.URL{Path: rest}).EscapedPath()
	var err error
	if isImmutable(rest) {
		err = m.serveKept(r.Context(), w, source)
	} else {
		err = m.pass(r.Context(), w, source)
	}
	if err != nil && r.Context().Err() == nil {
		m.log.Warn("fetching from the Debian mirror failed", "url", source, "error", err)
	}
}

// isImmutable tells whether the archive never changes what is at a path.
func isImmutable(p string) bool {
	return strings.HasPrefix(p, "pool/") || strings.Contains(p, "/by-hash/")
}

// statusError is an answer of the archive other than 200.
type statusError struct {
	url    string
	status int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: %d %s", e.url, e.status, http.StatusText(e.status))
}

func (m *mirror) fetch(ctx context.Context, source string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		m.fail(err)
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		err := &statusError{url: source, status: resp.StatusCode}
		if resp.StatusCode != http.StatusNotFound { // apt asks for files that an archive needn't have
			m.fail(err)
		}
		return nil, err
	}
	return resp, nil
}

// refuse answers a request whose source failed.
func refuse(w http.ResponseWriter, err error) {
	if s, ok := errors.AsType[*statusError](err); ok {
		http.Error(w, err.Error(), s.status)
		return
	}
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// pass answers with what the source says now.
func (m *mirror) pass(ctx context.Context, w http.ResponseWriter, source string) error {
	resp, err := m.fetch(ctx, source)
	if err != nil {
		refuse(w, err)
		return err
	}
	defer resp.Body.Close()
	for _, name := range []string{"Content-Length", "Content-Type", "Last-Modified"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

// serveKept answers from the disk, after fetching what is not there yet.
func (m *mirror) serveKept(ctx context.Context, w http.ResponseWriter, source string) error {
	file := m.file(source)
	if _, err := os.Stat(file); err != nil {
		// The first of several askers fetches for all; its own end must not be theirs.
		_, err, _ := m.flight.Do(file, func() (any, error) { return nil, m.keep(context.WithoutCancel(ctx), source, file) })
		if err != nil {
			refuse(w, err)
			return err
		}
	}
	f, err := os.Open(file)
	if err != nil {
		refuse(w, err)
		return err
	}
	defer f.Close()
	now := time.Now()
	_ = os.Chtimes(file, now, now) // says to Prune that it is in use
	info, err := f.Stat()
	if err != nil {
		refuse(w, err)
		return err
	}
	w.Header().Set("Content-Length", fmt.Sprint(info.Size()))
	n, err := io.Copy(w, f)
	m.received(n)
	return err
}

func (m *mirror) file(source string) string {
	sum := sha256.Sum256([]byte(source))
	return filepath.Join(m.dir, hex.EncodeToString(sum[:8])+"-"+path.Base(source))
}

// keep fetches source into file, which appears when it is whole.
func (m *mirror) keep(ctx context.Context, source, file string) error {
	resp, err := m.fetch(ctx, source)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.CreateTemp(m.dir, tmpPrefix+"*")
	if err != nil {
		m.fail(err)
		return err
	}
	_, err = io.Copy(f, resp.Body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		m.fail(err)
	}
	return err
}
