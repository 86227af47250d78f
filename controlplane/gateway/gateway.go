// Package gateway is the HTTP front of a control-plane node: it decides who gets a request (route.go, docs/http.md),
// turns requests to function URLs into events in Lambda's payload format 2.0, and answers into responses.
//
// What belongs here: HTTP, its limits and time-outs, function URLs with their authentication and CORS, health and
// metrics. What does not: choosing a sandbox (router), access keys and signatures (auth), the AWS protocols (aws).
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/proto/netio"
)

// MaxPayload is the largest event and the largest buffered answer in bytes, as Lambda's.
const MaxPayload = 6291556

// MaxBody is the largest request body in bytes.
const MaxBody = 6 << 20

const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 60 * time.Second
	writeTimeout  = 60 * time.Second
	idleTimeout   = 120 * time.Second
	maxHeader     = 32 << 10
	drainLimit    = 64 << 20
	drainTimeout  = 10 * time.Second
)

// View is a snapshot of the state, as far as the gateway needs it.
type View interface {
	Namespace(name string) (*mayflyv1.Namespace, bool)
	Function(namespace, name string) (*mayflyv1.Function, bool)
	Settings() *mayflyv1.Settings
}

// Request is an invocation on its way to the router.
type Request struct {
	Namespace string
	Function  string
	// Qualifier is a version, an alias or empty for $LATEST.
	Qualifier string
	// Payload belongs to the invoker from here on.
	Payload   []byte
	TraceID   string
	RequestID string
	// Stream asks for the answer in chunks.
	Stream bool
}

// Invoker runs functions; the router is one. emit gets the chunks of a streamed answer and is nil otherwise.
// It is not called once Invoke has returned. Errors are faults; a handler's own failure is a response with FunctionError.
type Invoker interface {
	Invoke(ctx context.Context, r *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error)
}

// Principal is the owner of a valid access key.
type Principal struct {
	KeyID string
	// Namespace is "*" for a key of all namespaces.
	Namespace string
	Role      mayflyv1.Role
}

// Keys knows access keys. Errors are faults.
type Keys interface {
	// Authenticate takes an Authorization header, "Bearer ID:SECRET".
	Authenticate(ctx context.Context, authorization string) (Principal, error)
	// Principal finds the owner of a key whose signature is verified.
	Principal(ctx context.Context, keyID string) (Principal, error)
}

// Config is what a Gateway needs. All fields are required but those that say otherwise.
type Config struct {
	// Listeners are served by Run: loopback and unix ones plain, all others with TLS.
	Listeners []net.Listener
	// TLS holds the certificate; it may be nil while all listeners are on loopback.
	TLS        *tls.Config
	View       func() View
	Invoker    Invoker
	Keys       Keys
	Signatures *auth.SigV4Verifier
	// Metrics is what /metrics shows.
	Metrics prometheus.Gatherer
	// Registerer gets the gateway's own metrics.
	Registerer prometheus.Registerer
	// Ready returns why this node can't take requests yet, or nil.
	Ready  func() error
	Now    func() time.Time
	Logger *slog.Logger
	// ShutdownTimeout is how long Run lets requests finish once its context has ended; default 30 s.
	ShutdownTimeout time.Duration
}

func (c *Config) validate() error {
	switch {
	case c.View == nil || c.Invoker == nil || c.Keys == nil || c.Signatures == nil:
		return errors.New("gateway: View, Invoker, Keys and Signatures are required")
	case c.Metrics == nil || c.Registerer == nil || c.Ready == nil || c.Now == nil || c.Logger == nil:
		return errors.New("gateway: Metrics, Registerer, Ready, Now and Logger are required")
	}
	for _, l := range c.Listeners {
		if !isLoopback(l.Addr()) && c.TLS == nil {
			return fmt.Errorf("gateway: HTTP on %s needs a certificate, because it can be reached from other machines: "+
				"give one, or listen on 127.0.0.1", l.Addr())
		}
	}
	return nil
}

// Gateway is an http.Handler for everything on the HTTP port.
type Gateway struct {
	cfg     Config
	metrics *metrics
	exposed http.Handler
	buffers bufferPool
}

// New checks cfg and makes a Gateway. It closes nothing and starts nothing.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = 30 * time.Second
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Gateway{cfg: cfg, metrics: m, exposed: promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{})}, nil
}

// Run serves the listeners until ctx ends, then lets requests finish. It closes the listeners.
func (g *Gateway) Run(ctx context.Context) error {
	srv := g.server(context.WithoutCancel(ctx))
	eg, ctx := errgroup.WithContext(ctx)
	for _, l := range g.cfg.Listeners {
		eg.Go(func() error { return g.serve(srv, l) })
	}
	eg.Go(func() error {
		<-ctx.Done()
		return g.shutdown(srv)
	})
	return eg.Wait()
}

func (g *Gateway) server(base context.Context) *http.Server {
	return &http.Server{
		Handler:           g,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		TLSConfig:         g.cfg.TLS,
		ErrorLog:          slog.NewLogLogger(g.cfg.Logger.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return base },
		// OPTIONS * is answered like any path that leads nowhere.
		DisableGeneralOptionsHandler: true,
	}
}

func (g *Gateway) serve(srv *http.Server, l net.Listener) error {
	var err error
	if isLoopback(l.Addr()) {
		err = srv.Serve(netio.Listener(l))
	} else {
		err = srv.ServeTLS(netio.Listener(l), "", "")
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
}

func (g *Gateway) shutdown(srv *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.ShutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		g.cfg.Logger.Warn("HTTP requests were cut off at shutdown", "after", g.cfg.ShutdownTimeout)
		return srv.Close()
	}
	return nil
}

// ServeHTTP serves one request by the table in docs/http.md.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	view := g.cfg.View()
	path, query := targetOf(r)
	t := route(r.Host, path, urlDomain(view), func(ns string) bool { _, ok := view.Namespace(ns); return ok })
	switch t.kind {
	case targetFunction:
		g.serveFunction(w, r, view, t, query)
	case targetHealth:
		_, _ = io.WriteString(w, "ok\n")
	case targetReady:
		g.serveReady(w)
	case targetMetrics:
		g.serveMetrics(w, r)
	case targetNone:
		refuse(w, http.StatusNotFound, "ResourceNotFoundException", "Nothing is served here. Function URLs are /fn/NAME/ and /fn/NAMESPACE/NAME/.")
	}
}

func (g *Gateway) serveReady(w http.ResponseWriter) {
	if err := g.cfg.Ready(); err != nil {
		refuse(w, http.StatusServiceUnavailable, "ServiceUnavailableException", "Not ready: "+err.Error())
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// serveMetrics asks for a key of all namespaces, because metrics tell of all of them; who is on the machine needs none.
func (g *Gateway) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if !peerIsLoopback(r) {
		p, err := g.cfg.Keys.Authenticate(r.Context(), r.Header.Get("Authorization"))
		if err != nil {
			refuseKey(w, err)
			return
		}
		if p.Namespace != allNamespaces || !mayRead(p.Role) {
			refuse(w, http.StatusForbidden, accessDenied, "Metrics need a key of all namespaces with the role READER.")
			return
		}
	}
	g.exposed.ServeHTTP(w, r)
}
