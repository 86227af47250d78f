package auth

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	sigV4TestID     = "AKIDEXAMPLE"
	sigV4TestSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

// sigV4Vector is a line of the vector files: a whole signed request.
type sigV4Vector struct {
	Client  string      `json:"client"`
	Method  string      `json:"method"`
	Target  string      `json:"target"`
	Headers [][2]string `json:"headers"`
	Body    string      `json:"body_b64"`
	Auth    string      `json:"auth"`
}

// request parses the vector as a server would.
func (v sigV4Vector) request(t *testing.T) (*http.Request, []byte) {
	t.Helper()
	body, err := base64.StdEncoding.DecodeString(v.Body)
	if err != nil {
		t.Fatal(err)
	}
	var wire bytes.Buffer
	wire.WriteString(v.Method + " " + v.Target + " HTTP/1.1\r\n")
	for _, h := range v.Headers {
		if !strings.EqualFold(h[0], "Transfer-Encoding") {
			wire.WriteString(h[0] + ": " + h[1] + "\r\n")
		}
	}
	wire.WriteString("\r\n")
	r, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		t.Fatalf("%s %s: %v", v.Method, v.Target, err)
	}
	return r, body
}

func (v sigV4Vector) signedAt(t *testing.T) time.Time {
	t.Helper()
	r, _ := v.request(t)
	s := r.URL.Query().Get("X-Amz-Date")
	if s == "" {
		s = sigV4HeaderTime(r)
	}
	at, err := time.Parse(sigV4Time, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func loadSigV4Vectors(t *testing.T, path string) []sigV4Vector {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []sigV4Vector
	for line := range bytes.Lines(data) {
		var v sigV4Vector
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		if v.Auth != "query-sigv2" {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no vectors in %s", path)
	}
	return out
}

func sigV4VerifierAt(now time.Time) *SigV4Verifier {
	lookup := func(_ context.Context, id string) (string, error) {
		switch id {
		case sigV4TestID:
			return sigV4TestSecret, nil
		case "AKIDEXPIRED":
			return "", ErrSigV4KeyExpired
		case "AKIDDISABLED":
			return "", fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "no such key")
		case "AKIDBROKEN":
			return "", errors.New("disk on fire")
		}
		return "", ErrSigV4KeyUnknown
	}
	return NewSigV4Verifier(lookup, func() time.Time { return now })
}

// MAYFLY_SIGV4_VECTORS names another file of requests, all signed by the test key.
func TestSigV4VectorsVerify(t *testing.T) {
	path := os.Getenv("MAYFLY_SIGV4_VECTORS")
	if path == "" {
		path = "testdata/sigv4.jsonl"
	}
	vectors := loadSigV4Vectors(t, path)
	for _, v := range vectors {
		r, body := v.request(t)
		id, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{})
		if err != nil {
			t.Errorf("%s: %s %s: %v", v.Client, v.Method, v.Target, err)
			continue
		}
		if id.AccessKeyID != sigV4TestID || id.Presigned != (v.Auth == "query-v4") {
			t.Errorf("%s: identity %+v", v.Client, id)
		}
	}
	t.Logf("%d requests of %s", len(vectors), path)
}

// Whatever the signature covers can't be changed unnoticed.
func TestSigV4TamperingIsNoticed(t *testing.T) {
	for _, v := range loadSigV4Vectors(t, "testdata/sigv4.jsonl") {
		now := v.signedAt(t)
		tamper := map[string]func(r *http.Request, body []byte) []byte{
			"method": func(r *http.Request, b []byte) []byte { r.Method = "DELETE"; return b },
			"path": func(r *http.Request, b []byte) []byte {
				r.RequestURI = strings.Replace(r.RequestURI, "/", "/x", 1)
				return b
			},
			"host": func(r *http.Request, b []byte) []byte { r.Host = "evil.example"; return b },
			"query": func(r *http.Request, b []byte) []byte {
				sep := "?"
				if strings.Contains(r.RequestURI, "?") {
					sep = "&"
				}
				r.RequestURI += sep + "extra=1"
				return b
			},
			"signature": func(r *http.Request, b []byte) []byte {
				if h := r.Header.Get("Authorization"); h != "" {
					r.Header.Set("Authorization", flipLast(h))
				}
				r.RequestURI = strings.Replace(r.RequestURI, "X-Amz-Signature=", "X-Amz-Signature=0", 1)
				return b
			},
		}
		for what, change := range tamper {
			r, body := v.request(t)
			body = change(r, body)
			_, err := sigV4VerifierAt(now).Verify(t.Context(), r, body, SigV4Scope{})
			requireSigV4(t, v.Client+", changed "+what, err, SigV4Mismatch)
		}
	}
}

func flipLast(s string) string {
	c := byte('0')
	if s[len(s)-1] == '0' {
		c = '1'
	}
	return s[:len(s)-1] + string(c)
}

func requireSigV4(t *testing.T, what string, err error, kind SigV4Kind) *SigV4Error {
	t.Helper()
	var e *SigV4Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: %v is no SigV4Error", what, err)
	}
	if e.Kind != kind {
		t.Fatalf("%s: kind %d (%v), want %d", what, e.Kind, e, kind)
	}
	return e
}

