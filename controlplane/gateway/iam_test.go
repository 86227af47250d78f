package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"
	"time"
)

// signed makes the headers that sign a request with signature version 4: a second way of computing it, for a plain path and query.
func signed(method, host, path, query, body, keyID, secret, service string, at time.Time) []string {
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	mac := func(key []byte, s string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(s))
		return m.Sum(nil)
	}
	date := at.UTC().Format("20060102T150405Z")
	canonical := strings.Join([]string{method, path, query, "host:" + host, "x-amz-date:" + date, "", "host;x-amz-date", hash(body)}, "\n")
	scope := date[:8] + "/us-east-1/" + service + "/aws4_request"
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	signature := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hash(canonical)))
	return []string{"X-Amz-Date", date, "Authorization", "AWS4-HMAC-SHA256 Credential=" + keyID + "/" + scope +
		", SignedHeaders=host;x-amz-date, Signature=" + signature}
}

func TestAuthIAM(t *testing.T) {
	f := start(t)
	u, _ := url.Parse(f.URL)
	now := time.Now()
	sign := func(body, key, secret, service string, at time.Time) []string {
		return signed("POST", u.Host, "/fn/iam/p", "a=1", body, key, secret, service, at)
	}
	cases := []struct {
		name    string
		headers []string
		status  int
		errType string
	}{
		{"right", sign("{}", "default-INVOKER", "iam-secret", "lambda", now), 200, ""},
		{"unsigned", nil, 403, "AccessDeniedException"},
		{"bearer", []string{"Authorization", "Bearer default-INVOKER:s"}, 403, "IncompleteSignatureException"},
		{"wrong secret", sign("{}", "default-INVOKER", "guess", "lambda", now), 403, "InvalidSignatureException"},
		{"other body", sign("{ }", "default-INVOKER", "iam-secret", "lambda", now), 403, "InvalidSignatureException"},
		{"other service", sign("{}", "default-INVOKER", "iam-secret", "s3", now), 403, "InvalidSignatureException"},
		{"old", sign("{}", "default-INVOKER", "iam-secret", "lambda", now.Add(-16*time.Minute)), 403, "InvalidSignatureException"},
		{"unknown key", sign("{}", "nobody", "iam-secret", "lambda", now), 403, "UnrecognizedClientException"},
		{"other tenant", sign("{}", "shop-INVOKER", "iam-secret", "lambda", now), 403, "AccessDeniedException"},
	}
	for _, c := range cases {
		calls := f.invoker.count()
		resp, body := f.do(t, "POST", "/fn/iam/p?a=1", "{}", c.headers...)
		if resp.StatusCode != c.status || resp.Header.Get("X-Amzn-Errortype") != c.errType {
			t.Errorf("%s: %d %s %s", c.name, resp.StatusCode, resp.Header.Get("X-Amzn-Errortype"), body)
		}
		if (c.status == 200) != (f.invoker.count() == calls+1) {
			t.Errorf("%s: called %d times", c.name, f.invoker.count()-calls)
		}
	}
	e := decodeEvent(t, f.invoker.last(t).Payload)
	if e.RequestContext.Authorizer["iam"]["accessKey"] != "default-INVOKER" || e.RequestContext.AccountID != "000000000001" {
		t.Errorf("context %+v", e.RequestContext)
	}
}
