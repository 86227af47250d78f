package auth

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// sigV4Param is a query parameter, decoded.
type sigV4Param struct{ name, value string }

func parseSigV4Query(raw string) []sigV4Param {
	if raw == "" {
		return nil
	}
	var params []sigV4Param
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		params = append(params, sigV4Param{sigV4Unescape(name), sigV4Unescape(value)})
	}
	return params
}

// sigV4Unescape reads a bad escape as it stands: its signature then decides.
func sigV4Unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

func sigV4ParamValue(params []sigV4Param, name string) string {
	for _, p := range params {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

func (c *sigV4Claim) canonicalRequest(r *http.Request, path string, params []sigV4Param) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + path + "\n" + c.canonicalQuery(params) + "\n")
	for _, name := range c.signedHeaders {
		b.WriteString(name + ":" + sigV4HeaderValue(r, name) + "\n")
	}
	b.WriteString("\n" + strings.Join(c.signedHeaders, ";") + "\n" + c.payloadHash)
	return b.String()
}

func (c *sigV4Claim) canonicalQuery(params []sigV4Param) string {
	encoded := make([]sigV4Param, 0, len(params))
	for _, p := range params {
		if c.presigned && p.name == "X-Amz-Signature" {
			continue
		}
		encoded = append(encoded, sigV4Param{sigV4Escape(p.name, ""), sigV4Escape(p.value, "")})
	}
	slices.SortStableFunc(encoded, func(a, b sigV4Param) int {
		if d := strings.Compare(a.name, b.name); d != 0 {
			return d
		}
		return strings.Compare(a.value, b.value)
	})
	var s strings.Builder
	for i, p := range encoded {
		if i > 0 {
			s.WriteByte('&')
		}
		s.WriteString(p.name + "=" + p.value)
	}
	return s.String()
}

// sigV4HeaderValue is a header's canonical value: trimmed, runs of spaces made one, several values joined by commas.
func sigV4HeaderValue(r *http.Request, name string) string {
	values := r.Header.Values(name)
	switch {
	case name == "host" || name == ":authority":
		values = []string{r.Host}
	case name == "content-length" && len(values) == 0 && r.ContentLength >= 0:
		values = []string{strconv.FormatInt(r.ContentLength, 10)}
	case name == "transfer-encoding" && len(values) == 0:
		values = r.TransferEncoding
	}
	clean := make([]string, len(values))
	for i, v := range values {
		clean[i] = sigV4Collapse(v)
	}
	return strings.Join(clean, ",")
}

func sigV4Collapse(s string) string {
	s = strings.TrimSpace(s)
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

// sigV4Paths is the canonical forms that a path may be signed in. S3 signs it encoded once and as it is; all others
// encode what was sent once more, some SDKs after removing empty and dot segments.
func sigV4Paths(service, path string) []string {
	if path == "" {
		path = "/"
	}
	if service == "s3" {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			decoded = path
		}
		return []string{sigV4Escape(decoded, "/")}
	}
	plain := sigV4Escape(path, "/")
	normal := sigV4Escape(sigV4CleanPath(path), "/")
	if plain == normal {
		return []string{plain}
	}
	return []string{normal, plain}
}

func sigV4CleanPath(path string) string {
	var out []string
	for seg := range strings.SplitSeq(path, "/") {
		switch seg {
		case "", ".":
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, seg)
		}
	}
	clean := "/" + strings.Join(out, "/")
	if strings.HasSuffix(path, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

// sigV4Escape percent-encodes all but RFC 3986's unreserved characters and those in keep.
func sigV4Escape(s, keep string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(s) + 8)
	for i := range len(s) {
		c := s[i]
		if sigV4Unreserved(c) || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}

func sigV4Unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~'
}
