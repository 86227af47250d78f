package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

var errTooLarge = errors.New("too large")

// call is one request to a function URL.
type call struct {
	g         *Gateway
	w         *statusWriter
	r         *http.Request
	view      View
	target    target
	query     string
	url       *mayflyv1.FunctionUrl
	requestID string
	traceID   string
	start     time.Time
}

// statusWriter remembers the status that was answered.
type statusWriter struct {
	http.ResponseWriter
	r      *http.Request
	status int
}

// WriteHeader remembers the first status.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if status >= http.StatusBadRequest {
			w.drain()
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// drain takes what is left of a refused request's body, within limits: many clients send all of it before they read
// the answer, and would see a reset connection instead. One that expects 100 Continue does not.
func (w *statusWriter) drain() {
	if w.r.ContentLength == 0 || w.r.ContentLength > drainLimit || w.r.Header.Get("Expect") != "" {
		return
	}
	_ = http.NewResponseController(w.ResponseWriter).SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.CopyN(io.Discard, w.r.Body, drainLimit)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (g *Gateway) serveFunction(w http.ResponseWriter, r *http.Request, view View, t target, query string) {
	c := &call{g: g, w: &statusWriter{ResponseWriter: w, r: r}, r: r, view: view, target: t, query: query, start: g.cfg.Now()}
	g.metrics.inFlight.Inc()
	defer func() { g.metrics.served(c.w.status, g.cfg.Now().Sub(c.start)) }()
	fn, ok := view.Function(t.namespace, t.function)
	if !ok || fn.GetUrl() == nil {
		refuseNoFunction(c.w)
		return
	}
	c.url = fn.GetUrl()
	c.serve()
}

// serve answers preflights, then authenticates, then invokes.
func (c *call) serve() {
	h := c.w.Header()
	c.requestID, c.traceID = newIDs(c.r.Header.Get("X-Amzn-Trace-Id"), c.start)
	h["X-Amzn-Requestid"] = []string{c.requestID}
	h["X-Amzn-Trace-Id"] = []string{c.traceID}
	allowed := addCORS(h, c.r, c.url.GetCors())
	switch {
	case c.r.Method == http.MethodConnect || c.r.Method == http.MethodTrace:
		refuse(c.w, http.StatusMethodNotAllowed, "MethodNotAllowedException", "Function URLs take neither CONNECT nor TRACE.")
		return
	case c.url.GetCors() != nil && isPreflight(c.r):
		servePreflight(c.w, c.r, c.url.GetCors(), allowed)
		return
	}
	payload, ok := c.event()
	if !ok {
		return
	}
	req := &Request{
		Namespace: c.target.namespace, Function: c.target.function, Qualifier: c.url.GetQualifier(),
		Payload: payload, TraceID: c.traceID, RequestID: c.requestID,
		Stream: c.url.GetInvokeMode() == mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM,
	}
	if req.Stream {
		c.stream(req)
		return
	}
	resp, err := c.g.cfg.Invoker.Invoke(c.r.Context(), req, nil)
	c.buffered(resp, err)
}

// event authenticates the request and makes its event. If it returns false, the request is answered.
func (c *call) event() ([]byte, bool) {
	who, ok := c.authenticateKey()
	if !ok {
		return nil, false
	}
	buf := c.g.buffers.get()
	defer c.g.buffers.put(buf)
	if err := c.readBody(buf); err != nil {
		c.refuseBody(err)
		return nil, false
	}
	if c.url.GetAuthType() == mayflyv1.AuthType_AUTH_TYPE_AWS_IAM {
		if who, ok = c.authenticateSignature(*buf); !ok {
			return nil, false
		}
	}
	e := &event{
		r: c.r, target: c.target, query: c.query, body: *buf, requestID: c.requestID, traceID: c.traceID,
		sourceIP: peerIP(c.r), now: c.start, caller: who,
	}
	payload := e.encode()
	if len(payload) > MaxPayload {
		refuseTooLarge(c.w)
		return nil, false
	}
	return payload, true
}

// authenticateKey checks everything that needs no body: nothing for NONE, the bearer key for KEY. A URL without a known
// auth type is closed.
func (c *call) authenticateKey() (*caller, bool) {
	switch c.url.GetAuthType() {
	case mayflyv1.AuthType_AUTH_TYPE_NONE, mayflyv1.AuthType_AUTH_TYPE_AWS_IAM:
		return nil, true
	case mayflyv1.AuthType_AUTH_TYPE_KEY:
		p, err := c.g.cfg.Keys.Authenticate(c.r.Context(), c.r.Header.Get("Authorization"))
		if err != nil {
			c.logFault(err)
			refuseKey(c.w, err)
			return nil, false
		}
		return c.admit(p, false)
	case mayflyv1.AuthType_AUTH_TYPE_UNSPECIFIED:
	}
	refuse(c.w, http.StatusForbidden, accessDenied, "Forbidden")
	return nil, false
}

func (c *call) authenticateSignature(body []byte) (*caller, bool) {
	id, err := c.g.cfg.Signatures.Verify(c.r.Context(), c.r, body, auth.SigV4Scope{Service: "lambda"})
	if err != nil {
		c.logFault(err)
		refuseSignature(c.w, err)
		return nil, false
	}
	p, err := c.g.cfg.Keys.Principal(c.r.Context(), id.AccessKeyID)
	if err != nil {
		c.logFault(err)
		refuse(c.w, http.StatusForbidden, accessDenied, "Forbidden")
		return nil, false
	}
	return c.admit(p, true)
}

// admit lets a key in that may invoke functions of this namespace.
func (c *call) admit(p Principal, iam bool) (*caller, bool) {
	if !mayInvoke(p.Role) || p.Namespace != allNamespaces && p.Namespace != c.target.namespace {
		refuse(c.w, http.StatusForbidden, accessDenied, "Forbidden")
		return nil, false
	}
	ns, _ := c.view.Namespace(c.target.namespace)
	return &caller{
		keyID: p.KeyID, accountID: ns.GetAccountId(), namespace: p.Namespace, role: roleName(p.Role), iam: iam,
	}, true
}

func roleName(r mayflyv1.Role) string { return r.String()[len("ROLE_"):] }

// readBody reads the whole body into buf. The buffer grows with what has arrived, not with what was announced.
func (c *call) readBody(buf *[]byte) error {
	if c.r.ContentLength == 0 {
		return nil
	}
	if c.r.ContentLength > MaxBody {
		return errTooLarge
	}
	control := http.NewResponseController(c.w.ResponseWriter)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // in tests there may be no connection to limit
	b := *buf
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := c.r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if len(b) > MaxBody {
			return errTooLarge
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read body: %w", err)
		}
	}
	*buf = b
	_ = control.SetReadDeadline(time.Time{})
	return nil
}

