package gateway

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// event is all that goes into a payload of format 2.0.
type event struct {
	r         *http.Request
	target    target
	query     string
	body      []byte
	requestID string
	traceID   string
	sourceIP  string
	now       time.Time
	caller    *caller
}

// caller is who was authenticated, nil for auth NONE.
type caller struct {
	keyID     string
	accountID string
	namespace string
	role      string
	// iam tells a signature from a bearer key, whose secret the function must not see.
	iam bool
}

// sizeHint is a guess of the event's size in bytes that is seldom too small.
func (e *event) sizeHint(encoded bool) int {
	n := 1024 + 2*len(e.target.path) + 3*len(e.query)
	for name, values := range e.r.Header {
		n += len(name) + 8
		for _, v := range values {
			n += len(v) + 8
		}
	}
	if encoded {
		return n + base64.StdEncoding.EncodedLen(len(e.body))
	}
	return n + len(e.body) + len(e.body)/16
}

// encode makes the event's JSON.
func (e *event) encode() []byte {
	encoded := len(e.body) > 0 && !isText(e.r.Header, e.body)
	b := make([]byte, 0, e.sizeHint(encoded))
	b = append(b, `{"version":"2.0","routeKey":"$default","rawPath":`...)
	b = appendString(b, e.target.path)
	b = append(b, `,"rawQueryString":`...)
	b = appendString(b, e.query)
	b = appendCookies(b, e.r.Header["Cookie"])
	b = append(b, `,"headers":{`...)
	b = e.appendHeaders(b)
	b = append(b, '}')
	b = appendQuery(b, e.query)
	b = append(b, `,"requestContext":{`...)
	b = e.appendContext(b)
	b = append(b, '}')
	b = e.appendBody(b, encoded)
	return append(b, '}')
}

func (e *event) appendBody(b []byte, encoded bool) []byte {
	if len(e.body) == 0 {
		return append(b, `,"isBase64Encoded":false`...)
	}
	b = append(b, `,"body":`...)
	if !encoded {
		return append(appendString(b, e.body), `,"isBase64Encoded":false`...)
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, e.body)
	return append(b, `","isBase64Encoded":true`...)
}

// isText tells whether a body goes into the event as it is.
func isText(h http.Header, body []byte) bool {
	if len(h["Content-Encoding"]) > 0 {
		return false
	}
	return textType(h.Get("Content-Type")) && utf8.Valid(body)
}

// textType is Lambda's short list; forms, for one, are base64.
func textType(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	if strings.HasPrefix(t, "text/") {
		return true
	}
	sub, ok := strings.CutPrefix(t, "application/")
	if !ok {
		return false
	}
	return sub == "json" || sub == "xml" || sub == "javascript" || strings.HasSuffix(sub, "+json") || strings.HasSuffix(sub, "+xml")
}

func appendCookies(b []byte, headers []string) []byte {
	if len(headers) == 0 {
		return b
	}
	b = append(b, `,"cookies":[`...)
	first := true
	for _, h := range headers {
		for c := range strings.SplitSeq(h, ";") {
			c = strings.TrimSpace(c)
			if c == "" {
				continue
			}
			b = appendComma(b, &first)
			b = appendString(b, c)
		}
	}
	return append(b, ']')
}

func appendComma(b []byte, first *bool) []byte {
	if *first {
		*first = false
		return b
	}
	return append(b, ',')
}

// appendHeaders appends the request's headers in lower case, and those that the gateway makes.
func (e *event) appendHeaders(b []byte) []byte {
	b = append(b, `"host":`...)
	b = appendString(b, e.r.Host)
	b = appendField(b, "x-amzn-trace-id", e.traceID)
	b = appendField(b, "x-forwarded-for", e.sourceIP)
	b = appendField(b, "x-forwarded-port", localPort(e.r))
	b = appendField(b, "x-forwarded-proto", e.scheme())
	for name, values := range e.r.Header {
		if e.hidden(name) || len(values) == 0 {
			continue
		}
		b = append(b, ',', '"')
		b = appendLower(b, name)
		b = append(b, '"', ':', '"')
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendEscaped(b, v)
		}
		b = append(b, '"')
	}
	return b
}

func (e *event) scheme() string {
	if e.r.TLS != nil {
		return "https"
	}
	return "http"
}

