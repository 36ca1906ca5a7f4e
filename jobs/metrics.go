package jobs

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepworker/stepworker/credentials"
)

type metrics struct {
	executions *prometheus.CounterVec
	refreshes  *prometheus.CounterVec
	refused    *prometheus.CounterVec
	steps      prometheus.Histogram
	notices    *prometheus.CounterVec
	deferrals  *prometheus.CounterVec
}

// Reasons of deferrals.
const (
	reasonRate        = "rate_limit"
	reasonConcurrency = "max_concurrent"
	reason429         = "429"
)

func newMetrics(reg prometheus.Registerer, store *credentials.Store) (*metrics, error) {
	m := &metrics{
		executions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_executions_total",
			Help: "Executions that ended, by connector and status."}, []string{"connector", "status"}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_refreshes_total",
			Help: "Token requests and logins, by connector, kind and verdict."}, []string{"connector", "kind", "verdict"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_refused_calls_total",
			Help: "Calls that showed that the credential is dead, by connector."}, []string{"connector"}),
		steps: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stepworker_step_seconds",
			Help: "Duration of an execution's last attempt.", Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 14)}),
		notices: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_notices_total",
			Help: "Attempts to tell a notice, by type and result."}, []string{"type", "result"}),
		deferrals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_deferrals_total",
			Help: "Attempts that were put off, by connector and reason."}, []string{"connector", "reason"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.executions, m.refreshes, m.refused, m.steps, m.notices, m.deferrals, &waitingCollector{store}} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

var (
	waitingDesc = prometheus.NewDesc("stepworker_waiting", "Executions that wait for a credential, by connector and reason.", []string{"connector", "reason"}, nil)
	oldestDesc  = prometheus.NewDesc("stepworker_waiting_oldest_seconds", "How long the oldest waiting execution has waited, by reason.", []string{"reason"}, nil)
)

// waitingCollector asks Redis at each scrape: the numbers are of all workers.
type waitingCollector struct{ store *credentials.Store }

func (w *waitingCollector) Describe(ch chan<- *prometheus.Desc) { ch <- waitingDesc; ch <- oldestDesc }

func (w *waitingCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ids, err := w.store.WaitingCredentials(ctx)
	if err != nil {
		return // a gap in the graph, while Redis is away
	}
	type key struct{ connector, reason string }
	count, oldest := map[key]float64{}, map[string]float64{whyParked: 0, whyHeld: 0}
	for _, id := range ids {
		s, err := w.store.Status(ctx, id)
		if err != nil || s.Waiting == 0 {
			continue
		}
		reason := whyParked
		if s.State == credentials.Revoked || s.State == credentials.Misconfigured {
			reason = whyHeld
		}
		count[key{s.Connector, reason}] += float64(s.Waiting)
		if s.OldestWaiting != nil {
			oldest[reason] = max(oldest[reason], time.Since(*s.OldestWaiting).Seconds())
		}
	}
	for k, n := range count {
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, n, k.connector, k.reason)
	}
	for reason, s := range oldest {
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, s, reason)
	}
}
