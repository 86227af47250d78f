package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
)

const (
	sigV4Algorithm = "AWS4-HMAC-SHA256"
	sigV4Time      = "20060102T150405Z"
	sigV4Unsigned  = "UNSIGNED-PAYLOAD"
	sigV4Streaming = "STREAMING-"

	// SigV4MaxSkew is how far a signature's time may be from ours.
	SigV4MaxSkew = 15 * time.Minute
	// SigV4MaxExpires is the longest life of a presigned URL.
	SigV4MaxExpires = 7 * 24 * time.Hour
)

// ErrSigV4KeyUnknown is what a lookup returns for a key that doesn't exist or is disabled.
var ErrSigV4KeyUnknown = errors.New("unknown access key")

// ErrSigV4KeyExpired is what a lookup returns for a key or session whose time is over.
var ErrSigV4KeyExpired = errors.New("expired access key")

// SigV4Lookup finds the secret of an access key. It returns ErrSigV4KeyUnknown or ErrSigV4KeyExpired (wrapped or not)
// where they apply; a fault with codes.Unauthenticated means an unknown key, too. Other errors reach Verify's caller as
// they are.
type SigV4Lookup func(ctx context.Context, accessKeyID string) (secret string, err error)

// SigV4Verifier checks AWS Signature Version 4, in the Authorization header or in the query.
type SigV4Verifier struct {
	lookup SigV4Lookup
	now    func() time.Time
}

// NewSigV4Verifier makes a verifier that finds secrets by lookup and the time by now.
func NewSigV4Verifier(lookup SigV4Lookup, now func() time.Time) *SigV4Verifier {
	return &SigV4Verifier{lookup: lookup, now: now}
}

// SigV4Scope is what a server expects of a credential scope; empty fields accept everything.
type SigV4Scope struct {
	Region  string
	Service string
}

// SigV4Identity is what a valid signature proves.
type SigV4Identity struct {
	AccessKeyID string
	Region      string
	Service     string
	SignedAt    time.Time
	// SessionToken is the X-Amz-Security-Token, for the caller to check; empty without one.
	SessionToken string
	// PayloadHash is the hash that was signed: hexadecimal SHA-256, UNSIGNED-PAYLOAD or a STREAMING-… name.
	PayloadHash string
	// Presigned tells that the signature was in the query.
	Presigned bool
}

// sigV4Claim is a signature as a request states it, before anything of it is believed.
type sigV4Claim struct {
	keyID, date, region, service string
	signedAt                     time.Time
	signedHeaders                []string
	signature                    string
	payloadHash                  string
	token                        string
	presigned                    bool
	expires                      time.Duration
}

// Verify checks the signature of r, whose whole body is given, against want. A refusal is a *SigV4Error.
// r must be as the server received it: path, query and Host are taken as sent.
func (v *SigV4Verifier) Verify(ctx context.Context, r *http.Request, body []byte, want SigV4Scope) (*SigV4Identity, error) {
	path, query := sigV4Target(r)
	params := parseSigV4Query(query)
	c, err := readSigV4Claim(r, params, want)
	if err != nil {
		return nil, err
	}
	if err := c.check(v.now(), want); err != nil {
		return nil, err
	}
	if err := c.bindPayload(body); err != nil {
		return nil, err
	}
	secret, err := v.lookup(ctx, c.keyID)
	if err != nil {
		return nil, c.lookupError(err)
	}
	if !c.matches(secret, r, path, params) {
		return nil, newSigV4Error(SigV4Mismatch, c.service,
			"The request signature we calculated does not match the signature you provided. Check your secret access key and signing method.")
	}
	return &SigV4Identity{
		AccessKeyID: c.keyID, Region: c.region, Service: c.service, SignedAt: c.signedAt,
		SessionToken: c.token, PayloadHash: c.payloadHash, Presigned: c.presigned,
	}, nil
}

// HasSigV4 tells whether r carries a signature in its header or query, right or wrong.
func HasSigV4(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Authorization"), sigV4Algorithm) || strings.Contains(r.URL.RawQuery, "X-Amz-Algorithm=")
}

func (c *sigV4Claim) lookupError(err error) error {
	switch {
	case errors.Is(err, ErrSigV4KeyUnknown):
		return newSigV4Error(SigV4UnknownKey, c.service, "The security token included in the request is invalid.")
	case errors.Is(err, ErrSigV4KeyExpired):
		return newSigV4Error(SigV4TokenExpired, c.service, "The security token included in the request is expired")
	case fault.From(err).Code == codes.Unauthenticated:
		return newSigV4Error(SigV4UnknownKey, c.service, "The security token included in the request is invalid.")
	}
	return err
}