func TestSigV4BodyIsBound(t *testing.T) {
	for _, v := range loadSigV4Vectors(t, "testdata/sigv4.jsonl") {
		r, _ := v.request(t)
		_, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, []byte("another body"), SigV4Scope{})
		switch v.Client {
		case "s3 unsigned payload", "s3 streaming trailer", "presigned s3", "presigned s3 with content type":
			if err != nil {
				t.Errorf("%s: %v", v.Client, err)
			}
		case "stated hash", "s3 path":
			requireSigV4(t, v.Client, err, SigV4PayloadMismatch)
		default:
			requireSigV4(t, v.Client, err, SigV4Mismatch)
		}
	}
}

func sigV4VectorNamed(t *testing.T, name string) sigV4Vector {
	t.Helper()
	for _, v := range loadSigV4Vectors(t, "testdata/sigv4.jsonl") {
		if v.Client == name {
			return v
		}
	}
	t.Fatalf("no vector %q", name)
	return sigV4Vector{}
}

func TestSigV4Time(t *testing.T) {
	cases := []struct {
		vector string
		offset time.Duration
		kind   SigV4Kind
		ok     bool
	}{
		{"get", 15 * time.Minute, 0, true},
		{"get", -15 * time.Minute, 0, true},
		{"get", 15*time.Minute + time.Second, SigV4Skewed, false},
		{"get", -15*time.Minute - time.Second, SigV4Skewed, false},
		{"presigned s3", 900 * time.Second, 0, true},
		{"presigned s3", 901 * time.Second, SigV4Expired, false},
		{"presigned lambda", -16 * time.Minute, SigV4Skewed, false},
	}
	for _, c := range cases {
		v := sigV4VectorNamed(t, c.vector)
		r, body := v.request(t)
		_, err := sigV4VerifierAt(v.signedAt(t).Add(c.offset)).Verify(t.Context(), r, body, SigV4Scope{})
		if c.ok {
			if err != nil {
				t.Errorf("%s at %v: %v", c.vector, c.offset, err)
			}
			continue
		}
		e := requireSigV4(t, c.vector, err, c.kind)
		if !fault.Is(e, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_EXPIRED) {
			t.Errorf("%s: fault %v", c.vector, fault.From(e).Reason)
		}
	}
}

func TestSigV4Scope(t *testing.T) {
	v := sigV4VectorNamed(t, "get")
	for _, want := range []SigV4Scope{{Service: "s3"}, {Region: "us-east-1"}} {
		r, body := v.request(t)
		_, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, want)
		requireSigV4(t, "scope", err, SigV4Scoped)
	}
	r, body := v.request(t)
	id, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{Service: "lambda", Region: "eu-north-1"})
	if err != nil || id.Service != "lambda" || id.Region != "eu-north-1" {
		t.Errorf("right scope: %+v, %v", id, err)
	}
}

