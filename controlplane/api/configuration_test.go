package api

import (
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestHandlersByRuntime(t *testing.T) {
	for _, c := range []struct {
		runtime string
		good    []string
		bad     []string
	}{
		{"python3.13", []string{"app.handler", "a/b.c"}, []string{"app", "app::handler", ".x"}},
		{"nodejs20", []string{"index.handler", "index.api.get"}, []string{"index", "x/.y"}},
		{"ruby3.1", []string{"app.handler", "app.Shop.list", "lib/app.Shop::Orders.list"}, []string{"app", "../app.handler"}},
		{"java17", []string{"Hello", "example.Hello", "example.Hello::handle", "a.B$C::d"}, []string{"::handle", "example.Hello::", "a.B::c::d", "a/B::c", "a.B:c", "a.B::c.d"}},
		{"provided", []string{"bootstrap", "anything/at.all::x"}, []string{"a b"}},
	} {
		for _, handler := range c.good {
			if err := checkHandler(c.runtime, handler); err != nil {
				t.Errorf("%s refuses %q: %v", c.runtime, handler, err)
			}
		}
		for _, handler := range c.bad {
			if err := checkHandler(c.runtime, handler); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_HANDLER) {
				t.Errorf("%s takes %q: %v", c.runtime, handler, err)
			}
		}
	}
}