func readSigV4Claim(r *http.Request, params []sigV4Param, want SigV4Scope) (*sigV4Claim, error) {
	if h := r.Header.Get("Authorization"); h != "" {
		return readSigV4Header(r, h, want)
	}
	if sigV4ParamValue(params, "X-Amz-Algorithm") != "" {
		return readSigV4Presigned(r, params, want)
	}
	return nil, newSigV4Error(SigV4Missing, want.Service, "Missing Authentication Token")
}

func readSigV4Header(r *http.Request, h string, want SigV4Scope) (*sigV4Claim, error) {
	algorithm, rest, _ := strings.Cut(h, " ")
	if algorithm != sigV4Algorithm {
		return nil, newSigV4Error(SigV4Incomplete, want.Service, "Authorization header must use "+sigV4Algorithm+".")
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if fields[name] == "" {
			return nil, newSigV4Error(SigV4Incomplete, want.Service, "Authorization header requires '"+name+"' parameter.")
		}
	}
	c := &sigV4Claim{
		signedHeaders: strings.Split(fields["SignedHeaders"], ";"),
		signature:     fields["Signature"],
		payloadHash:   r.Header.Get("X-Amz-Content-Sha256"),
		token:         r.Header.Get("X-Amz-Security-Token"),
	}
	if err := c.setCredential(fields["Credential"], want); err != nil {
		return nil, err
	}
	return c, c.setTime(sigV4HeaderTime(r))
}

// sigV4HeaderTime is X-Amz-Date, or Date in the same form; a Date in HTTP's own form is converted.
func sigV4HeaderTime(r *http.Request) string {
	if s := r.Header.Get("X-Amz-Date"); s != "" {
		return s
	}
	s := r.Header.Get("Date")
	if t, err := http.ParseTime(s); err == nil {
		return t.UTC().Format(sigV4Time)
	}
	return s
}

func readSigV4Presigned(r *http.Request, params []sigV4Param, want SigV4Scope) (*sigV4Claim, error) {
	get := func(name string) string { return sigV4ParamValue(params, name) }
	if get("X-Amz-Algorithm") != sigV4Algorithm {
		return nil, newSigV4Error(SigV4Incomplete, want.Service, "X-Amz-Algorithm only supports \""+sigV4Algorithm+"\".")
	}
	for _, name := range []string{"X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		if get(name) == "" {
			return nil, newSigV4Error(SigV4Incomplete, want.Service, "AWS query-string parameters must include '"+name+"'.")
		}
	}
	c := &sigV4Claim{
		signedHeaders: strings.Split(get("X-Amz-SignedHeaders"), ";"),
		signature:     get("X-Amz-Signature"),
		payloadHash:   get("X-Amz-Content-Sha256"),
		token:         get("X-Amz-Security-Token"),
		presigned:     true,
	}
	if c.payloadHash == "" {
		c.payloadHash = r.Header.Get("X-Amz-Content-Sha256")
	}
	if err := c.setCredential(get("X-Amz-Credential"), want); err != nil {
		return nil, err
	}
	if c.payloadHash == "" && c.service == "s3" {
		c.payloadHash = sigV4Unsigned
	}
	if err := c.setExpires(get("X-Amz-Expires")); err != nil {
		return nil, err
	}
	return c, c.setTime(get("X-Amz-Date"))
}

