package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// fakeView is a state of functions by "namespace/name".
type fakeView struct {
	functions map[string]*mayflyv1.FunctionUrl
}

func (v *fakeView) Namespace(name string) (*mayflyv1.Namespace, bool) {
	accounts := map[string]string{"default": "000000000001", "shop": "000000000002"}
	a, ok := accounts[name]
	return &mayflyv1.Namespace{Name: name, AccountId: a}, ok
}

func (v *fakeView) Function(namespace, name string) (*mayflyv1.Function, bool) {
	url, ok := v.functions[namespace+"/"+name]
	return &mayflyv1.Function{Namespace: namespace, Name: name, Url: url}, ok
}

func (v *fakeView) Settings() *mayflyv1.Settings { return &mayflyv1.Settings{} }

// fakeInvoker answers by a function and remembers what it was asked.
type fakeInvoker struct {
	mu     sync.Mutex
	calls  []*Request
	answer func(ctx context.Context, r *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error)
}

func (f *fakeInvoker) Invoke(ctx context.Context, r *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	f.mu.Lock()
	f.calls = append(f.calls, r)
	f.mu.Unlock()
	return f.answer(ctx, r, emit)
}

func (f *fakeInvoker) last(t *testing.T) *Request {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		t.Fatal("the function was not called")
	}
	return f.calls[len(f.calls)-1]
}

func (f *fakeInvoker) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// fakeKeys knows one key per role and namespace: "NAMESPACE-ROLE" with secret "s".
type fakeKeys struct{}

func (fakeKeys) Principal(_ context.Context, id string) (Principal, error) {
	ns, role, _ := strings.Cut(id, "-")
	r, ok := mayflyv1.Role_value["ROLE_"+role]
	if !ok {
		return Principal{}, fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "no such key")
	}
	return Principal{KeyID: id, Namespace: ns, Role: mayflyv1.Role(r)}, nil
}

func (k fakeKeys) Authenticate(ctx context.Context, authorization string) (Principal, error) {
	id, ok := strings.CutSuffix(strings.TrimPrefix(authorization, "Bearer "), ":s")
	if !ok {
		return Principal{}, fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "bad key")
	}
	return k.Principal(ctx, id)
}

// fixture is a gateway with fakes behind it, served over real HTTP.
type fixture struct {
	*httptest.Server
	gateway *Gateway
	invoker *fakeInvoker
	view    *fakeView
}

func reply(payload string) func(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	return func(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		return &mayflyv1.InvokeResponse{Payload: []byte(payload)}, nil
	}
}

func testConfig() (Config, *fakeInvoker, *fakeView) {
	inv := &fakeInvoker{answer: reply(`{"statusCode":200,"body":"ok"}`)}
	view := &fakeView{functions: map[string]*mayflyv1.FunctionUrl{
		"default/open":   {AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE},
		"default/key":    {AuthType: mayflyv1.AuthType_AUTH_TYPE_KEY},
		"default/iam":    {AuthType: mayflyv1.AuthType_AUTH_TYPE_AWS_IAM},
		"default/unset":  {},
		"default/no-url": nil,
		"default/stream": {AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM},
		"shop/key":       {AuthType: mayflyv1.AuthType_AUTH_TYPE_KEY, Qualifier: "live"},
	}}
	registry := prometheus.NewRegistry()
	lookup := func(_ context.Context, id string) (string, error) {
		if id == "default-INVOKER" || id == "shop-INVOKER" {
			return "iam-secret", nil
		}
		return "", auth.ErrSigV4KeyUnknown
	}
	return Config{
		View: func() View { return view }, Invoker: inv, Keys: fakeKeys{}, Signatures: auth.NewSigV4Verifier(lookup, time.Now),
		Metrics: registry, Registerer: registry, Ready: func() error { return nil }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	}, inv, view
}

func start(t *testing.T) *fixture {
	t.Helper()
	cfg, inv, view := testConfig()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{gateway: g, invoker: inv, view: view, Server: httptest.NewServer(g)}
	t.Cleanup(f.Close)
	return f
}

