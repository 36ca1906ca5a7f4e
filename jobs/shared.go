package jobs

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
)

// shared collects the numbers that are of the whole Redis, in one round trip at
// each scrape: every worker tells the same. Where Redis cannot be asked there is
// a gap in the graph.
type shared struct{ p *Pool }

func sharedDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("stepworker_"+name, help, labels, nil)
}

var (
	credentialsDesc     = sharedDesc("credentials", "Credentials, by their state.", "connector", "state")
	waitedForDesc       = sharedDesc("credentials_waited_for", "Credentials for which executions wait, by their state.", "connector", "state")
	failingDesc         = sharedDesc("credentials_failing", "Credentials whose last refresh failed and is tried again.", "connector")
	waitingDesc         = sharedDesc("waiting", "Executions that wait for a credential: parked (a refresh comes by itself) or held (a person is needed).", "connector", "reason")
	oldestDesc          = sharedDesc("waiting_oldest_seconds", "How long the oldest waiting execution has waited.", "reason")
	connectorOldestDesc = sharedDesc("connector_waiting_oldest_seconds", "How long the oldest execution has waited that waits for a credential of the connector.", "connector", "reason")
	tasksDesc           = sharedDesc("queue_tasks", "Tasks in a queue of asynq, by their state.", "queue", "state")
	queueOldestDesc     = sharedDesc("queue_latency_seconds", "How long the first of the pending tasks of a queue has been pending: its latency.", "queue")
	pausedDesc          = sharedDesc("queue_paused", "1 while a queue is paused.", "queue")
)

// Describe implements prometheus.Collector.
func (*shared) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{credentialsDesc, waitedForDesc, failingDesc, waitingDesc, oldestDesc, connectorOldestDesc, tasksDesc, queueOldestDesc, pausedDesc} {
		ch <- d
	}
}

// queueScript looks at a queue, all of it at one moment.
//
// asynq notes since when a task is pending that was enqueued, or whose own time
// came, and not of one that was run: from the dashboard, or at its turn. So the
// script notes it of some that have no time, in even steps from the newest to
// the first: each has been pending for as long as those behind it. It is off by
// the time between two scrapes at most. Where Redis takes no writes, it only looks.
//
//	KEYS  pending, active, scheduled, retry, archived, completed, paused
//	ARGV  what a task's key begins with, now (ns)
//	returns the number of each of the first six, whether it is paused, and since
//	when (ns) the first pending task is pending, 0 if there is none
var queueScript = redis.NewScript(`
local n = {redis.call('LLEN', KEYS[1]), redis.call('LLEN', KEYS[2])}
for i = 3, 6 do n[i] = redis.call('ZCARD', KEYS[i]) end
n[7] = redis.call('EXISTS', KEYS[7])
n[8] = '0'
if n[1] == 0 then return n end
local oldest = ARGV[2]
local function since(id)
  local at = redis.call('HGET', ARGV[1] .. id, 'pending_since')
  if at and tonumber(at) < tonumber(oldest) then oldest = at end
  return at
end
local function look(id)
  if id and not since(id) and redis.call('HGET', ARGV[1] .. id, 'state') == 'pending' then
    redis.pcall('HSET', ARGV[1] .. id, 'pending_since', oldest)
  end
end
local step = math.max(25, math.floor(n[1] / 200))
for i = 0, n[1] - 2, step do look(redis.call('LINDEX', KEYS[1], i)) end
local first = redis.call('LINDEX', KEYS[1], -1)
if redis.call('HEXISTS', ARGV[1] .. first, 'pending_since') == 0 then
  for _, id in ipairs(redis.call('LRANGE', KEYS[1], -2 * step, -2)) do since(id) end
end
look(first)
n[8] = redis.call('HGET', ARGV[1] .. first, 'pending_since') or oldest
return n
`)

// queueStates are those of queueScript, in their order.
var queueStates = []string{"pending", "active", "scheduled", "retry", "archived", "completed"}