func TestSigV4Token(t *testing.T) {
	for name, want := range map[string]string{"session token": "to/ken+with==", "presigned lambda": "tok/en"} {
		v := sigV4VectorNamed(t, name)
		r, body := v.request(t)
		id, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{})
		if err != nil || id.SessionToken != want {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

func TestSigV4Malformed(t *testing.T) {
	good := sigV4VectorNamed(t, "get")
	r, _ := good.request(t)
	auth := r.Header.Get("Authorization")
	cases := []struct {
		name, authorization, date string
		kind                      SigV4Kind
		code                      string
	}{
		{"nothing", "", "", SigV4Missing, "MissingAuthenticationTokenException"},
		{"bearer", "Bearer AKID:secret", "", SigV4Incomplete, "IncompleteSignatureException"},
		{"no signature", strings.Split(auth, ", Signature")[0], "", SigV4Incomplete, "IncompleteSignatureException"},
		{"short credential", strings.Replace(auth, "/aws4_request", "", 1), "", SigV4Incomplete, "IncompleteSignatureException"},
		{"no date", auth, "-", SigV4Incomplete, "IncompleteSignatureException"},
		{"other day", auth, "20261124T000203Z", SigV4Scoped, "InvalidSignatureException"},
		{"host unsigned", strings.Replace(auth, "host;", "", 1), "", SigV4Scoped, "InvalidSignatureException"},
		{"unknown key", strings.Replace(auth, sigV4TestID, "AKIDOTHER", 1), "", SigV4UnknownKey, "UnrecognizedClientException"},
		{"disabled key", strings.Replace(auth, sigV4TestID, "AKIDDISABLED", 1), "", SigV4UnknownKey, "UnrecognizedClientException"},
		{"expired key", strings.Replace(auth, sigV4TestID, "AKIDEXPIRED", 1), "", SigV4TokenExpired, "ExpiredTokenException"},
		{"wrong", flipLast(auth), "", SigV4Mismatch, "InvalidSignatureException"},
	}
	for _, c := range cases {
		r, body := good.request(t)
		r.Header.Del("Authorization")
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		if c.date != "" {
			r.Header.Set("X-Amz-Date", c.date)
		}
		_, err := sigV4VerifierAt(good.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{})
		e := requireSigV4(t, c.name, err, c.kind)
		if e.Code != c.code || e.Status != http.StatusForbidden {
			t.Errorf("%s: %d %s", c.name, e.Status, e.Code)
		}
	}
}

func TestSigV4LookupFailureIsNoRefusal(t *testing.T) {
	v := sigV4VectorNamed(t, "get")
	r, body := v.request(t)
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), sigV4TestID, "AKIDBROKEN", 1))
	_, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{})
	var e *SigV4Error
	if err == nil || errors.As(err, &e) {
		t.Errorf("got %v, want the lookup's own error", err)
	}
}

func TestSigV4ExpiresBounds(t *testing.T) {
	v := sigV4VectorNamed(t, "presigned s3")
	for _, expires := range []string{"604801", "-1", "soon", ""} {
		v := v
		v.Target = strings.Replace(v.Target, "X-Amz-Expires=900", "X-Amz-Expires="+expires, 1)
		r, body := v.request(t)
		_, err := sigV4VerifierAt(v.signedAt(t)).Verify(t.Context(), r, body, SigV4Scope{})
		requireSigV4(t, "expires "+expires, err, SigV4Incomplete)
	}
}

func TestSigV4CodesPerService(t *testing.T) {
	cases := []struct {
		service string
		kind    SigV4Kind
		code    string
		status  int
		reason  mayflyv1.ErrorReason
	}{
		{"s3", SigV4Skewed, "RequestTimeTooSkewed", 403, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_EXPIRED},
		{"s3", SigV4Mismatch, "SignatureDoesNotMatch", 403, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_MISMATCH},
		{"s3", SigV4UnknownKey, "InvalidAccessKeyId", 403, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED},
		{"s3", SigV4PayloadMismatch, "XAmzContentSHA256Mismatch", 400, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_MISMATCH},
		{"sts", SigV4Mismatch, "SignatureDoesNotMatch", 403, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_MISMATCH},
		{"sts", SigV4UnknownKey, "InvalidClientTokenId", 403, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED},
		{"events", SigV4UnknownKey, "UnrecognizedClientException", 400, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED},
		{"lambda", SigV4Expired, "InvalidSignatureException", 403, mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_EXPIRED},
	}
	for _, c := range cases {
		e := newSigV4Error(c.kind, c.service, "m")
		if e.Code != c.code || e.Status != c.status || fault.From(e).Reason != c.reason {
			t.Errorf("%s kind %d: %s %d %v", c.service, c.kind, e.Code, e.Status, fault.From(e).Reason)
		}
	}
}

func FuzzSigV4NeverPanics(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=00", "/x?a=%zz&b", "20261123T010203Z")
	f.Fuzz(func(t *testing.T, authorization, target, date string) {
		r := &http.Request{Method: "GET", RequestURI: "/" + target, Header: http.Header{}, Host: "h"}
		r.Header["Authorization"] = []string{authorization}
		r.Header["X-Amz-Date"] = []string{date}
		now := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
		if _, err := sigV4VerifierAt(now).Verify(t.Context(), r, nil, SigV4Scope{}); err == nil {
			t.Errorf("accepted %q", authorization)
		}
	})
}