// do sends a request; headers come in pairs, "Host" among them.
func (f *fixture) do(t *testing.T, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := f.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v after %q", method, path, err, b)
	}
	return resp, string(b)
}

func requireMessage(t *testing.T, body, want string) {
	t.Helper()
	var m struct{ Message string }
	if err := json.Unmarshal([]byte(body), &m); err != nil || !strings.Contains(m.Message, want) {
		t.Errorf("body %q, want a Message with %q", body, want)
	}
}

func TestFunctionURL(t *testing.T) {
	f := start(t)
	f.invoker.answer = reply(`{"statusCode":201,"headers":{"x-mine":"1","content-type":"text/plain","connection":"close","content-length":"99",` +
		`"x-amzn-requestid":"forged"},"cookies":["a=1","b=2"],"body":"hello"}`)
	resp, body := f.do(t, "POST", "/fn/open/x/y?q=1", "{}", "Content-Type", "application/json")
	if resp.StatusCode != 201 || body != "hello" || resp.Header.Get("X-Mine") != "1" || resp.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	if got := resp.Header["Set-Cookie"]; len(got) != 2 || got[0] != "a=1" || got[1] != "b=2" {
		t.Errorf("cookies %q", got)
	}
	req := f.invoker.last(t)
	e := decodeEvent(t, req.Payload)
	if e.RawPath != "/x/y" || e.RawQueryString != "q=1" || *e.Body != "{}" || e.RequestContext.HTTP.SourceIP != "127.0.0.1" {
		t.Errorf("event %+v", e)
	}
	if req.Namespace != "default" || req.Function != "open" || req.Stream || req.RequestID == "" ||
		resp.Header["X-Amzn-Requestid"][0] != req.RequestID || len(resp.Header["X-Amzn-Requestid"]) != 1 || e.RequestContext.RequestID != req.RequestID {
		t.Errorf("request %+v, headers %v", req, resp.Header)
	}
	if req.TraceID == "" || resp.Header.Get("X-Amzn-Trace-Id") != req.TraceID || e.Headers["x-amzn-trace-id"] != req.TraceID {
		t.Errorf("trace %q, header %q", req.TraceID, resp.Header.Get("X-Amzn-Trace-Id"))
	}
}

// A function can't write more than a header's value.
func TestHeaderValuesStayOneLine(t *testing.T) {
	f := start(t)
	f.invoker.answer = reply(`{"statusCode":200,"headers":{"x-a":"1\r\nX-Evil: 1","bad name\r\nX-Evil":"1"},"cookies":["c=1\r\nX-Evil: 1"],"body":"b"}`)
	resp, body := f.do(t, "GET", "/fn/open", "")
	if resp.StatusCode != 200 || body != "b" || resp.Header.Get("X-Evil") != "" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
}

func TestFunctionURLByHost(t *testing.T) {
	f := start(t)
	f.do(t, "GET", "/healthz", "", "Host", "open.fn.localhost:1234")
	e := decodeEvent(t, f.invoker.last(t).Payload)
	if e.RawPath != "/healthz" || e.RequestContext.DomainName != "open.fn.localhost" || e.RequestContext.DomainPrefix != "open" {
		t.Errorf("event %+v", e)
	}
	f.do(t, "GET", "/", "", "Host", "key.shop.fn.localhost", "Authorization", "Bearer shop-INVOKER:s")
	if req := f.invoker.last(t); req.Namespace != "shop" || req.Function != "key" || req.Qualifier != "live" {
		t.Errorf("request %+v", req)
	}
}

func TestTraceIDOfTheClientIsKept(t *testing.T) {
	f := start(t)
	const id = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
	resp, _ := f.do(t, "GET", "/fn/open", "", "X-Amzn-Trace-Id", id)
	if f.invoker.last(t).TraceID != id || resp.Header.Get("X-Amzn-Trace-Id") != id {
		t.Errorf("trace %q", f.invoker.last(t).TraceID)
	}
}