// setExpires leaves 0 for a presigned request without X-Amz-Expires: services other than S3 then allow SigV4MaxSkew.
func (c *sigV4Claim) setExpires(s string) error {
	if s == "" && c.service != "s3" {
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || time.Duration(n)*time.Second > SigV4MaxExpires {
		return newSigV4Error(SigV4Incomplete, c.service, "X-Amz-Expires must be a number of seconds between 0 and 604800.")
	}
	c.expires = time.Duration(n) * time.Second
	return nil
}

func (c *sigV4Claim) setCredential(s string, want SigV4Scope) error {
	parts := strings.Split(s, "/")
	// An access key id may hold slashes, the scope can't: count from the end.
	n := len(parts)
	if n < 5 || parts[n-1] != "aws4_request" || parts[0] == "" {
		return newSigV4Error(SigV4Incomplete, want.Service,
			"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/aws4_request, got '"+s+"'.")
	}
	c.keyID = strings.Join(parts[:n-4], "/")
	c.date, c.region, c.service = parts[n-4], parts[n-3], parts[n-2]
	return nil
}

func (c *sigV4Claim) setTime(s string) error {
	t, err := time.Parse(sigV4Time, s)
	if err != nil {
		return newSigV4Error(SigV4Incomplete, c.service, "Date must be in ISO-8601 'basic format'. Got '"+s+"'.")
	}
	c.signedAt = t
	return nil
}

// check refuses a claim that is out of scope or out of time, whatever its signature.
func (c *sigV4Claim) check(now time.Time, want SigV4Scope) error {
	if want.Service != "" && c.service != want.Service {
		return newSigV4Error(SigV4Scoped, want.Service, "Credential should be scoped to correct service: '"+want.Service+"'.")
	}
	if want.Region != "" && c.region != want.Region {
		return newSigV4Error(SigV4Scoped, c.service, "Credential should be scoped to a valid region.")
	}
	if c.date != c.signedAt.Format("20060102") {
		return newSigV4Error(SigV4Scoped, c.service, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '"+
			c.date+"' != '"+c.signedAt.Format("20060102")+"'.")
	}
	if !sigV4SignsHost(c.signedHeaders) {
		return newSigV4Error(SigV4Scoped, c.service, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return c.checkTime(now)
}

func (c *sigV4Claim) checkTime(now time.Time) error {
	if c.signedAt.Sub(now) > SigV4MaxSkew {
		return newSigV4Error(SigV4Skewed, c.service, "Signature not yet current: "+c.signedAt.Format(sigV4Time)+
			" is still later than "+now.Add(SigV4MaxSkew).UTC().Format(sigV4Time)+" ("+now.UTC().Format(sigV4Time)+" + 15 min.)")
	}
	life, kind := SigV4MaxSkew, SigV4Skewed
	if c.presigned {
		kind = SigV4Expired
		if c.expires > 0 || c.service == "s3" {
			life = c.expires
		}
	}
	if now.Sub(c.signedAt) > life {
		return newSigV4Error(kind, c.service, "Signature expired: "+c.signedAt.Format(sigV4Time)+
			" is now earlier than "+now.Add(-life).UTC().Format(sigV4Time)+" ("+now.UTC().Format(sigV4Time)+" - "+life.String()+".)")
	}
	return nil
}

func sigV4SignsHost(names []string) bool {
	for _, n := range names {
		if n == "host" || n == ":authority" {
			return true
		}
	}
	return false
}

// bindPayload fills in the hash that a client left out, and holds a stated one against the body.
func (c *sigV4Claim) bindPayload(body []byte) error {
	if c.payloadHash == sigV4Unsigned || strings.HasPrefix(c.payloadHash, sigV4Streaming) {
		return nil
	}
	sum := sha256.Sum256(body)
	actual := hex.EncodeToString(sum[:])
	if c.payloadHash == "" {
		c.payloadHash = actual
	}
	if !strings.EqualFold(c.payloadHash, actual) {
		return newSigV4Error(SigV4PayloadMismatch, c.service, "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	return nil
}

// matches tries the path with and without normalising it: SDKs differ, and AWS accepts both.
func (c *sigV4Claim) matches(secret string, r *http.Request, path string, params []sigV4Param) bool {
	for _, p := range sigV4Paths(c.service, path) {
		if hmac.Equal([]byte(c.sign(secret, c.canonicalRequest(r, p, params))), []byte(c.signature)) {
			return true
		}
	}
	return false
}

func (c *sigV4Claim) sign(secret, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	toSign := sigV4Algorithm + "\n" + c.signedAt.Format(sigV4Time) + "\n" +
		c.date + "/" + c.region + "/" + c.service + "/aws4_request\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + secret)
	for _, part := range []string{c.date, c.region, c.service, "aws4_request", toSign} {
		key = sigV4HMAC(key, part)
	}
	return hex.EncodeToString(key)
}

func sigV4HMAC(key []byte, data string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(data))
	return m.Sum(nil)
}

// sigV4Target is path and query as the client sent them; net/http's own parsing may have re-encoded the path.
func sigV4Target(r *http.Request) (path, query string) {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = r.URL
		}
		return u.EscapedPath(), u.RawQuery
	}
	path, query, _ = strings.Cut(target, "?")
	return path, query
}
