package gateway

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests to function URLs by the class of their status.
type metrics struct {
	classes  [6]prometheus.Counter
	aborted  prometheus.Counter
	inFlight prometheus.Gauge
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mayfly_gateway_requests_total",
		Help: "Requests to function URLs by class of status; aborted ones broke off midway.",
	}, []string{"status"})
	m := &metrics{
		aborted: requests.WithLabelValues("aborted"),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_gateway_requests_in_flight", Help: "Requests to function URLs that are being served.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mayfly_gateway_request_seconds", Help: "Time from a request's headers to the end of its answer.",
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900},
		}),
	}
	for i := range m.classes {
		m.classes[i] = requests.WithLabelValues(fmt.Sprintf("%dxx", i))
	}
	for _, c := range []prometheus.Collector{requests, m.inFlight, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("gateway: register metrics: %w", err)
		}
	}
	return m, nil
}

// served counts a finished request; status 0 means that it was aborted.
func (m *metrics) served(status int, took time.Duration) {
	m.inFlight.Dec()
	m.seconds.Observe(took.Seconds())
	if class := status / 100; class > 0 && class < len(m.classes) {
		m.classes[class].Inc()
		return
	}
	m.aborted.Inc()
}