func TestNotFound(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/", "/fn/", "/fn/nothing", "/fn/no-url/", "/fn/shop/open", "/nope", "/fn/shop"} {
		resp, body := f.do(t, "GET", path, "")
		if resp.StatusCode != 404 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		requireMessage(t, body, "")
	}
	if f.invoker.count() != 0 {
		t.Error("a function was called")
	}
}

func TestAuthKey(t *testing.T) {
	cases := []struct {
		path, key string
		status    int
	}{
		{"/fn/key", "default-INVOKER:s", 200},
		{"/fn/key", "default-DEVELOPER:s", 200},
		{"/fn/key", "*-ADMIN:s", 200},
		{"/fn/shop/key", "shop-INVOKER:s", 200},
		{"/fn/key", "default-READER:s", 403},
		{"/fn/key", "shop-INVOKER:s", 403},
		{"/fn/shop/key", "default-ADMIN:s", 403},
		{"/fn/key", "default-INVOKER:wrong", 401},
		{"/fn/key", "", 401},
		{"/fn/unset", "*-ADMIN:s", 403},
	}
	for _, c := range cases {
		f := start(t)
		headers := []string{"Authorization", "Bearer " + c.key}
		if c.key == "" {
			headers = nil
		}
		resp, body := f.do(t, "GET", c.path, "", headers...)
		if resp.StatusCode != c.status || (c.status == 200) != (f.invoker.count() == 1) {
			t.Errorf("%s with %q: %d %s, %d calls", c.path, c.key, resp.StatusCode, body, f.invoker.count())
		}
		if c.status == 401 && resp.Header.Get("Www-Authenticate") == "" {
			t.Error("401 without WWW-Authenticate")
		}
	}
}

func TestInvocationErrors(t *testing.T) {
	r := mayflyv1.ErrorReason_ERROR_REASON_INTERNAL
	cases := []struct {
		name   string
		resp   *mayflyv1.InvokeResponse
		err    error
		status int
	}{
		{"handler failed", &mayflyv1.InvokeResponse{FunctionError: "Unhandled", Payload: []byte(`{"errorMessage":"secret detail"}`)}, nil, 502},
		{"bad shape", &mayflyv1.InvokeResponse{Payload: []byte(`{"statusCode":"x"}`)}, nil, 502},
		{"too large", &mayflyv1.InvokeResponse{Payload: make([]byte, MaxPayload+1)}, nil, 502},
		{"throttled", nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED, "secret detail"), 429},
		{"lost", nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST, "secret detail"), 503},
		{"gone alias", nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND, "secret detail"), 404},
		{"not active", nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_ACTIVE, "secret detail"), 503},
		{"payload", nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, "secret detail"), 413},
		{"deadline", nil, fault.New(codes.DeadlineExceeded, r, "secret detail"), 504},
		{"bug", nil, errors.New("secret detail"), 500},
	}
	for _, c := range cases {
		f := start(t)
		f.invoker.answer = func(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			return c.resp, c.err
		}
		for _, path := range []string{"/fn/open", "/fn/stream"} {
			resp, body := f.do(t, "GET", path, "")
			if resp.StatusCode != c.status || strings.Contains(body, "secret") {
				t.Errorf("%s %s: %d %s", c.name, path, resp.StatusCode, body)
			}
			requireMessage(t, body, "")
			if c.status == 502 {
				requireMessage(t, body, "Internal Server Error")
			}
		}
	}
}

