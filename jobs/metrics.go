package jobs

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

// metrics are what this process counts; what is of the whole Redis is read at
// each scrape, see shared. Labels are words of ours and connectors' names, never
// ids. Counters begin at zero and not with what they first count: an increase
// from nothing is none to Prometheus.
type metrics struct {
	known map[string]bool // connectors

	executions   *prometheus.CounterVec
	failures     *prometheus.CounterVec
	attempts     *prometheus.CounterVec
	deferrals    *prometheus.CounterVec
	limits       *prometheus.CounterVec
	refused      *prometheus.CounterVec
	renewed      *prometheus.CounterVec
	refreshes    *prometheus.CounterVec
	notices      *prometheus.CounterVec
	refreshTime  *prometheus.HistogramVec
	refreshGroup *prometheus.HistogramVec
	waits        *prometheus.HistogramVec
	steps        prometheus.Histogram
	running      prometheus.Gauge
	faults       prometheus.Counter
	overtaken    prometheus.Counter
	takenOver    prometheus.Counter
	leasesLost   prometheus.Counter
}

// Reasons of deferrals.
const (
	reasonRate        = "rate_limit"
	reasonConcurrency = "max_concurrent"
	reason429         = "429"
	reasonScript      = "script"  // RetryLaterException
	reasonUnknown     = "unknown" // to this worker: a connector, an authentication or a method
)

// What ended an attempt, beside the reasons to wait.
const endEnded = "ended"

// Limits that are neither a call's nor a script's.
const (
	limitStepTimeout = "step_timeout"
	limitDeaths      = "deaths"
	limitResult      = "result"
)

// noConnector stands for those that this worker does not know: anybody may put
// credentials of any.
const noConnector = "other"

