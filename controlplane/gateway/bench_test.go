package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// nullWriter is a ResponseWriter that keeps nothing.
type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *nullWriter) WriteHeader(int)             {}

// BenchmarkGateway is what the gateway costs beyond net/http, with an invoker that does nothing.
func BenchmarkGateway(b *testing.B) {
	cfg, _, _ := testConfig()
	resp := &mayflyv1.InvokeResponse{Payload: []byte(`{"statusCode": 200, "body": "\"Hello World!\""}`)}
	cfg.Invoker = invokerFunc(func() (*mayflyv1.InvokeResponse, error) { return resp, nil })
	g, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequestWithContext(b.Context(), "GET", "/fn/open/path?name=value", nil)
	r.Header.Set("User-Agent", "bench/1.0")
	r.Header.Set("Accept", "*/*")
	r.Header.Set("Accept-Encoding", "gzip")
	b.ReportAllocs()
	for b.Loop() {
		g.ServeHTTP(&nullWriter{h: http.Header{}}, r)
	}
}

type invokerFunc func() (*mayflyv1.InvokeResponse, error)

func (f invokerFunc) Invoke(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	return f()
}
