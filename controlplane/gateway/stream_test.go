package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// chunks makes an answer of these chunks, then of the response and error.
func chunks(resp *mayflyv1.InvokeResponse, err error, parts ...string) func(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	return func(_ context.Context, r *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		if !r.Stream || emit == nil {
			return nil, errors.New("asked without streaming")
		}
		for _, p := range parts {
			if err := emit([]byte(p)); err != nil {
				return nil, err
			}
		}
		return resp, err
	}
}

func TestStreaming(t *testing.T) {
	empty := &mayflyv1.InvokeResponse{}
	cases := []struct {
		name              string
		answer            []string
		payload           string
		status            int
		body, contentType string
	}{
		{"plain", []string{"one ", "two"}, "", 200, "one two", "application/octet-stream"},
		{"prelude", []string{`{"statusCode":203,"headers":{"content-type":"text/html"},`, `"cookies":["a=b"]}`, preludeEnd, "<p>", "</p>"}, "", 203, "<p></p>", "text/html"},
		{"prelude alone", []string{`{"statusCode":204}` + preludeEnd}, "", 204, "", ""},
		{"looks like a prelude", []string{`{"statusCode":203`}, "", 200, `{"statusCode":203`, "application/octet-stream"},
		{"nothing", nil, "", 200, "", "application/octet-stream"},
		{"runtime that can't stream", nil, `{"statusCode":202,"body":"b"}`, 202, "b", "application/json"},
	}
	for _, c := range cases {
		f := start(t)
		resp := empty
		if c.payload != "" {
			resp = &mayflyv1.InvokeResponse{Payload: []byte(c.payload)}
		}
		f.invoker.answer = chunks(resp, nil, c.answer...)
		got, body := f.do(t, "GET", "/fn/stream", "")
		if got.StatusCode != c.status || body != c.body || got.Header.Get("Content-Type") != c.contentType {
			t.Errorf("%s: %d %q %q", c.name, got.StatusCode, body, got.Header.Get("Content-Type"))
		}
	}
}

// A chunk reaches the client before the next one is made.
func TestStreamingIsImmediate(t *testing.T) {
	f := start(t)
	read := make(chan struct{})
	f.invoker.answer = func(_ context.Context, _ *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		for _, line := range []string{"first\n", "second\n"} {
			if err := emit([]byte(line)); err != nil {
				return nil, err
			}
			<-read
		}
		return &mayflyv1.InvokeResponse{}, nil
	}
	r, _ := http.NewRequestWithContext(t.Context(), "GET", f.URL+"/fn/stream", nil)
	resp, err := f.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"first\n", "second\n"} {
		if got, err := lines.ReadString('\n'); got != want || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		read <- struct{}{}
	}
}

func TestStreamBrokenMidwayIsNoCleanEnd(t *testing.T) {
	failed := map[string]func(context.Context, *Request, func([]byte) error) (*mayflyv1.InvokeResponse, error){
		"function error": chunks(&mayflyv1.InvokeResponse{FunctionError: "Unhandled"}, nil, "part"),
		"lost":           chunks(nil, errors.New("node lost"), "part"),
	}
	for name, answer := range failed {
		f := start(t)
		f.invoker.answer = answer
		r, _ := http.NewRequestWithContext(t.Context(), "GET", f.URL+"/fn/stream", nil)
		resp, err := f.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "part" || err == nil {
			t.Errorf("%s: %q ended with %v", name, body, err)
		}
	}
}

func TestStreamFailingBeforeItsFirstByte(t *testing.T) {
	f := start(t)
	f.invoker.answer = chunks(&mayflyv1.InvokeResponse{FunctionError: "Unhandled"}, nil, `{"statusCode":200}`)
	resp, body := f.do(t, "GET", "/fn/stream", "")
	if resp.StatusCode != 502 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Whoever hangs up is told to the invoker, by its context and by emit.
func TestClientGone(t *testing.T) {
	f := start(t)
	gone := make(chan error, 1)
	f.invoker.answer = func(ctx context.Context, _ *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		_ = emit([]byte("x"))
		<-ctx.Done()
		for {
			if err := emit([]byte(strings.Repeat("y", 1<<16))); err != nil {
				gone <- err
				return nil, err
			}
		}
	}
	ctx, hangUp := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", f.URL+"/fn/stream", nil)
	resp, err := f.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	hangUp()
	resp.Body.Close()
	if err := <-gone; err == nil {
		t.Error("emit did not fail")
	}
}