func newMetrics(p *Pool) (*metrics, error) {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_" + name, Help: help}, labels)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "stepworker_" + name, Help: help})
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stepworker_" + name, Help: help, Buckets: buckets}, labels)
	}
	gauge := func(name, help string, v float64) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "stepworker_" + name, Help: help})
		g.Set(v)
		return g
	}
	m := &metrics{
		known:      map[string]bool{},
		executions: counters("executions_total", "Executions that ended.", "connector", "status"),
		failures:   counters("failures_total", "Executions that failed, by the kind of their error.", "connector", "kind"),
		attempts:   counters("attempts_total", "Attempts, by how they ended: ended (the execution has its result), parked, held, deferred, retry.", "connector", "end"),
		deferrals:  counters("deferrals_total", "Attempts that were put off, by why.", "connector", "reason"),
		limits:     counters("limits_total", "Executions and refreshes that failed because they broke a limit, by which.", "connector", "limit"),
		refused:    counters("refused_calls_total", "Calls that showed that the credential is dead.", "connector"),
		renewed:    counters("refused_after_renewal_total", "Of these, calls of executions for which the credential had been renewed.", "connector"),
		refreshes:  counters("refreshes_total", "Token requests, logins and tests of credentials, by their verdict.", "connector", "kind", "verdict"),
		notices:    counters("notices_total", "Attempts to tell a notice.", "type", "result"),
		refreshTime: histograms("refresh_seconds", "Duration of token requests, logins and tests of credentials, hooks included.",
			[]float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40}, "connector"),
		refreshGroup: histograms("refresh_waiting", "Executions that waited for a refresh when it succeeded.",
			[]float64{0, 1, 2, 5, 10, 50, 100, 500, 1000, 10_000}, "connector"),
		waits: histograms("parked_seconds", "How long executions waited for their credential before they went on.",
			[]float64{.1, .5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 72 * 3600}, "connector", "reason"),
		steps: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stepworker_step_seconds",
			Help: "Duration of an execution's last attempt.", Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 14)}),
		running:    gauge("steps_running", "Attempts under way in this process.", 0),
		faults:     counter("worker_faults_total", "Tasks put back because of a fault of this worker's own."),
		overtaken:  counter("attempts_overtaken_total", "Attempts that found, when they wanted to write, that another attempt of their execution had begun."),
		takenOver:  counter("executions_taken_over_total", "Attempts at an execution whose last worker died, or lost its lease."),
		leasesLost: counter("refresh_leases_lost_total", "Refreshes whose outcome was void: another worker, or a person, was ahead."),
	}
	m.begin(p)
	if p.cfg.Registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.executions, m.failures, m.attempts, m.deferrals, m.limits, m.refused, m.renewed, m.refreshes, m.notices, m.refreshTime, m.refreshGroup,
		m.waits, m.steps, m.running, m.faults, m.overtaken, m.takenOver, m.leasesLost, &shared{p},
		gauge("concurrency", "Attempts that this process may have under way.", float64(p.cfg.Concurrency)),
		gauge("hold_seconds", "How long an execution may wait for its credential (--hold).", p.cfg.Hold.Seconds()),
	} {
		if err := p.cfg.Registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// begin has the series that alerts look at begin at zero.
func (m *metrics) begin(p *Pool) {
	for _, name := range p.cfg.Catalog.Names() {
		m.known[name] = true
		for _, s := range []Status{Succeeded, Warning, Failed, Cancelled} {
			m.executions.WithLabelValues(name, string(s))
		}
		for _, kind := range []string{KindAuth, KindHTTP, KindNetwork, KindScript, KindLimit, KindRate, KindInput, KindRevoked, KindExpired} {
			m.failures.WithLabelValues(name, kind)
		}
		for _, end := range []string{endEnded, whyParked, whyHeld, whyDeferred, whyRetry} {
			m.attempts.WithLabelValues(name, end)
		}
		for _, reason := range []string{reasonRate, reasonConcurrency, reason429, reasonScript, reasonUnknown} {
			m.deferrals.WithLabelValues(name, reason)
		}
		for _, limit := range append(connectors.Limits(), limitStepTimeout, limitDeaths, limitResult) {
			m.limits.WithLabelValues(name, limit)
		}
		m.refused.WithLabelValues(name)
		m.renewed.WithLabelValues(name)
		def, _ := p.cfg.Catalog.Get(name)
		for _, kind := range kindsOf(def) {
			for _, verdict := range []credentials.Verdict{credentials.Renewed, credentials.Transient, credentials.Unknown, credentials.VerdictRevoked, credentials.VerdictMisconfigured} {
				m.refreshes.WithLabelValues(name, string(kind), string(verdict))
			}
		}
	}
	if p.notifier == nil {
		return
	}
	for _, state := range []string{"failing", "revoked", "misconfigured", "recovered"} {
		for _, result := range []string{noticeDelivered, noticeRetried, noticeGivenUp} {
			m.notices.WithLabelValues("credential."+state, result)
		}
	}
}

// kindsOf are the kinds of refresh that a connector's credentials may need.
func kindsOf(def *definition.Connector) (kinds []credentials.Kind) {
	oauth2 := func(a definition.Authentication) bool { return a.Auth.Type == "oauth2" }
	if def.Auth.Type == "oauth2" || slices.ContainsFunc(def.Authentications, oauth2) {
		kinds = append(kinds, credentials.OAuth2, credentials.Opening)
	}
	if def.LoginMethod != "" {
		kinds = append(kinds, credentials.Session)
	}
	if def.TestMethod != "" {
		kinds = append(kinds, credentials.Testing)
	}
	return kinds
}

// connector is the label of a connector.
func (m *metrics) connector(name string) string {
	if m.known[name] {
		return name
	}
	return noConnector
}

// connector is the label of an attempt's connector.
func (a *attempt) connector() string {
	if a.cred == nil {
		return noConnector
	}
	return a.p.metrics.connector(a.cred.Connector)
}

// ended counts an execution that has ended, and the limit that it broke.
func (m *metrics) ended(a *attempt, res *Result) {
	connector := a.connector()
	m.executions.WithLabelValues(connector, string(res.Status)).Inc()
	if res.Status != Cancelled || a.broken { // else there was no attempt
		m.attempts.WithLabelValues(connector, endEnded).Inc()
		m.steps.Observe(time.Since(a.at).Seconds())
	}
	if res.Status != Failed {
		return
	}
	m.failures.WithLabelValues(connector, res.Error.Kind).Inc()
	if res.Error.Kind == KindLimit {
		m.limits.WithLabelValues(connector, cmp.Or(a.limit, limitResult)).Inc()
	}
}

// waitsOn notes for what an attempt's execution has waited until now.
func (a *attempt) waitsOn() {
	if r := a.rec; (r.why == whyParked || r.why == whyHeld) && r.since != 0 {
		a.waitedFor, a.waited = r.why, time.UnixMilli(r.since)
	}
}

// resumed counts that an execution that waited for its credential goes on.
func (a *attempt) resumed() {
	if a.waitedFor != "" {
		a.p.metrics.waits.WithLabelValues(a.connector(), a.waitedFor).Observe(time.Since(a.waited).Seconds())
		a.waitedFor = ""
	}
}

// asking is what a refresh found of a credential's provider.
type asking struct {
	ran    bool
	tested bool // the test method has answered, and nothing is changed
	took   time.Duration
}

// time has a refresh tell how it went.
func (q *asking) time(do credentials.RefreshFunc) credentials.RefreshFunc {
	return func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
		begun := time.Now()
		renewal, err := do(ctx, c)
		q.ran, q.tested, q.took = true, err == nil && renewal != nil && renewal.Tested, time.Since(begun)
		return renewal, err
	}
}

// refreshed counts a refresh that has ended.
func (m *metrics) refreshed(name string, kind credentials.Kind, q *asking, res credentials.RefreshResult) {
	name = m.connector(name)
	if kind == kindTest {
		kind = credentials.Testing
	}
	verdict := credentials.Renewed
	if res.Err != nil {
		verdict = res.Err.Verdict
	}
	if res.Err != nil && res.Err.Limit != "" && q.ran {
		m.limits.WithLabelValues(name, res.Err.Limit).Inc()
	}
	if q.ran {
		m.refreshTime.WithLabelValues(name).Observe(q.took.Seconds())
	}
	switch {
	case res.Err != nil, res.Outcome == credentials.OutcomeRenewed, q.tested:
		m.refreshes.WithLabelValues(name, string(kind), string(verdict)).Inc()
	case q.ran: // newer, or gone
		m.leasesLost.Inc()
	}
}
