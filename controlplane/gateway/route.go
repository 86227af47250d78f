package gateway

import (
	"net"
	"strings"
)

const defaultNamespace = "default"

type targetKind int

const (
	targetNone targetKind = iota
	targetFunction
	targetHealth
	targetReady
	targetMetrics
)

// target is who gets a request.
type target struct {
	kind      targetKind
	namespace string
	function  string
	// path is what the function sees: it starts with "/" and is encoded as sent.
	path string
	// domain is the host without its port.
	domain string
}

// route is the precedence table of the HTTP port; docs/http.md explains it. host is the Host header, path the path as
// sent, domain the cluster's URL domain. The answer depends on which namespaces exist but never on which functions do,
// so nobody takes another tenant's URL by creating a function.
func route(host, path, domain string, namespaceExists func(string) bool) target {
	host = hostName(host)
	if labels, ok := functionHost(host, domain); ok {
		return routeHost(labels, host, path)
	}
	switch path {
	case "/healthz":
		return target{kind: targetHealth}
	case "/readyz":
		return target{kind: targetReady}
	case "/metrics":
		return target{kind: targetMetrics}
	}
	if rest, ok := strings.CutPrefix(path, "/fn/"); ok {
		return routePath(rest, host, namespaceExists)
	}
	return target{}
}

// functionHost cuts ".fn.DOMAIN" off a host.
func functionHost(host, domain string) (labels string, ok bool) {
	n := len(host) - len(domain) - len(".fn.")
	if n < 1 || !strings.EqualFold(host[n+len(".fn."):], domain) || !strings.EqualFold(host[n:n+len(".fn.")], ".fn.") {
		return "", false
	}
	return host[:n], true
}

func routeHost(labels, host, path string) target {
	name, namespace, found := strings.Cut(labels, ".")
	if !found {
		namespace = defaultNamespace
	}
	if name == "" || namespace == "" || strings.Contains(namespace, ".") {
		return target{}
	}
	return functionTarget(strings.ToLower(namespace), name, path, host)
}

// routePath takes what follows "/fn/". A first segment that is a namespace's name is that namespace.
func routePath(rest, host string, namespaceExists func(string) bool) target {
	first, after := cutSegment(rest)
	if first == "" {
		return target{}
	}
	if !namespaceExists(first) {
		return functionTarget(defaultNamespace, first, after, host)
	}
	name, after := cutSegment(strings.TrimPrefix(after, "/"))
	if name == "" {
		return target{}
	}
	return functionTarget(first, name, after, host)
}

func functionTarget(namespace, name, path, host string) target {
	if path == "" {
		path = "/"
	}
	return target{kind: targetFunction, namespace: namespace, function: name, path: path, domain: host}
}

// cutSegment splits before the first slash.
func cutSegment(s string) (segment, after string) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// hostName is a Host header without port, brackets and trailing dot.
func hostName(host string) string {
	if strings.HasPrefix(host, "[") || strings.Count(host, ":") == 1 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.TrimSuffix(host, ".")
}

func urlDomain(v View) string {
	if d := v.Settings().GetUrlDomain(); d != "" {
		return d
	}
	return "localhost"
}
