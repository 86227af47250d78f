package router

import (
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestResolveNames(t *testing.T) {
	g := newRig(t, nil)
	g.state.put(active("f", 3), active("function", 4))
	g.state.publish("f", 1, 1)
	g.state.change(func(v *fakeView) { v.aliases["f/prod"] = &mayflyv1.Alias{Version: "1"} })
	const arn = "arn:aws:lambda:eu-test-1:123456789012:function:f"
	for _, c := range []struct{ function, qualifier, version, arn string }{
		{"f", "", "$LATEST", arn},
		{"f", "$LATEST", "$LATEST", arn + ":$LATEST"},
		{"f:$LATEST", "", "$LATEST", arn + ":$LATEST"},
		{"f", "1", "1", arn + ":1"},
		{"f:1", "", "1", arn + ":1"},
		{"f:1", "1", "1", arn + ":1"},
		{"f:prod", "", "1", arn + ":prod"},
		{"f", "prod", "1", arn + ":prod"},
		{arn, "", "$LATEST", arn},
		{arn + ":prod", "", "1", arn + ":prod"},
		{arn, "prod", "1", arn + ":prod"},
		{"123456789012:function:f", "", "$LATEST", arn},
		{"123456789012:function:f:1", "", "1", arn + ":1"},
		{"function", "", "$LATEST", strings.TrimSuffix(arn, "f") + "function"},
	} {
		got, err := g.Resolve("", c.function, c.qualifier)
		if err != nil || got.Version() != c.version || got.InvokedARN != c.arn {
			t.Errorf("Resolve(%q, %q) = %+v, %v", c.function, c.qualifier, got, err)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	g := newRig(t, nil)
	g.state.put(active("f", 1))
	g.state.publish("f", 1, 1)
	for _, c := range []struct {
		namespace, function, qualifier string
		want                           mayflyv1.ErrorReason
		message                        string
	}{
		{"", "g", "", mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, `function "g" does not exist in namespace "default"`},
		{"other", "f", "", mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND, `"other"`},
		{"", "f", "2", mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND, "no version 2"},
		{"", "f", "99999999999999999999", mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND, "no version"},
		{"", "f", "prod", mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND, `no alias "prod"`},
		{"", "f:1", "2", mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "leave one out"},
		{"", "", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", "f:", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "qualifier"},
		{"", "f/../g", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", "a:b:c", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", "arn:aws:s3:::bucket", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", "arn:aws:lambda:r:123456789012:function", "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", strings.Repeat("x", 65), "", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "names no function"},
		{"", "f", "a b", mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "qualifier"},
		{"", "210987654321:function:f", "", mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, "account 210987654321"},
	} {
		_, err := g.Resolve(c.namespace, c.function, c.qualifier)
		if !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("Resolve(%q, %q, %q): %v, want %v", c.namespace, c.function, c.qualifier, err, c.want)
		}
	}
}

func TestResolvedSpec(t *testing.T) {
	g := newRig(t, nil)
	g.state.put(active("f", 3))
	g.state.publish("f", 1, 2)
	latest, err := g.Resolve("default", "f", "")
	if err != nil {
		t.Fatal(err)
	}
	s := latest.Spec
	if s.GetMemoryBytes() != 256<<20 || s.GetMilliCpus() != 144 || s.GetTmpBytes() != 512<<20 || s.GetEgress() != mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET || s.GetTimeout().GetSeconds() != 3 ||
		s.GetHandler() != "m.h" || s.GetCodeDigest() != "d3" || s.GetRegion() != "eu-test-1" || s.GetAccountId() != "123456789012" || s.GetCodeRevision() != 3 {
		t.Errorf("spec of $LATEST: %v", s)
	}
	one, err := g.Resolve("default", "f", "1")
	if err != nil || one.Spec.GetMemoryBytes() != 128<<20 || one.Spec.GetCodeDigest() != "d2" || one.Spec.GetCodeRevision() != 2 {
		t.Errorf("spec of 1: %v, %v", one, err)
	}
}

func TestResolveSeesEachCommit(t *testing.T) {
	g := newRig(t, nil)
	g.state.put(active("f", 1))
	first, _ := g.Resolve("", "f", "")
	again, _ := g.Resolve("", "f", "")
	if first != again {
		t.Error("resolved twice without a commit")
	}
	g.state.put(active("f", 2))
	if next, err := g.Resolve("", "f", ""); err != nil || next.Spec.GetCodeRevision() != 2 {
		t.Errorf("after the commit: %v, %v", next, err)
	}
	g.state.change(func(v *fakeView) { delete(v.functions, "f") })
	if _, err := g.Resolve("", "f", ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND) {
		t.Errorf("after the deletion: %v", err)
	}
}

func TestWeightedAlias(t *testing.T) {
	x := 0.0
	g := newRig(t, func(c *Config) { c.Rand = func() float64 { return x } })
	g.state.put(active("f", 9))
	for n := range 3 {
		g.state.publish("f", int64(n+1), uint64(n+1))
	}
	g.state.change(func(v *fakeView) {
		v.aliases["f/prod"] = &mayflyv1.Alias{Version: "1", Weights: map[string]float64{"2": 0.25, "3": 0.25}}
	})
	for _, c := range []struct {
		x    float64
		want string
	}{{0, "2"}, {0.249, "2"}, {0.25, "3"}, {0.499, "3"}, {0.5, "1"}, {0.999, "1"}} {
		x = c.x
		if got, err := g.Resolve("", "f:prod", ""); err != nil || got.Version() != c.want {
			t.Errorf("at %v: %v, %v, want %s", c.x, got, err, c.want)
		}
	}
}
