package gateway

import "testing"

func TestRoute(t *testing.T) {
	exists := func(ns string) bool { return ns == "default" || ns == "shop" || ns == "hello" }
	fn := func(ns, name, path, domain string) target {
		return target{kind: targetFunction, namespace: ns, function: name, path: path, domain: domain}
	}
	cases := []struct {
		host, path string
		want       target
	}{
		// By host: the whole path is the function's, also /healthz, /metrics and /fn/.
		{"cart.fn.localhost", "/", fn("default", "cart", "/", "cart.fn.localhost")},
		{"cart.fn.localhost:7080", "/a/b", fn("default", "cart", "/a/b", "cart.fn.localhost")},
		{"cart.fn.localhost.", "/healthz", fn("default", "cart", "/healthz", "cart.fn.localhost")},
		{"cart.shop.fn.localhost:80", "/metrics", fn("shop", "cart", "/metrics", "cart.shop.fn.localhost")},
		{"Cart_1.SHOP.FN.LocalHost", "/fn/x", fn("shop", "Cart_1", "/fn/x", "Cart_1.SHOP.FN.LocalHost")},
		{"cart.nowhere.fn.localhost", "/", fn("nowhere", "cart", "/", "cart.nowhere.fn.localhost")},
		{"a.b.c.fn.localhost", "/", target{}},
		{".fn.localhost", "/", target{}},
		{".shop.fn.localhost", "/healthz", target{}},
		{"cart..fn.localhost", "/", target{}},
		// Not our domain: by path.
		{"cart.fn.example.com", "/healthz", target{kind: targetHealth}},
		{"fn.localhost", "/healthz", target{kind: targetHealth}},
		{"localhost:7080", "/readyz", target{kind: targetReady}},
		{"[::1]:7080", "/metrics", target{kind: targetMetrics}},
		{"", "/healthz", target{kind: targetHealth}},
		{"h", "/healthz/", target{}},
		{"h", "/metrics/x", target{}},
		// By path.
		{"127.0.0.1:7080", "/fn/cart", fn("default", "cart", "/", "127.0.0.1")},
		{"[::1]:7080", "/fn/cart/", fn("default", "cart", "/", "::1")},
		{"::1", "/fn/cart/", fn("default", "cart", "/", "::1")},
		{"h", "/fn/cart/a%20b//c/", fn("default", "cart", "/a%20b//c/", "h")},
		{"h", "/fn/cart//", fn("default", "cart", "//", "h")},
		{"h", "/fn/shop/cart", fn("shop", "cart", "/", "h")},
		{"h", "/fn/shop/cart/x", fn("shop", "cart", "/x", "h")},
		{"h", "/fn/default/cart/x", fn("default", "cart", "/x", "h")},
		{"h", "/fn/default/shop/x", fn("default", "shop", "/x", "h")},
		{"h", "/fn/default/default/", fn("default", "default", "/", "h")},
		// A namespace owns its segment, whatever functions there are.
		{"h", "/fn/hello", target{}},
		{"h", "/fn/hello/", target{}},
		{"h", "/fn/hello/world", fn("hello", "world", "/", "h")},
		{"h", "/fn/default", target{}},
		{"h", "/fn/shop//cart", target{}},
		{"h", "/fn/", target{}},
		{"h", "/fn//cart", target{}},
		{"h", "/fn", target{}},
		{"h", "/", target{}},
		{"h", "*", target{}},
		{"h", "", target{}},
		{"h", "/2015-03-31/functions", target{}},
	}
	for _, c := range cases {
		if got := route(c.host, c.path, "localhost", exists); got != c.want {
			t.Errorf("%s %s:\n got %+v\nwant %+v", c.host, c.path, got, c.want)
		}
	}
}

// Who gets a request depends on the namespaces alone, so creating a function can't take another tenant's URL.
func FuzzRouteStaysWithinItsTenant(f *testing.F) {
	for _, p := range []string{"/fn/a/b/c", "/fn/a", "/fn//a", "/fn/default/x", "/x", "/fn/b/a/"} {
		f.Add("h", p)
		f.Add("a.b.fn.example.org", p)
	}
	f.Fuzz(func(t *testing.T, host, path string) {
		exists := func(ns string) bool { return ns == "a" || ns == "default" }
		got := route(host, path, "example.org", exists)
		if got.kind != targetFunction {
			return
		}
		if got.function == "" || got.namespace == "" || got.path == "" || got.path[0] != '/' && path != "" && path[0] == '/' {
			t.Errorf("%q %q: %+v", host, path, got)
		}
		long := route("h", "/fn/"+got.namespace+"/"+got.function+got.path, "example.org", func(ns string) bool { return ns == got.namespace })
		if _, byHost := functionHost(hostName(host), "example.org"); !byHost && (long.function != got.function || long.path != got.path) {
			t.Errorf("%q: the long form gives %+v, the short one %+v", path, long, got)
		}
	})
}
