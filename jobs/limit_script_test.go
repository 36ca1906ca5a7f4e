package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/redistest"
)

// asker asks limits as attempts do.
type asker struct {
	t   *testing.T
	rdb redis.UniversalClient
	p   *Pool
	m   *definition.Method
}

func newAsker(t *testing.T, limits ...definition.RateLimit) *asker {
	rdb := redistest.New(t).Client(t)
	return &asker{t: t, rdb: rdb, p: &Pool{rdb: rdb}, m: &definition.Method{Name: "m", RateLimits: limits}}
}

func (a *asker) attempt(credential, id string) *attempt {
	return &attempt{p: a.p, id: id, rec: &record{}, meth: a.m, def: &definition.Connector{Name: "acme"}, cred: &credentials.Credential{ID: credential}}
}

func (a *asker) ask(credential, id, mode string) time.Duration {
	a.t.Helper()
	v, err := a.attempt(credential, id).ask(context.Background(), mode, "")
	if err != nil {
		a.t.Fatal(err)
	}
	return v.wait
}

func perMinute(n int, scope string) definition.RateLimit {
	return definition.RateLimit{Requests: n, Per: time.Minute, Scope: scope}
}

// near says that two waits are the same but for the time between the asking.
func near(got, want time.Duration) bool { return (got - want).Abs() < time.Second }

