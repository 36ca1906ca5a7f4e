package main

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/stepworker/stepworker/internal/redismetrics"
)

// metrics are what /metrics tells of the process itself, of its calls, hooks and
// Redis; package jobs adds what it knows of executions.
type metrics struct {
	*prometheus.Registry
	redis *redismetrics.Hook
	hooks *prometheus.HistogramVec
	api   *prometheus.HistogramVec
}

func newMetrics(w *Worker) *metrics {
	m := &metrics{
		Registry: prometheus.NewRegistry(), redis: redismetrics.New(),
		hooks: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stepworker_hook_seconds", Help: "Duration of hook events, the wait for a hook host included.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 3, 12)}, []string{"event"}),
		api: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stepworker_api_seconds",
			Help:    "Duration of requests to connectors' APIs, those of scripts included, until their answer was read: by class of status (2xx to 5xx), or none where no answer came.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, []string{"connector", "class"}),
	}
	gauge := func(name, help string, read func() float64) {
		m.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stepworker_" + name, Help: help}, read))
	}
	m.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.redis, m.hooks, m.api,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "stepworker_hook_host_deaths_total", Help: "Hook hosts that died under an event."},
			func() float64 { return float64(w.engine.Stats().Deaths) }))
	gauge("hook_hosts", "Hook hosts that are alive.", func() float64 { return float64(w.engine.Stats().Live) })
	gauge("hook_hosts_idle", "Hook hosts that wait for an event.", func() float64 { return float64(w.engine.Stats().Idle) })
	gauge("ready", "1 while this worker is ready, as /readyz tells.", func() float64 {
		if w.ready() != nil {
			return 0
		}
		return 1
	})
	name, commit := built()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "stepworker_build_info", Help: "1, with what this worker was built from.",
		ConstLabels: prometheus.Labels{"version": name, "commit": commit, "go_version": runtime.Version()}})
	info.Set(1)
	m.MustRegister(info)
	return m
}

func (m *metrics) event(name string, d time.Duration) {
	m.hooks.WithLabelValues(name).Observe(d.Seconds())
}

func (m *metrics) answered(connector string, status int, d time.Duration) {
	class := "none"
	if status/100 >= 1 && status/100 <= 5 {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.api.WithLabelValues(connector, class).Observe(d.Seconds())
}
