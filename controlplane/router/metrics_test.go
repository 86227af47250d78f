package router

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestInvocationsAreCountedByFunctionAndOutcome(t *testing.T) {
	registry := prometheus.NewRegistry()
	g := newRig(t, func(c *Config) { c.Registerer = registry })
	defer g.run()()
	g.state.put(active("f", 1), active("full", 1))
	g.home.acquire = func(_ context.Context, spec *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
		if spec.GetFunction() == "full" {
			return nil, fault.Throttled(throttled, "Rate Exceeded.")
		}
		return nil, nil
	}
	g.home.invoke = func(_ *fakeLease, r *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		resp := &agentv1.InvokeResponse{}
		if string(r.GetPayload()) == "fail" {
			resp.FunctionError = unhandled
		}
		return resp, nil
	}
	for _, call := range [][2]string{{"f", "1"}, {"f", "fail"}, {"f", "2"}, {"full", "1"}, {"nowhere", "1"}} {
		_, _ = g.invoke(call[0], call[1]) // what is counted is the point
	}
	for want, labels := range map[float64][]string{
		2: {"default", "f", outcomeOK}, 1: {"default", "f", outcomeFunctionError},
	} {
		if got := testutil.ToFloat64(g.metrics.invocations.WithLabelValues(labels...)); got != want {
			t.Errorf("%v: %v, want %v", labels, got, want)
		}
	}
	if got := testutil.ToFloat64(g.metrics.invocations.WithLabelValues("default", "full", outcomeThrottled)); got != 1 {
		t.Errorf("throttled: %v", got)
	}
	if got := testutil.ToFloat64(g.metrics.coldStarts.WithLabelValues("default", "f")); got != 1 {
		t.Errorf("cold starts: %v", got)
	}
	if n, err := testutil.GatherAndCount(registry, "mayfly_invocation_seconds"); err != nil || n != 2 {
		t.Errorf("%d functions have a histogram, want 2, not those that don't exist: %v", n, err)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxMeasured {
		m.count(m.of(functionKey{"default", fmt.Sprint(i)}), nil, nil, 0)
	}
	if n := testutil.CollectAndCount(m.invocations); n != maxMeasured+1 {
		t.Errorf("%d series, want %d", n, maxMeasured+1)
	}
	if got := testutil.ToFloat64(m.invocations.WithLabelValues(otherFunction, otherFunction, outcomeOK)); got != maxMeasured {
		t.Errorf("%v invocations of other functions, want %d", got, maxMeasured)
	}
	if f := m.of(functionKey{"default", "7"}); f.labels["function"] != "7" {
		t.Error("a function has lost its series")
	}
}

func TestOutcomes(t *testing.T) {
	gone := fault.New(codes.Canceled, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "gone")
	for want, err := range map[string]error{
		outcomeGone: gone, outcomeThrottled: fault.Throttled(throttled, "x"), outcomeError: fault.Unavailable(nodeLost, "x"),
	} {
		if got := outcomeOf(nil, err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
