package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// eventJSON is a payload of format 2.0 as encoding/json reads it; unknown fields are an error.
type eventJSON struct {
	Version               string            `json:"version"`
	RouteKey              string            `json:"routeKey"`
	RawPath               string            `json:"rawPath"`
	RawQueryString        string            `json:"rawQueryString"`
	Cookies               []string          `json:"cookies"`
	Headers               map[string]string `json:"headers"`
	QueryStringParameters map[string]string `json:"queryStringParameters"`
	RequestContext        struct {
		AccountID    string                       `json:"accountId"`
		APIID        string                       `json:"apiId"`
		Authorizer   map[string]map[string]string `json:"authorizer"`
		DomainName   string                       `json:"domainName"`
		DomainPrefix string                       `json:"domainPrefix"`
		HTTP         struct {
			Method, Path, Protocol, SourceIP, UserAgent string
		} `json:"http"`
		RequestID string `json:"requestId"`
		RouteKey  string `json:"routeKey"`
		Stage     string `json:"stage"`
		Time      string `json:"time"`
		TimeEpoch int64  `json:"timeEpoch"`
	} `json:"requestContext"`
	Body            *string `json:"body"`
	IsBase64Encoded bool    `json:"isBase64Encoded"`
}

func decodeEvent(t *testing.T, payload []byte) eventJSON {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.DisallowUnknownFields()
	var e eventJSON
	if err := d.Decode(&e); err != nil {
		t.Fatalf("%v in %s", err, payload)
	}
	return e
}

var testTime = time.Date(2026, 11, 23, 2, 24, 27, 123e6, time.UTC)