func (c *call) refuseBody(err error) {
	switch {
	case errors.Is(err, errTooLarge):
		refuseTooLarge(c.w)
	case errors.Is(err, os.ErrDeadlineExceeded):
		refuse(c.w, http.StatusRequestTimeout, "RequestTimeoutException", "The request's body did not arrive in time.")
	default:
		refuse(c.w, http.StatusBadRequest, "InvalidRequestContentException", "The request's body could not be read.")
	}
}

// buffered answers with what the invoker returned.
func (c *call) buffered(resp *mayflyv1.InvokeResponse, err error) {
	if err != nil {
		c.refuseFault(err)
		return
	}
	a, err := answerOf(resp)
	if err != nil {
		refuse(c.w, http.StatusBadGateway, "", internalError)
		return
	}
	a.writeHeader(c.w, len(a.body), "application/json", c.url.GetCors() != nil)
	if bodyAllowed(a.status) {
		c.write(a.body)
	}
}

func answerOf(resp *mayflyv1.InvokeResponse) (*answer, error) {
	if resp.GetFunctionError() != "" || len(resp.GetPayload()) > MaxPayload {
		return nil, errAnswer
	}
	return parseAnswer(resp.GetPayload())
}

// write sends a body; one that may not fit into the socket's buffers must be taken within writeTimeout.
func (c *call) write(body []byte) {
	if len(body) <= maxPooled {
		_, _ = c.w.Write(body)
		return
	}
	control := http.NewResponseController(c.w.ResponseWriter)
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = c.w.Write(body)
	_ = control.Flush()
	_ = control.SetWriteDeadline(time.Time{})
}

// refuseFault answers an error of the invoker. A caller that is gone gets a closed connection, not an empty 200.
func (c *call) refuseFault(err error) {
	if c.r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	c.logFault(err)
	refuseInvocation(c.w, err)
}

// logFault logs what callers aren't told.
func (c *call) logFault(err error) {
	e := fault.From(err)
	if fault.HTTPStatus(e) != http.StatusInternalServerError || errors.Is(err, context.Canceled) {
		return
	}
	c.g.cfg.Logger.Error("request to a function URL failed", "namespace", c.target.namespace, "function", c.target.function,
		"request_id", c.requestID, "error", err)
}