func lookAtQueue(ctx context.Context, rdb redis.Scripter, queue string, now time.Time) *redis.Cmd {
	base := "asynq:{" + queue + "}:"
	keys := make([]string, 0, len(queueStates)+1)
	for _, state := range queueStates {
		keys = append(keys, base+state)
	}
	return queueScript.Eval(ctx, rdb, append(keys, base+"paused"), base+"t:", now.UnixNano())
}

// Collect implements prometheus.Collector.
func (s *shared) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	queues := []string{QueueRefresh}
	for q := range allLevels(s.p.cfg.Queues) {
		queues = append(queues, q)
	}
	slices.Sort(queues)
	now := time.Now()
	pipe := s.p.rdb.Pipeline()
	counted := pipe.Get(ctx, censusKey)
	cmds := make([]*redis.Cmd, len(queues))
	for i, q := range queues {
		cmds[i] = lookAtQueue(ctx, pipe, q, now)
	}
	_, _ = pipe.Exec(ctx) // each has its own error
	if rows := readCensus(counted); rows != nil {
		s.credentials(ch, rows, now)
	}
	for i, q := range queues {
		n, err := cmds[i].Int64Slice()
		if err != nil || len(n) != len(queueStates)+2 {
			continue
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		for j, state := range queueStates {
			gauge(tasksDesc, float64(n[j]), q, state)
		}
		gauge(pausedDesc, float64(n[len(queueStates)]), q)
		oldest := 0.0
		if since := n[len(queueStates)+1]; since != 0 {
			oldest = max(0, now.Sub(time.Unix(0, since)).Seconds())
		}
		gauge(queueOldestDesc, oldest, q)
	}
}

// credentials tells a census. A state or reason that nobody is in any more goes
// to zero, and does not vanish, as long as the connector has credentials.
func (s *shared) credentials(ch chan<- prometheus.Metric, rows []credentials.CensusRow, now time.Time) {
	type key struct{ connector, word string }
	count, waitedFor, waiting, failing := map[key]float64{}, map[key]float64{}, map[key]float64{}, map[string]float64{}
	oldest, oldestOf := map[string]float64{whyParked: 0, whyHeld: 0}, map[key]float64{}
	for _, name := range s.p.cfg.Catalog.Names() {
		rows = append(rows, credentials.CensusRow{Connector: name, State: credentials.Active})
	}
	for _, r := range rows {
		name := s.p.metrics.connector(r.Connector)
		for _, state := range []credentials.State{credentials.Active, credentials.Refreshing, credentials.Revoked, credentials.Misconfigured} {
			count[key{name, string(state)}] += 0
			waitedFor[key{name, string(state)}] += 0
		}
		count[key{name, string(r.State)}] += float64(r.Credentials)
		waitedFor[key{name, string(r.State)}] += float64(r.WaitedFor)
		failing[name] += float64(r.Failing)
		for reason := range oldest {
			waiting[key{name, reason}] += 0
			oldestOf[key{name, reason}] += 0
		}
		reason := whyParked
		if r.State == credentials.Revoked || r.State == credentials.Misconfigured {
			reason = whyHeld
		}
		waiting[key{name, reason}] += float64(r.Waiting)
		if !r.Oldest.IsZero() {
			waits := max(0, now.Sub(r.Oldest).Seconds())
			oldest[reason] = max(oldest[reason], waits)
			oldestOf[key{name, reason}] = max(oldestOf[key{name, reason}], waits)
		}
	}
	for k, n := range count {
		ch <- prometheus.MustNewConstMetric(credentialsDesc, prometheus.GaugeValue, n, k.connector, k.word)
	}
	for k, n := range waitedFor {
		ch <- prometheus.MustNewConstMetric(waitedForDesc, prometheus.GaugeValue, n, k.connector, k.word)
	}
	for name, n := range failing {
		ch <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, n, name)
	}
	for k, n := range waiting {
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, n, k.connector, k.word)
	}
	for reason, seconds := range oldest {
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, seconds, reason)
	}
	for k, seconds := range oldestOf {
		ch <- prometheus.MustNewConstMetric(connectorOldestDesc, prometheus.GaugeValue, seconds, k.connector, k.word)
	}
}