// eventOf makes the event of a request given in wire format.
func eventOf(t *testing.T, wire, body string, tgt target, who *caller) eventJSON {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(wire, "\n", "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	_, query := targetOf(r)
	e := &event{
		r: r, target: tgt, query: query, body: []byte(body), requestID: "req-1", traceID: "Root=1-2-3", sourceIP: "10.1.2.3",
		now: testTime, caller: who,
	}
	return decodeEvent(t, e.encode())
}

func testTarget(path string) target {
	return target{kind: targetFunction, namespace: "default", function: "hello", path: path, domain: "h.example"}
}

func TestEvent(t *testing.T) {
	e := eventOf(t, `POST /fn/hello/a%20b?x=1&y=a+b&x=%262&z&bad=%zz HTTP/1.1
Host: h.example:7080
Content-Type: application/json; charset=utf-8
Content-Length: 17
Cookie: a=1; b=2
Cookie: c="3"
X-Two: one
X-Two: two
User-Agent: test/1 "q"
Authorization: Basic abc
Connection: keep-alive
X-Forwarded-For: 6.6.6.6
X-Forwarded-Proto: gopher
X-Amzn-Trace-Id: Root=forged`, `{"text":"é\n\""}`, testTarget("/a%20b"), nil)

	if e.Version != "2.0" || e.RouteKey != "$default" || e.RawPath != "/a%20b" || e.RawQueryString != "x=1&y=a+b&x=%262&z&bad=%zz" {
		t.Errorf("head: %+v", e)
	}
	want := map[string]string{
		"host": "h.example:7080", "content-type": "application/json; charset=utf-8", "content-length": "17", "x-two": "one,two",
		"user-agent": `test/1 "q"`, "authorization": "Basic abc", "x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "http",
		"x-forwarded-port": "", "x-amzn-trace-id": "Root=1-2-3",
	}
	if !reflect.DeepEqual(e.Headers, want) {
		t.Errorf("headers:\n got %v\nwant %v", e.Headers, want)
	}
	if want := []string{"a=1", "b=2", `c="3"`}; !reflect.DeepEqual(e.Cookies, want) {
		t.Errorf("cookies %q", e.Cookies)
	}
	if want := map[string]string{"x": "1,&2", "y": "a b", "z": "", "bad": "%zz"}; !reflect.DeepEqual(e.QueryStringParameters, want) {
		t.Errorf("query %q", e.QueryStringParameters)
	}
	if e.Body == nil || *e.Body != `{"text":"é\n\""}` || e.IsBase64Encoded {
		t.Errorf("body %v, base64 %v", e.Body, e.IsBase64Encoded)
	}
	c := e.RequestContext
	if c.AccountID != "anonymous" || c.APIID != "hello" || c.DomainName != "h.example" || c.DomainPrefix != "hello" || c.Authorizer != nil ||
		c.RequestID != "req-1" || c.RouteKey != "$default" || c.Stage != "$default" ||
		c.Time != "23/Nov/2026:02:24:27 +0000" || c.TimeEpoch != 1795400667123 {
		t.Errorf("context %+v", c)
	}
	if h := c.HTTP; h.Method != "POST" || h.Path != "/a%20b" || h.Protocol != "HTTP/1.1" || h.SourceIP != "10.1.2.3" || h.UserAgent != `test/1 "q"` {
		t.Errorf("http %+v", h)
	}
}

func TestEventOfAPlainGet(t *testing.T) {
	tgt := testTarget("/")
	tgt.namespace = "shop"
	e := eventOf(t, "GET / HTTP/1.1\nHost: h", "", tgt, nil)
	if e.Body != nil || e.IsBase64Encoded || e.Cookies != nil || e.QueryStringParameters != nil || e.RawQueryString != "" {
		t.Errorf("absent fields are present: %+v", e)
	}
	if e.RequestContext.APIID != "hello.shop" {
		t.Errorf("apiId %q", e.RequestContext.APIID)
	}
}

func TestEventBodies(t *testing.T) {
	cases := []struct {
		name, header, body, want string
		base64                   bool
	}{
		{"text", "Content-Type: text/plain", "hé", "hé", false},
		{"json", "Content-Type: APPLICATION/JSON", "{}", "{}", false},
		{"suffix", "Content-Type: application/vnd.api+json", "{}", "{}", false},
		{"xml", "Content-Type: application/xml", "<a/>", "<a/>", false},
		{"text that isn't UTF-8", "Content-Type: text/plain", "\xff\xfe", "//4=", true},
		{"form", "Content-Type: application/x-www-form-urlencoded", "a=1", "YT0x", true},
		{"multipart", "Content-Type: multipart/form-data; boundary=x", "hi", "aGk=", true},
		{"octets", "Content-Type: application/octet-stream", "hi", "aGk=", true},
		{"no type", "X-A: b", "hi", "aGk=", true},
		{"compressed", "Content-Encoding: gzip\nContent-Type: text/plain", "hi", "aGk=", true},
	}
	for _, c := range cases {
		e := eventOf(t, "POST / HTTP/1.1\nHost: h\n"+c.header, c.body, testTarget("/"), nil)
		if e.Body == nil || *e.Body != c.want || e.IsBase64Encoded != c.base64 {
			t.Errorf("%s: %v %v", c.name, e.Body, e.IsBase64Encoded)
		}
	}
}

func TestEventAuthorizer(t *testing.T) {
	wire := "GET / HTTP/1.1\nHost: h\nAuthorization: Bearer AKIA:very-secret"
	e := eventOf(t, wire, "", testTarget("/"), &caller{keyID: "AKIA", accountID: "000000000001", namespace: "*", role: "INVOKER"})
	if want := map[string]string{"accessKey": "AKIA", "namespace": "*", "role": "INVOKER"}; !reflect.DeepEqual(e.RequestContext.Authorizer["key"], want) {
		t.Errorf("authorizer %v", e.RequestContext.Authorizer)
	}
	if h, ok := e.Headers["authorization"]; ok {
		t.Errorf("the function sees the key's secret: %q", h)
	}
	e = eventOf(t, wire, "", testTarget("/"), &caller{keyID: "AKIA", accountID: "000000000001", iam: true})
	iam := e.RequestContext.Authorizer["iam"]
	if iam["accessKey"] != "AKIA" || iam["accountId"] != "000000000001" || iam["userArn"] != "arn:aws:iam::000000000001:user/AKIA" ||
		e.RequestContext.AccountID != "000000000001" {
		t.Errorf("iam %v", iam)
	}
}

func TestEventManyQueryParameters(t *testing.T) {
	var q []string
	for i := range 5000 {
		q = append(q, fmt.Sprintf("k%d=%d", i%2500, i))
	}
	b := appendQuery([]byte(`{"a":1`), strings.Join(q, "&"))
	var got struct {
		Q map[string]string `json:"queryStringParameters"`
	}
	if err := json.Unmarshal(append(b, '}'), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Q) != 2500 || got.Q["k7"] != "7,2507" {
		t.Errorf("%d parameters, k7 is %q", len(got.Q), got.Q["k7"])
	}
}

func FuzzEventIsJSON(f *testing.F) {
	f.Add("/p", "a=b&c", "a=1; b", "X-A", "v\"\\", "text/plain", "body")
	f.Add("/\x00\xff", "%00=\x01&&=", ";;", "é", "\x7f\x80", "application/json", "\xff")
	f.Fuzz(func(t *testing.T, path, query, cookie, name, value, contentType, body string) {
		r := &http.Request{Method: "POST", Host: value, Proto: "HTTP/1.1", Header: http.Header{
			"Cookie": {cookie}, name: {value, value}, "Content-Type": {contentType},
		}}
		e := &event{r: r, target: testTarget(path), query: query, body: []byte(body), now: testTime}
		payload := e.encode()
		if !json.Valid(payload) {
			t.Fatalf("no JSON: %s", payload)
		}
	})
}
