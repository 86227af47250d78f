package gateway

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// isPreflight tells a CORS preflight from a plain OPTIONS request.
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) > 0 && len(r.Header["Access-Control-Request-Method"]) > 0
}

// servePreflight answers in the function's place. An origin that isn't allowed gets no CORS headers, so browsers refuse it.
func servePreflight(w http.ResponseWriter, r *http.Request, c *mayflyv1.Cors, allowed bool) {
	h := w.Header()
	if allowed {
		setJoined(h, "Access-Control-Allow-Methods", c.GetAllowMethods())
		setJoined(h, "Access-Control-Allow-Headers", c.GetAllowHeaders())
		if c.GetAllowCredentials() {
			namedForWildcard(h, r)
		}
		if s := c.GetMaxAgeSeconds(); s > 0 {
			h["Access-Control-Max-Age"] = []string{strconv.Itoa(int(s))}
		}
	}
	h["Vary"] = append(h["Vary"], "Access-Control-Request-Method", "Access-Control-Request-Headers")
	h["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusOK)
}

// namedForWildcard repeats what was asked for in place of "*", which means nothing to browsers when they send credentials.
func namedForWildcard(h http.Header, r *http.Request) {
	if slices.Equal(h["Access-Control-Allow-Methods"], []string{"*"}) {
		h["Access-Control-Allow-Methods"] = r.Header["Access-Control-Request-Method"]
	}
	if slices.Equal(h["Access-Control-Allow-Headers"], []string{"*"}) {
		h["Access-Control-Allow-Headers"] = r.Header["Access-Control-Request-Headers"]
	}
}

// addCORS puts on h what every answer to r's origin carries, and returns whether the origin is allowed.
func addCORS(h http.Header, r *http.Request, c *mayflyv1.Cors) bool {
	if c == nil {
		return false
	}
	origin := r.Header.Get("Origin")
	everyone := slices.Contains(c.GetAllowOrigins(), "*")
	if !everyone || c.GetAllowCredentials() {
		h["Vary"] = append(h["Vary"], "Origin")
	}
	if origin == "" || !everyone && !slices.Contains(c.GetAllowOrigins(), origin) {
		return false
	}
	if everyone && !c.GetAllowCredentials() {
		origin = "*"
	}
	h["Access-Control-Allow-Origin"] = []string{origin}
	if c.GetAllowCredentials() {
		h["Access-Control-Allow-Credentials"] = []string{"true"}
	}
	setJoined(h, "Access-Control-Expose-Headers", c.GetExposeHeaders())
	return true
}

func setJoined(h http.Header, name string, values []string) {
	if len(values) > 0 {
		h[name] = []string{strings.Join(values, ",")}
	}
}

// corsHeader tells of the headers that addCORS decides about.
func corsHeader(canonical string) bool {
	return canonical == "Access-Control-Allow-Origin" || canonical == "Access-Control-Allow-Credentials" ||
		canonical == "Access-Control-Expose-Headers"
}
