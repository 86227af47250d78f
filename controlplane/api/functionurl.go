package api

import (
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	maxCorsEntries = 100
	maxCorsEntry   = 253
	maxCorsAge     = 86400
)

// completeURL returns a checked copy with defaults filled; nil stays nil. Whether the qualifier exists is the caller's to check.
func completeURL(in *mayflyv1.FunctionUrl) (*mayflyv1.FunctionUrl, error) {
	if in == nil {
		return nil, nil
	}
	u := proto.CloneOf(in)
	switch u.GetAuthType() {
	case mayflyv1.AuthType_AUTH_TYPE_NONE, mayflyv1.AuthType_AUTH_TYPE_KEY, mayflyv1.AuthType_AUTH_TYPE_AWS_IAM:
	default:
		return nil, invalid("url.auth_type %v is not one of AUTH_TYPE_NONE, AUTH_TYPE_KEY and AUTH_TYPE_AWS_IAM", u.GetAuthType())
	}
	switch u.GetInvokeMode() {
	case mayflyv1.InvokeMode_INVOKE_MODE_UNSPECIFIED:
		u.InvokeMode = mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED
	case mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED, mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM:
	default:
		return nil, invalid("url.invoke_mode %v is not one of INVOKE_MODE_BUFFERED and INVOKE_MODE_RESPONSE_STREAM", u.GetInvokeMode())
	}
	if _, err := checkQualifier("url.qualifier", u.GetQualifier()); err != nil {
		return nil, err
	}
	return u, checkCors(u.GetCors())
}

func checkCors(c *mayflyv1.Cors) error {
	lists := []struct {
		field string
		items []string
		ok    func(string) bool
		rule  string
	}{
		{"allow_origins", c.GetAllowOrigins(), isOrigin, `"*" or scheme://host, with a port if needed`},
		{"allow_methods", c.GetAllowMethods(), isMethod, `"*" or one of GET, PUT, HEAD, POST, PATCH, DELETE and OPTIONS`},
		{"allow_headers", c.GetAllowHeaders(), isHeaderOrStar, `"*" or the name of a header`},
		{"expose_headers", c.GetExposeHeaders(), isHeaderOrStar, `"*" or the name of a header`},
	}
	for _, list := range lists {
		if len(list.items) > maxCorsEntries {
			return invalid("url.cors.%s has %d entries; at most %d are allowed", list.field, len(list.items), maxCorsEntries)
		}
		for _, item := range list.items {
			if !list.ok(item) {
				return invalid("url.cors.%s: %.300q is not %s", list.field, item, list.rule)
			}
		}
	}
	if c.GetAllowCredentials() && slices.Contains(c.GetAllowOrigins(), "*") {
		return invalid(`url.cors.allow_credentials can't be combined with the origin "*": name the origins`)
	}
	if age := c.GetMaxAgeSeconds(); age < 0 || age > maxCorsAge {
		return invalid("url.cors.max_age_seconds %d is not between 0 and %d", age, maxCorsAge)
	}
	return nil
}

func isOrigin(text string) bool {
	if text == "*" {
		return true
	}
	u, err := url.Parse(text)
	return err == nil && len(text) <= maxCorsEntry && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		text == u.Scheme+"://"+u.Host && !strings.ContainsAny(u.Host, "*, ")
}

func isMethod(text string) bool {
	return slices.Contains([]string{"*", "GET", "PUT", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"}, text)
}

// isHeaderOrStar takes the tokens of RFC 9110, section 5.6.2.
func isHeaderOrStar(text string) bool {
	if text == "" || len(text) > maxCorsEntry {
		return false
	}
	return !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// urlText is where a function's URL is reachable on this node; empty without one.
func (c *core) urlText(fn *mayflyv1.Function) string {
	if fn.GetUrl() == nil || c.Self.HTTPURL == "" {
		return ""
	}
	base := strings.TrimSuffix(c.Self.HTTPURL, "/") + "/fn/"
	if fn.GetNamespace() != defaultNamespace {
		base += fn.GetNamespace() + "/"
	}
	return base + fn.GetName() + "/"
}
