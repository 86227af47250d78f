package router

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// maxMeasured bounds how many functions have series of their own; all that come later share those of the names "_other".
const (
	maxMeasured   = 1000
	otherFunction = "_other"
)

// Outcomes of an invocation, as in metrics. A function that failed is no error of Mayfly's.
const (
	outcomeOK            = "ok"
	outcomeFunctionError = "function_error"
	outcomeThrottled     = "throttled"
	outcomeGone          = "caller_gone"
	outcomeError         = "error"
)

// metrics counts invocations by function.
type metrics struct {
	invocations *prometheus.CounterVec
	coldStarts  *prometheus.CounterVec
	seconds     *prometheus.HistogramVec

	mu        sync.RWMutex
	functions map[functionKey]*measured
}

// measured is the series of one function; the usual ones are looked up once.
type measured struct {
	labels         prometheus.Labels
	ok, coldStarts prometheus.Counter
	seconds        prometheus.Observer
}

// newMetrics registers the router's metrics; a nil registerer leaves them unseen.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"namespace", "function"}
	m := &metrics{
		functions: map[functionKey]*measured{},
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_invocations_total",
			Help: "Synchronous invocations of functions by outcome: ok, function_error, throttled, caller_gone or error.",
		}, append(labels, "outcome")),
		coldStarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_cold_starts_total", Help: "Invocations that waited for a new sandbox.",
		}, labels),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mayfly_invocation_seconds", Help: "Time of invocations from the router to the answer, waiting for a sandbox included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900},
		}, labels),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.invocations, m.coldStarts, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("router: register metrics: %w", err)
		}
	}
	return m, nil
}

// of finds or makes the series of a function.
func (m *metrics) of(k functionKey) *measured {
	m.mu.RLock()
	f := m.functions[k]
	m.mu.RUnlock()
	if f != nil {
		return f
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if f = m.functions[k]; f != nil {
		return f
	}
	if len(m.functions) >= maxMeasured {
		k = functionKey{otherFunction, otherFunction}
		if f = m.functions[k]; f != nil {
			return f
		}
	}
	labels := prometheus.Labels{"namespace": k.namespace, "function": k.name}
	f = &measured{
		labels: labels, ok: m.invocations.With(withOutcome(labels, outcomeOK)),
		coldStarts: m.coldStarts.With(labels), seconds: m.seconds.With(labels),
	}
	m.functions[k] = f
	return f
}

func withOutcome(labels prometheus.Labels, outcome string) prometheus.Labels {
	return prometheus.Labels{"namespace": labels["namespace"], "function": labels["function"], "outcome": outcome}
}

// count takes the end of an invocation of a function that exists.
func (m *metrics) count(f *measured, resp *mayflyv1.InvokeResponse, err error, took time.Duration) {
	outcome := outcomeOf(resp, err)
	if outcome == outcomeOK {
		f.ok.Inc()
	} else {
		m.invocations.With(withOutcome(f.labels, outcome)).Inc()
	}
	if resp.GetReport().GetInitDuration() != nil {
		f.coldStarts.Inc()
	}
	f.seconds.Observe(took.Seconds())
}

func outcomeOf(resp *mayflyv1.InvokeResponse, err error) string {
	switch {
	case err == nil && resp.GetFunctionError() == "":
		return outcomeOK
	case err == nil:
		return outcomeFunctionError
	}
	switch fault.From(err).Code {
	case codes.ResourceExhausted:
		return outcomeThrottled
	case codes.Canceled, codes.DeadlineExceeded:
		return outcomeGone
	}
	return outcomeError
}
