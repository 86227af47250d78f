package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-faas/mayfly/proto/fault"
)

// metrics are what a store shows of itself.
type metrics struct {
	reg        prometheus.Registerer
	proposals  *prometheus.CounterVec
	seconds    prometheus.Histogram
	collectors []prometheus.Collector
}

func newMetrics(s *Store) (*metrics, error) {
	m := &metrics{
		reg: s.cfg.Registerer,
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_store_proposals_total", Help: "Proposals by outcome: OK or the reason of the error.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_store_proposal_seconds", Help: "Time from proposing to the answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	collectors := []prometheus.Collector{
		m.proposals, m.seconds,
		gauge("mayfly_store_applied_index", "Index of the last entry applied.", func() float64 { return float64(s.cfg.State.AppliedIndex()) }),
		gauge("mayfly_store_free_bytes", "Free space below the raft directory.", func() float64 { return float64(s.disk.bytes.Load()) }),
		gauge("mayfly_store_leader", "1 on the node that leads.", func() float64 {
			if s.Leader().Here {
				return 1
			}
			return 0
		}),
	}
	return m, m.register(collectors)
}

func (m *metrics) register(collectors []prometheus.Collector) error {
	if m.reg == nil {
		return nil
	}
	for _, c := range collectors {
		if err := m.reg.Register(c); err != nil {
			m.unregister()
			return errors.Join(fmt.Errorf("register the store's metrics: %w", err))
		}
		m.collectors = append(m.collectors, c)
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		m.reg.Unregister(c)
	}
	m.collectors = nil
}

func (m *metrics) proposed(d time.Duration, err error) {
	outcome := "OK"
	if err != nil {
		outcome = fault.ReasonName(fault.From(err).Reason)
	}
	m.proposals.WithLabelValues(outcome).Inc()
	m.seconds.Observe(d.Seconds())
}
