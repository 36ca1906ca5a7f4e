package jobs

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// lineKeeper is this process's part in the lines: it renews the places that
// its calls hold, and wakes those that it called up.
type lineKeeper struct {
	p *Pool

	mu    sync.Mutex
	held  map[string]string    // token of an attempt → credential
	looks map[string]time.Time // credential → when its line is looked at next
}

func newLineKeeper(p *Pool) *lineKeeper {
	return &lineKeeper{p: p, held: map[string]string{}, looks: map[string]time.Time{}}
}

func (k *lineKeeper) hold(token, credential string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held[token] = credential
}

func (k *lineKeeper) release(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, token)
}

// renewScript extends leases that still stand. One that has lapsed, because
// its worker was stopped meanwhile, may have gone to another call: it is not
// taken back, so that there is one call too many until this one ends.
//
//	KEYS  in
//	ARGV  lease (ms), token, ...
var renewScript = redis.NewScript(`
local clock = redis.call('TIME')
local now = math.floor(clock[1] * 1000 + clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[i]) end
`)

// renew extends the leases of all calls under way.
func (k *lineKeeper) renew(ctx context.Context) {
	tokens := map[string][]any{}
	k.mu.Lock()
	for token, credential := range k.held {
		if tokens[credential] == nil {
			tokens[credential] = []any{placeLease.Milliseconds()}
		}
		tokens[credential] = append(tokens[credential], token)
	}
	k.mu.Unlock()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(resumeWidth)
	for credential, args := range tokens {
		g.Go(func() error { // one that fails is renewed with the next round: there are two more
			_ = renewScript.Run(gctx, k.p.rdb, []string{lineKey(credential) + ":in"}, args...).Err()
			return nil
		})
	}
	_ = g.Wait()
}

// ask runs the line's script, and has those woken whom it called up.
func (k *lineKeeper) ask(ctx context.Context, credential string, r lineRequest) (*stand, error) {
	out, err := lineScript.Run(ctx, k.p.rdb, lineKeys(credential), r.args()...).Slice()
	if err != nil {
		return nil, err
	}
	s, err := readStand(out)
	if err != nil {
		return nil, err
	}
	if len(s.called) > 0 {
		now := time.Now()
		for _, name := range s.called {
			queue, id := splitWaiter(name)
			k.p.waker.add(alarm{at: now, queue: queue, id: id, line: credential})
		}
		k.lookAt(credential, now.Add(calledFor)) // whether they came
	}
	return s, nil
}

// drop takes one out of its line that does not come any more.
func (k *lineKeeper) drop(ctx context.Context, credential, waiter string) error {
	_, err := k.ask(ctx, credential, lineRequest{mode: "leave", waiter: waiter, max: -1, outcome: outDropped})
	return err
}

// lookAt has the waker look at a line at that time.
func (k *lineKeeper) lookAt(credential string, at time.Time) {
	k.mu.Lock()
	was, pending := k.looks[credential]
	earlier := pending && !was.After(at) // that one sees what is to be done next
	if !earlier {
		k.looks[credential] = at
	}
	k.mu.Unlock()
	if !earlier {
		k.p.waker.add(alarm{at: at, line: credential})
	}
}

// looked is lookAt's alarm.
func (k *lineKeeper) looked(ctx context.Context, a alarm) {
	k.mu.Lock()
	if k.looks[a.line].Equal(a.at) {
		delete(k.looks, a.line)
	}
	k.mu.Unlock()
	_, _ = k.look(ctx, a.line) // else the sweeper does
}

// look calls up who is next, and says whether anybody waits.
func (k *lineKeeper) look(ctx context.Context, credential string) (waits bool, err error) {
	s, err := k.ask(ctx, credential, lineRequest{mode: "look", max: -1})
	if err != nil {
		return false, err
	}
	if s.pause > 0 && s.before > 0 {
		k.lookAt(credential, s.until())
	}
	return s.before > 0, nil
}

// callUp puts one back to pending whose place is free, or passes it over.
func (k *lineKeeper) callUp(ctx context.Context, a alarm) {
	info, err := k.p.client.taskInfo(a.queue, a.id)
	if err != nil || ctx.Err() != nil {
		return // it is passed over, or its timer wakes it
	}
	switch {
	case info != nil && info.State == asynq.TaskStatePending:
		return // its timer was quicker
	case info != nil && info.State == asynq.TaskStateActive:
		if a.looks < wakeLooks { // on its way from active to retry
			a.looks++
			a.at = time.Now().Add(wakeAgain)
			k.p.waker.add(a)
		}
		return
	case info != nil && info.State == asynq.TaskStateRetry && strings.HasPrefix(info.LastErr, whyDeferred+": "):
		_ = k.p.client.inspector.RunTask(a.queue, a.id) // else its timer was quicker
		return
	}
	if err := k.drop(ctx, a.line, waiterName(a.queue, a.id)); err != nil {
		k.p.log.Warn("a line goes on later", "credential_id", a.line)
	}
}

// sweep goes through all lines: places whose worker died have lapsed, and who
// was to be called up may not have been.
func (k *lineKeeper) sweep(ctx context.Context) {
	ids, err := k.p.rdb.SMembers(ctx, linesKey).Result()
	if err != nil {
		return
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, id := range ids {
		g.Go(func() error { k.sweepOne(gctx, id); return nil })
	}
	_ = g.Wait()
}

func (k *lineKeeper) sweepOne(ctx context.Context, id string) {
	waits, err := k.look(ctx, id)
	if err != nil || waits || k.p.rdb.SRem(ctx, linesKey, id).Err() != nil {
		return // the next round looks again
	}
	// Who joins now adds the line before that or after it: so look again.
	if waits, err := k.look(ctx, id); err != nil || waits {
		_ = k.p.rdb.SAdd(ctx, linesKey, id).Err()
	}
}
