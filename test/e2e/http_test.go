package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (in *instance) do(t testing.TB, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func (in *instance) request(t testing.TB, method, path, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+in.http+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func (in *instance) get(t testing.TB, path string) (int, string) {
	t.Helper()
	resp, body := in.do(t, in.request(t, http.MethodGet, path, ""))
	return resp.StatusCode, body
}

const echoEvent = `
import json
def handler(event, context):
    if event["rawPath"] == "/teapot":
        return {"statusCode": 418, "headers": {"x-tea": "green"}, "cookies": ["a=1; Secure", "b=2"], "body": "AAEC", "isBase64Encoded": True}
    if event["rawPath"] == "/bare":
        return {"just": "json"}
    return event
`

func TestFunctionURLPayload(t *testing.T) {
	f := python("url", echoEvent)
	f.url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE}
	shared.deploy(t, f)

	req := shared.request(t, http.MethodPost, "/fn/url/some/path?q=1&q=2&z=%20", "héllo")
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("Cookie", "one=1; two=2")
	req.Header.Add("X-Many", "a")
	req.Header.Add("X-Many", "b")
	resp, body := shared.do(t, req)
	var event struct {
		Version, RawPath, RawQueryString, Body string
		Cookies                                []string
		Headers, QueryStringParameters         map[string]string
		IsBase64Encoded                        bool
		RequestContext                         struct {
			HTTP struct{ Method, Path, SourceIP string }
		}
	}
	if err := json.Unmarshal([]byte(body), &event); err != nil {
		t.Fatalf("%d %s: %v", resp.StatusCode, body, err)
	}
	if event.Version != "2.0" || event.RawPath != "/some/path" || event.RawQueryString != "q=1&q=2&z=%20" || event.Body != "héllo" || event.IsBase64Encoded ||
		event.Headers["x-many"] != "a,b" || event.QueryStringParameters["q"] != "1,2" || len(event.Cookies) != 2 || event.RequestContext.HTTP.Method != "POST" || event.RequestContext.HTTP.SourceIP != "127.0.0.1" {
		t.Errorf("%s", body)
	}

	resp, body = shared.do(t, shared.request(t, http.MethodGet, "/fn/url/teapot", ""))
	if resp.StatusCode != 418 || body != "\x00\x01\x02" || resp.Header.Get("X-Tea") != "green" || len(resp.Header.Values("Set-Cookie")) != 2 {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	if status, body := shared.get(t, "/fn/url/bare"); status != 200 || body != `{"just": "json"}` && body != `{"just":"json"}` {
		t.Errorf("%d %s", status, body)
	}

	req = shared.request(t, http.MethodGet, "/bare", "")
	req.Host = "url.fn.localhost"
	if resp, body := shared.do(t, req); resp.StatusCode != 200 {
		t.Errorf("by host: %d %s", resp.StatusCode, body)
	}
}

func TestFunctionURLAuth(t *testing.T) {
	secure := func(name string, auth mayflyv1.AuthType) {
		f := python(name, "def handler(e, c): return 'in'")
		f.url = &mayflyv1.FunctionUrl{AuthType: auth}
		shared.deploy(t, f)
	}
	secure("keyed", mayflyv1.AuthType_AUTH_TYPE_KEY)
	secure("signed", mayflyv1.AuthType_AUTH_TYPE_AWS_IAM)
	shared.deploy(t, python("closed", "def handler(e, c): return 'in'"))

	for _, c := range []struct {
		path, bearer string
		want         int
	}{
		{"/fn/keyed/", "", 401},
		{"/fn/keyed/", shared.key.ID + ":wrong", 401},
		{"/fn/keyed/", shared.key.ID + ":" + shared.key.Secret, 200},
		{"/fn/signed/", "", 403},
		{"/fn/closed/", "", 404},
		{"/fn/nobody/", "", 404},
		{"/elsewhere", "", 404},
	} {
		req := shared.request(t, http.MethodGet, c.path, "")
		if c.bearer != "" {
			req.Header.Set("Authorization", "Bearer "+c.bearer)
		}
		if resp, body := shared.do(t, req); resp.StatusCode != c.want {
			t.Errorf("%s with %q: %d %s, want %d", c.path, c.bearer[:min(5, len(c.bearer))], resp.StatusCode, body, c.want)
		}
	}

	// Debian's botocore, a real AWS client, signs.
	sign := `
import sys, urllib.request
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
url, key, secret = sys.argv[1:]
r = AWSRequest("POST", url, data=b"{}", headers={"content-type": "application/json"})
SigV4Auth(Credentials(key, secret), "lambda", "us-east-1").add_auth(r)
try:
    print(urllib.request.urlopen(urllib.request.Request(url, b"{}", dict(r.headers))).status)
except urllib.error.HTTPError as e:
    print(e.code)
`
	for secret, want := range map[string]string{shared.key.Secret: "200", "wrong": "403"} {
		out, err := exec.Command("/usr/bin/python3", "-c", sign, "http://"+shared.http+"/fn/signed/a%20b?x=1&b=2", shared.key.ID, secret).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("signed with botocore: %s %v, want %s", out, err, want)
		}
	}
}

func TestFunctionURLFailures(t *testing.T) {
	f := python("url-fails", "def handler(e, c): raise ValueError('no')")
	f.url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE}
	shared.deploy(t, f)
	if status, body := shared.get(t, "/fn/url-fails/"); status != 502 || strings.Contains(body, "ValueError") {
		t.Errorf("%d %s", status, body)
	}
	req := shared.request(t, http.MethodPost, "/fn/url-fails/", strings.Repeat("x", 7<<20))
	if resp, body := shared.do(t, req); resp.StatusCode != 413 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestCORSPreflightIsAnsweredWithoutTheFunction(t *testing.T) {
	f := python("cors", "def handler(e, c): return 1/0")
	f.url = &mayflyv1.FunctionUrl{
		AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE,
		Cors:     &mayflyv1.Cors{AllowOrigins: []string{"https://a.example"}, AllowMethods: []string{"PUT"}, AllowHeaders: []string{"x-mine"}, MaxAgeSeconds: 60},
	}
	shared.deploy(t, f)
	req := shared.request(t, http.MethodOptions, "/fn/cors/", "")
	req.Header.Set("Origin", "https://a.example")
	req.Header.Set("Access-Control-Request-Method", "PUT")
	resp, body := shared.do(t, req)
	if resp.StatusCode >= 300 || resp.Header.Get("Access-Control-Allow-Origin") != "https://a.example" || resp.Header.Get("Access-Control-Max-Age") != "60" {
		t.Errorf("%d %s %v", resp.StatusCode, body, resp.Header)
	}
}