// Many ask at once, of two credentials, for two limits and then some windows:
// no window of either has more than its limit. A grant happened between its
// asking and its answer, so that only what is certain counts.
func TestLimitScript_noWindowHasMore(t *testing.T) {
	const per = 400 * time.Millisecond
	own := definition.RateLimit{Requests: 12, Per: per, Scope: definition.ScopeCredential}
	all := definition.RateLimit{Requests: 20, Per: 2 * per, Scope: definition.ScopeConnector}
	a := newAsker(t, own, all)
	type grant struct {
		credential    string
		asked, answer time.Time
	}
	var mu sync.Mutex
	var grants []grant
	g, ctx := errgroup.WithContext(context.Background())
	for i := range 80 {
		credential := []string{"a", "b"}[i%2]
		g.Go(func() error {
			for {
				asked := time.Now()
				v, err := a.attempt(credential, fmt.Sprint(i)).ask(ctx, "send", "")
				if err != nil {
					return err
				}
				if v.wait == 0 {
					mu.Lock()
					defer mu.Unlock()
					grants = append(grants, grant{credential, asked, time.Now()})
					return nil
				}
				if err := pause(ctx, v.wait); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limit definition.RateLimit
		of    string
	}{{own, "a"}, {own, "b"}, {all, ""}} {
		for _, from := range grants {
			n := 0
			for _, g := range grants {
				if (c.of == "" || g.credential == c.of) && !g.asked.Before(from.asked) && g.answer.Sub(from.asked) < c.limit.Per {
					n++
				}
			}
			if n > c.limit.Requests {
				t.Fatalf("%d requests of %q from %s on, the limit is %s", n, c.of, from.asked, c.limit)
			}
		}
	}
	if len(grants) != 80 {
		t.Errorf("%d grants, want 80", len(grants))
	}
}

func TestLimitScript_placesAreKeptAndUsedOnce(t *testing.T) {
	a := newAsker(t, perMinute(2, definition.ScopeCredential))
	for _, id := range []string{"1", "2"} {
		if wait := a.ask("c", id, "send"); wait != 0 {
			t.Fatalf("%s waits %s, the limit is 2", id, wait)
		}
	}
	third := a.ask("c", "3", "send")
	if third < time.Minute || third > 62*time.Second {
		t.Errorf("the third waits %s, want a minute and its margin", third)
	}
	if fourth := a.ask("c", "4", "send"); fourth < third+25*time.Second {
		t.Errorf("the fourth waits %s: turns are half a minute apart, and the third's is in %s", fourth, third)
	}
	// Asked again it waits on, for the same place, and takes nobody's.
	if again := a.ask("c", "3", "send"); !near(again, third) || again > third {
		t.Errorf("asked again the third waits %s, before it was %s", again, third)
	}
	// Its turn comes: it goes once. A second time it is a new request.
	_, waiting := a.attempt("c", "3").limitKeys(a.m.RateLimits[0])
	log, _ := a.attempt("c", "3").limitKeys(a.m.RateLimits[0])
	a.rdb.Del(context.Background(), log) // a minute later
	a.rdb.ZAdd(context.Background(), waiting, redis.Z{Score: float64(time.Now().UnixMilli()), Member: "3"})
	if wait := a.ask("c", "3", "send"); wait != 0 {
		t.Errorf("at its turn the third waits %s", wait)
	}
	if wait := a.ask("c", "3", "send"); wait == 0 {
		t.Error("the third went twice, before the fourth")
	}
}

// A place whose execution never comes back is nobody's after a while, and the
// turns before it are not lost meanwhile.
func TestLimitScript_placesOfTheDeadLapse(t *testing.T) {
	a := newAsker(t, perMinute(1, definition.ScopeConnector))
	_, waiting := a.attempt("c", "dead").limitKeys(a.m.RateLimits[0])
	old := time.Now().Add(-placeGrace - time.Second)
	a.rdb.ZAdd(context.Background(), waiting, redis.Z{Score: float64(old.UnixMilli()), Member: "dead"})
	if wait := a.ask("c", "1", "send"); wait != 0 {
		t.Errorf("it waits %s for one that is dead", wait)
	}
	if ttl := a.rdb.PTTL(context.Background(), waiting).Val(); ttl > 0 {
		t.Errorf("a set of nobody has a life of %s", ttl)
	}
}

// Who waits for a limit of his own takes no turn of others meanwhile, and who
// is held by two of them waits for the later one.
func TestLimitScript_scopesTogether(t *testing.T) {
	a := newAsker(t, perMinute(1, definition.ScopeCredential), perMinute(4, definition.ScopeConnector))
	waits := map[string][]time.Duration{}
	for i := range 3 {
		waits["a"] = append(waits["a"], a.ask("a", fmt.Sprint("a", i), "send"))
	}
	for _, c := range []string{"b", "c", "d"} {
		waits[c] = append(waits[c], a.ask(c, c, "send"))
	}
	// a's are at 0, 60 and 120 s; b, c and d have not waited for them, though
	// with those that wait the connector's limit is full.
	if w := waits["a"]; w[0] != 0 || w[1] < time.Minute || w[2] < 2*time.Minute {
		t.Errorf("a waits %s", w)
	}
	for _, c := range []string{"b", "c", "d"} {
		if w := waits[c][0]; w > 50*time.Second {
			t.Errorf("%s waits %s", c, w)
		}
	}
}

// Tens of thousands of places, of a window of a day: the same few commands for
// each, and a bounded log.
func TestLimitScript_boundedTimeAndMemory(t *testing.T) {
	a := newAsker(t, definition.RateLimit{Requests: 1000, Per: 24 * time.Hour, Scope: definition.ScopeConnector})
	ctx := context.Background()
	const n = 5000
	var turns []time.Duration
	begun := time.Now()
	for i := range n {
		turns = append(turns, time.Since(begun)+a.ask("c", fmt.Sprint(i), "send"))
	}
	if !slices.IsSorted(turns[1000:]) {
		t.Error("a later one has an earlier turn")
	}
	last := turns[n-1]
	// A thousand go at once, the others evenly from the second day on.
	if want := 5 * 24 * time.Hour; last < want || last > want+want/20 {
		t.Errorf("the last of %d has its turn in %s, want %s and at most 5 %% more", n, last, want)
	}
	log, waiting := a.attempt("c", "").limitKeys(a.m.RateLimits[0])
	if got := a.rdb.HLen(ctx, log).Val(); got > windowParts+3 {
		t.Errorf("the log has %d fields", got)
	}
	if got := a.rdb.ZCard(ctx, waiting).Val(); got != n-1000 {
		t.Errorf("%d places, want %d", got, n-1000)
	}
	if err := a.rdb.ConfigResetStat(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	a.ask("c", "one more", "send")
	info := a.rdb.Info(ctx, "commandstats").Val()
	calls := 0
	for line := range strings.Lines(info) {
		var k int
		if _, after, ok := strings.Cut(line, ":calls="); ok && !strings.HasPrefix(line, "cmdstat_config") {
			_, _ = fmt.Sscanf(after, "%d", &k)
			calls += k
		}
	}
	if calls > 80 {
		t.Errorf("%d commands for one more, want some dozens:\n%s", calls, info)
	}
}

// What scripts ask for by themselves counts, and is not held back.
func TestLimitScript_extraRequestsCount(t *testing.T) {
	a := newAsker(t, perMinute(2, definition.ScopeCredential))
	for range 5 {
		if wait := a.ask("c", "x", "extra"); wait != 0 {
			t.Fatalf("a script's request waits %s", wait)
		}
	}
	if wait := a.ask("c", "1", "send"); wait < time.Minute {
		t.Errorf("after five requests of scripts a call waits %s, the limit is 2 a minute", wait)
	}
}

// A grant whose answer came late counts when its request is sent, once.
func TestLimitScript_lateGrantsMove(t *testing.T) {
	l := definition.RateLimit{Requests: 10, Per: 2 * time.Second, Scope: definition.ScopeConnector}
	a := newAsker(t, l)
	at := a.attempt("c", "1")
	log, _ := at.limitKeys(l)
	counts := func() map[string]string {
		all := a.rdb.HGetAll(context.Background(), log).Val()
		delete(all, "last")
		return all
	}
	v, err := at.ask(context.Background(), "send", "")
	if err != nil || v.wait != 0 || v.granted == 0 {
		t.Fatal(v, err)
	}
	before := counts()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err := at.sendLate(context.Background(), v, time.Now().Add(-time.Minute)); err != nil {
			t.Fatal(err)
		}
		after := counts()
		if len(after) != 1 || slices.Collect(maps.Values(after))[0] != "1" {
			t.Fatalf("granted %v, moved %v", before, after)
		}
		if slices.Collect(maps.Keys(after))[0] != slices.Collect(maps.Keys(before))[0] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not move")
		}
	}
}

// A place that was granted at the call's beginning is kept for its request.
func TestLimitScript_beginKeepsThePlace(t *testing.T) {
	a := newAsker(t, perMinute(1, definition.ScopeCredential))
	if wait := a.ask("c", "1", "begin"); wait != 0 {
		t.Fatalf("the first waits %s", wait)
	}
	if wait := a.ask("c", "2", "send"); wait == 0 {
		t.Error("the second took the first's place")
	}
	if wait := a.ask("c", "1", "send"); wait != 0 {
		t.Errorf("the first waits %s for its own place", wait)
	}
}

// All keys of one call are in one slot of a Redis Cluster, whatever names its
// credential and method have.
func TestLimitKeys_shareAHashTag(t *testing.T) {
	a := newAsker(t)
	for _, l := range []definition.RateLimit{
		{Requests: 1, Per: time.Second, Scope: definition.ScopeConnector},
		{Requests: 1, Per: time.Second, Scope: definition.ScopeCredential, Method: "get{x}"},
	} {
		log, waiting := a.attempt("a{b}c", "1").limitKeys(l)
		for _, k := range []string{log, waiting} {
			if _, rest, _ := strings.Cut(k, "{"); !strings.HasPrefix(k, "stepworker:rate:{") || !strings.HasPrefix(rest, "acme}") {
				t.Errorf("key %q", k)
			}
		}
	}
}
