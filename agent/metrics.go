package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// metrics counts what the agent does. Counters of the invocation's way are looked up once.
type metrics struct {
	ok, failed, lost, notSent prometheus.Counter
	broken                    *prometheus.CounterVec // by the platform's error type
	coldStart                 prometheus.Histogram
}

// newMetrics registers the agent's metrics; a nil registerer leaves them unseen.
func newMetrics(r prometheus.Registerer, a *Agent) (*metrics, error) {
	invocations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mayfly_agent_invocations_total", Help: "Invocations by outcome: ok, error, lost, not_sent, or the platform's error type.",
	}, []string{"outcome"})
	m := &metrics{
		ok: invocations.WithLabelValues("ok"), failed: invocations.WithLabelValues("error"),
		lost: invocations.WithLabelValues("lost"), notSent: invocations.WithLabelValues("not_sent"), broken: invocations,
		coldStart: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_agent_cold_start_seconds", Help: "Time from the request for a sandbox to an initialised function.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{invocations, m.coldStart, &stateCollector{agent: a}} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// stateCollector looks at the sandboxes when it is asked.
type stateCollector struct{ agent *Agent }

func sandboxesDesc() *prometheus.Desc {
	return prometheus.NewDesc("mayfly_agent_sandboxes", "Sandboxes by state.", []string{"state"}, nil)
}

func codeDesc() *prometheus.Desc {
	return prometheus.NewDesc("mayfly_agent_code_bytes", "Unpacked code on the node.", nil, nil)
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	out <- sandboxesDesc()
	out <- codeDesc()
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	counts := map[sandbox.State]int{}
	for b := range c.agent.all() {
		counts[b.machine().State]++
	}
	for s := sandbox.StateCreating; s <= sandbox.StateDestroying; s++ {
		out <- prometheus.MustNewConstMetric(sandboxesDesc(), prometheus.GaugeValue, float64(counts[s]), s.String())
	}
	out <- prometheus.MustNewConstMetric(codeDesc(), prometheus.GaugeValue, float64(c.agent.code.Bytes()))
}