func TestRequestLimits(t *testing.T) {
	f := start(t)
	big := strings.Repeat("x", MaxBody-2048)
	if resp, body := f.do(t, "POST", "/fn/open", big, "Content-Type", "text/plain"); resp.StatusCode != 200 {
		t.Errorf("%d bytes of text: %d %s", len(big), resp.StatusCode, body)
	}
	calls := f.invoker.count()
	if resp, _ := f.do(t, "POST", "/fn/open", big, "Content-Type", "image/png"); resp.StatusCode != 413 {
		t.Errorf("base64 beyond the limit: %d", resp.StatusCode)
	}
	// Announced or found out while reading: the client gets its answer though it sends everything first.
	for _, announced := range []int64{MaxBody + 1, -1} {
		r, _ := http.NewRequestWithContext(t.Context(), "POST", f.URL+"/fn/open", io.LimitReader(neverEnding{}, MaxBody+1))
		r.ContentLength = announced
		resp, err := f.Client().Do(r)
		if err != nil {
			t.Fatalf("announced as %d: %v", announced, err)
		}
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("announced as %d: %d", announced, resp.StatusCode)
		}
	}
	if resp, _ := f.do(t, "POST", "/fn/key", big); resp.StatusCode != 401 {
		t.Errorf("large body without a key: %d", resp.StatusCode)
	}
	if f.invoker.count() != calls {
		t.Error("a function was called")
	}
}

// A client that waits for 100 Continue hears of a body that is too large before it sends any.
func TestTooLargeIsRefusedBeforeTheBody(t *testing.T) {
	f := start(t)
	conn, err := net.Dial("tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /fn/open HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 6291457\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 413 {
		t.Fatalf("%v %v", resp, err)
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestHeadAndNoContent(t *testing.T) {
	f := start(t)
	resp, body := f.do(t, "HEAD", "/fn/open", "")
	if resp.StatusCode != 200 || body != "" || resp.ContentLength != 2 {
		t.Errorf("HEAD: %d %q length %d", resp.StatusCode, body, resp.ContentLength)
	}
	if e := decodeEvent(t, f.invoker.last(t).Payload); e.RequestContext.HTTP.Method != "HEAD" {
		t.Errorf("method %q", e.RequestContext.HTTP.Method)
	}
	f.invoker.answer = reply(`{"statusCode":204,"body":"dropped"}`)
	resp, body = f.do(t, "GET", "/fn/open", "")
	if resp.StatusCode != 204 || body != "" || resp.Header.Get("Content-Type") != "" {
		t.Errorf("204: %d %q %v", resp.StatusCode, body, resp.Header)
	}
	if resp, _ := f.do(t, "TRACE", "/fn/open", ""); resp.StatusCode != 405 {
		t.Errorf("TRACE: %d", resp.StatusCode)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if resp, _ := f.do(t, "GET", path, ""); resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	f.gateway.cfg.Ready = func() error { return errors.New("no leader") }
	resp, body := f.do(t, "GET", "/readyz", "")
	if resp.StatusCode != 503 {
		t.Errorf("not ready: %d", resp.StatusCode)
	}
	requireMessage(t, body, "no leader")
	f.do(t, "GET", "/fn/open", "")
	if resp, body := f.do(t, "GET", "/metrics", ""); resp.StatusCode != 200 || !strings.Contains(body, `mayfly_gateway_requests_total{status="2xx"} 1`) {
		t.Errorf("metrics from loopback: %d\n%s", resp.StatusCode, body)
	}
}

func TestMetricsFromElsewhereNeedAKey(t *testing.T) {
	f := start(t)
	for key, want := range map[string]int{
		"": 401, "*-READER:s": 200, "*-ADMIN:s": 200, "*-INVOKER:s": 403, "default-READER:s": 403, "*-READER:x": 401,
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil)
		r.RemoteAddr = "192.0.2.7:1234"
		r.Header.Set("X-Forwarded-For", "127.0.0.1")
		r.Header.Set("Authorization", "Bearer "+key)
		w := httptest.NewRecorder()
		f.gateway.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("key %q: %d, want %d", key, w.Code, want)
		}
	}
}

func TestNewRefusesPlainHTTPForOthers(t *testing.T) {
	cfg, _, _ := testConfig()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg.Listeners = []net.Listener{l}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("plain on all addresses: %v", err)
	}
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{{}}}
	if _, err := New(cfg); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty Config is accepted")
	}
}