// hidden tells of headers that functions don't see as the client sent them.
func (e *event) hidden(canonical string) bool {
	switch canonical {
	case "Cookie", "Host", "X-Amzn-Trace-Id", "X-Forwarded-For", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded":
		return true
	case "Authorization":
		return e.caller != nil && !e.caller.iam
	}
	return hopByHop(canonical)
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return appendString(b, value)
}

func (e *event) appendContext(b []byte) []byte {
	account := "anonymous"
	if e.caller != nil {
		account = e.caller.accountID
	}
	b = append(b, `"accountId":`...)
	b = appendString(b, account)
	b = appendField(b, "apiId", e.apiID())
	b = e.appendAuthorizer(b)
	b = appendField(b, "domainName", e.target.domain)
	b = appendField(b, "domainPrefix", e.apiID())
	b = append(b, `,"http":{"method":`...)
	b = appendString(b, e.r.Method)
	b = appendField(b, "path", e.target.path)
	b = appendField(b, "protocol", e.r.Proto)
	b = appendField(b, "sourceIp", e.sourceIP)
	b = appendField(b, "userAgent", e.r.UserAgent())
	b = append(b, '}')
	b = appendField(b, "requestId", e.requestID)
	b = append(b, `,"routeKey":"$default","stage":"$default","time":"`...)
	b = e.now.UTC().AppendFormat(b, "02/Jan/2006:15:04:05 +0000")
	b = append(b, `","timeEpoch":`...)
	return strconv.AppendInt(b, e.now.UnixMilli(), 10)
}

// apiID stands for the id of a URL: the function's name, with its namespace unless that is the default one.
func (e *event) apiID() string {
	if e.target.namespace == defaultNamespace {
		return e.target.function
	}
	return e.target.function + "." + e.target.namespace
}

func (e *event) appendAuthorizer(b []byte) []byte {
	c := e.caller
	switch {
	case c == nil:
		return b
	case c.iam:
		b = append(b, `,"authorizer":{"iam":{"accessKey":`...)
		b = appendString(b, c.keyID)
		b = appendField(b, "accountId", c.accountID)
		b = appendField(b, "callerId", c.keyID)
		b = append(b, `,"cognitoIdentity":null,"principalOrgId":null`...)
		b = appendField(b, "userArn", "arn:aws:iam::"+c.accountID+":user/"+c.keyID)
		b = appendField(b, "userId", c.keyID)
	default:
		b = append(b, `,"authorizer":{"key":{"accessKey":`...)
		b = appendString(b, c.keyID)
		b = appendField(b, "namespace", c.namespace)
		b = appendField(b, "role", c.role)
	}
	return append(b, '}', '}')
}

// queryParam is a decoded query parameter; done marks one that an earlier one of its name has taken in.
type queryParam struct {
	name, value string
	done        bool
}

// appendQuery appends queryStringParameters, if there are any, those of one name joined by commas.
func appendQuery(b []byte, raw string) []byte {
	var few [16]queryParam
	params := parseQuery(few[:0], raw)
	if len(params) == 0 {
		return b
	}
	b = append(b, `,"queryStringParameters":{`...)
	first := true
	if len(params) > len(few) {
		b = appendMany(b, params)
		return append(b, '}')
	}
	for i := range params {
		if params[i].done {
			continue
		}
		b = appendComma(b, &first)
		b = appendString(b, params[i].name)
		b = append(b, ':', '"')
		b = appendEscaped(b, params[i].value)
		for j := i + 1; j < len(params); j++ {
			if params[j].name == params[i].name {
				params[j].done = true
				b = appendEscaped(append(b, ','), params[j].value)
			}
		}
		b = append(b, '"')
	}
	return append(b, '}')
}

// appendMany joins by map: a query of thousands of names must not take quadratic time.
func appendMany(b []byte, params []queryParam) []byte {
	values := make(map[string][]string, len(params))
	for _, p := range params {
		values[p.name] = append(values[p.name], p.value)
	}
	first := true
	for _, p := range params {
		joined, ok := values[p.name]
		if !ok {
			continue
		}
		delete(values, p.name)
		b = appendComma(b, &first)
		b = appendString(b, p.name)
		b = append(b, ':')
		b = appendString(b, strings.Join(joined, ","))
	}
	return b
}

func parseQuery(params []queryParam, raw string) []queryParam {
	for raw != "" {
		var part string
		part, raw, _ = strings.Cut(raw, "&")
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		params = append(params, queryParam{name: unescapeQuery(name), value: unescapeQuery(value)})
	}
	return params
}

// unescapeQuery leaves a bad escape as it stands.
func unescapeQuery(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}
