package gateway

import (
	"net/http"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func withCORS(t *testing.T, c *mayflyv1.Cors, authType mayflyv1.AuthType) *fixture {
	t.Helper()
	f := start(t)
	f.view.functions["default/cors"] = &mayflyv1.FunctionUrl{AuthType: authType, Cors: c}
	return f
}

func requireHeaders(t *testing.T, h http.Header, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := h.Get(name); got != value || value == "" && len(h[name]) > 0 {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
}

func TestPreflight(t *testing.T) {
	cors := &mayflyv1.Cors{
		AllowOrigins: []string{"https://a.example", "https://b.example"}, AllowMethods: []string{"GET", "PUT"}, AllowHeaders: []string{"x-one", "x-two"},
		ExposeHeaders: []string{"x-out"}, AllowCredentials: true, MaxAgeSeconds: 600,
	}
	// A preflight carries no key, so it is answered before authentication.
	f := withCORS(t, cors, mayflyv1.AuthType_AUTH_TYPE_KEY)
	resp, body := f.do(t, "OPTIONS", "/fn/cors/x", "", "Origin", "https://b.example", "Access-Control-Request-Method", "PUT")
	if resp.StatusCode != 200 || body != "" || f.invoker.count() != 0 {
		t.Errorf("%d %q, %d calls", resp.StatusCode, body, f.invoker.count())
	}
	requireHeaders(t, resp.Header, map[string]string{
		"Access-Control-Allow-Origin": "https://b.example", "Access-Control-Allow-Methods": "GET,PUT", "Access-Control-Allow-Headers": "x-one,x-two",
		"Access-Control-Expose-Headers": "x-out", "Access-Control-Allow-Credentials": "true", "Access-Control-Max-Age": "600", "Vary": "Origin",
	})
	resp, _ = f.do(t, "OPTIONS", "/fn/cors/x", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "PUT")
	requireHeaders(t, resp.Header, map[string]string{
		"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": "", "Access-Control-Allow-Credentials": "", "Vary": "Origin",
	})
}

func TestPreflightWildcards(t *testing.T) {
	all := []string{"*"}
	f := withCORS(t, &mayflyv1.Cors{AllowOrigins: all, AllowMethods: all, AllowHeaders: all}, mayflyv1.AuthType_AUTH_TYPE_NONE)
	ask := []string{"Origin", "https://x.example", "Access-Control-Request-Method", "DELETE", "Access-Control-Request-Headers", "x-a"}
	resp, _ := f.do(t, "OPTIONS", "/fn/cors", "", ask...)
	requireHeaders(t, resp.Header, map[string]string{
		"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "*", "Access-Control-Allow-Headers": "*", "Access-Control-Max-Age": "",
	})
	f.view.functions["default/cors"].Cors.AllowCredentials = true
	resp, _ = f.do(t, "OPTIONS", "/fn/cors", "", ask...)
	requireHeaders(t, resp.Header, map[string]string{
		"Access-Control-Allow-Origin": "https://x.example", "Access-Control-Allow-Methods": "DELETE", "Access-Control-Allow-Headers": "x-a",
	})
}

func TestCORSOnAnswers(t *testing.T) {
	f := withCORS(t, &mayflyv1.Cors{AllowOrigins: []string{"https://a.example"}}, mayflyv1.AuthType_AUTH_TYPE_NONE)
	f.invoker.answer = reply(`{"statusCode":200,"headers":{"access-control-allow-origin":"*","vary":"accept"}}`)
	resp, _ := f.do(t, "GET", "/fn/cors", "", "Origin", "https://a.example")
	if got := resp.Header["Access-Control-Allow-Origin"]; len(got) != 1 || got[0] != "https://a.example" {
		t.Errorf("the function's header shows: %q", got)
	}
	if got := resp.Header["Vary"]; len(got) != 2 {
		t.Errorf("Vary %q", got)
	}
	resp, _ = f.do(t, "GET", "/fn/cors", "", "Origin", "https://evil.example")
	requireHeaders(t, resp.Header, map[string]string{"Access-Control-Allow-Origin": ""})
	// Errors carry them too, or browsers hide the status.
	f.invoker.answer = reply(`{"statusCode":"x"}`)
	resp, _ = f.do(t, "GET", "/fn/cors", "", "Origin", "https://a.example")
	requireHeaders(t, resp.Header, map[string]string{"Access-Control-Allow-Origin": "https://a.example"})
}

// Without a configuration, CORS is the function's own business.
func TestFunctionsOwnCORS(t *testing.T) {
	f := start(t)
	f.invoker.answer = reply(`{"statusCode":200,"headers":{"access-control-allow-origin":"https://own.example"}}`)
	resp, _ := f.do(t, "OPTIONS", "/fn/open", "", "Origin", "https://own.example", "Access-Control-Request-Method", "PUT")
	requireHeaders(t, resp.Header, map[string]string{"Access-Control-Allow-Origin": "https://own.example"})
	if f.invoker.count() != 1 {
		t.Error("the function was not asked")
	}
}
