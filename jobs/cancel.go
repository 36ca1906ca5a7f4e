package jobs

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/internal/killpoint"
	"github.com/stepworker/stepworker/internal/spans"
)

// TypeCancel is the task, on QueueRefresh, that ends executions that are to be
// cancelled. Workers of that queue are always free, so that neither a backlog
// nor a paused queue of steps delays it.
const TypeCancel = "execution:cancel"

// cancelTask is its payload.
type cancelTask struct {
	ExecutionIDs []string `json:"execution_ids"`
}

const (
	cancelPage = 100 // executions in one task
	// cancelChannel is where workers are told the tokens of attempts that are
	// to end. What nobody hears is told again.
	cancelChannel = "stepworker:cancel"
	// longBacklog is how many pending tasks of a queue are gone through for one.
	longBacklog = 20_000
	firstLook   = 20 * time.Millisecond
	lastLook    = 500 * time.Millisecond
	// deafAfter is how long an active execution's worker may take to end it;
	// then it is taken for dead, and its attempt's writes are void.
	deafAfter = 5 * time.Second
	// cancelShare is how many of a process's refreshers may end executions at once.
	cancelShare = refreshers / 4
	// endingFor is how long an execution that has failed may be active, until its
	// task has ended too.
	endingFor = time.Second
	// cancelStay is how long one task looks; longer than a claim may be without
	// a task.
	cancelStay = claimGrace + 2*time.Second
)

// errCancelled is why the context of an attempt ends that is to be cancelled: a
// worker that drains ends it without a cause of ours.
var errCancelled = errors.New("the execution is cancelled")

// markScript marks an execution as to be cancelled. The mark stands in the
// execution's record, and goes when that ends, or is claimed by another
// execution of the same id.
//
//	KEYS  execution hash
//	ARGV  queue of its task, where no record names it; else ""
//	returns 1 if it is marked, 2 if it has ended, 3 if it has failed, 0 if it is
//	unknown
var markScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'q', 'end')
if h[2] == 'failed' then return 3 end
if h[2] then return 2 end
if not h[1] then
  if ARGV[1] == '' then return 0 end
  redis.call('HSET', KEYS[1], 'q', ARGV[1])
end
redis.call('HSETNX', KEYS[1], 'cx', redis.call('TIME')[1])
return 1
`)

// markAgainScript marks a failed execution that a person runs again: it sheds
// its end, as it does when an attempt begins, unless one has and has ended.
//
//	KEYS  execution hash, result
//	ARGV  SHA-1 of its result, attempts that this tells of
//	returns 1 if it is marked, 2 if it has ended, 3 if it has failed anew
var markAgainScript = redis.NewScript(`
local e = redis.call('HGET', KEYS[1], 'end')
if e and e ~= 'failed' then return 2 end
if e then
  if redis.sha1hex(redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 3 end
  redis.call('HDEL', KEYS[1], 'end')
  redis.call('HSET', KEYS[1], 'att', ARGV[2])
  redis.call('PERSIST', KEYS[1])
end
redis.call('HSETNX', KEYS[1], 'cx', redis.call('TIME')[1])
return 1
`)

// Cancel asks for the end of executions with status Cancelled, whatever they
// are doing; Wait tells how each ended. It returns once all are marked: from
// then on none of them begins another attempt, and the next worker that looks
// ends them, which takes a moment while one runs. A call that is under way is
// broken off.
//
// One that has ended, or ends meanwhile, keeps its result; nothing is done
// where there is none of that id, which an *UnknownError tells once all others
// are marked. Another error means that some may not be marked. To ask again is
// safe, and is never taken for a question about a later execution of that id.
func (c *Client) Cancel(ctx context.Context, ids ...string) error {
	unknown := &UnknownError{}
	for page := range slices.Chunk(ids, batchPage) {
		marked, err := c.mark(ctx, page, unknown)
		for part := range slices.Chunk(marked, cancelPage) {
			if err := c.hintCancel(ctx, part); err != nil {
				return redisError(err)
			}
		}
		if err != nil {
			return redisError(err)
		}
	}
	if len(unknown.IDs) > 0 {
		return unknown
	}
	return nil
}

// mark marks executions in one round trip, and returns those that are.
func (c *Client) mark(ctx context.Context, ids []string, unknown *UnknownError) (marked []string, err error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		if executionID.MatchString(id) {
			keys[i] = execKey(id)
		}
	}
	answers := runEach(ctx, c.rdb, markScript, keys, func(int) []any { return []any{""} })
	states := make([]int, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(enqueueWidth)
	for i, id := range ids {
		if answers[i] == nil {
			continue
		}
		g.Go(func() (err error) {
			states[i], err = answers[i].Int()
			switch {
			case err == nil && states[i] == failedAlready:
				states[i], err = c.markAgain(gctx, id)
				return err
			case err != nil || states[i] != 0:
				return err
			}
			queue, err := c.queueOf(id) // a flow may have enqueued it with asynq alone
			if err == nil && queue != "" {
				states[i], err = markScript.Run(gctx, c.rdb, []string{execKey(id)}, queue).Int()
			}
			return err
		})
	}
	err = g.Wait()
	for i, id := range ids {
		switch {
		case states[i] == 1:
			marked = append(marked, id)
		case states[i] == 0 && err == nil:
			unknown.IDs = append(unknown.IDs, id)
		}
	}
	return marked, err
}

// failedAlready is what markScript and markAgainScript say of an execution that
// has failed.
const failedAlready = 3

// markAgain marks an execution that has failed, if a person runs it again and no
// attempt has begun since. Of one that is active it takes a moment to tell
// whether it is that, or ends just now.
func (c *Client) markAgain(ctx context.Context, id string) (state int, err error) {
	for until := time.Now().Add(endingFor); ; {
		var raw *redis.StringCmd
		var fields *redis.SliceCmd
		_, err := c.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			raw, fields = pipe.Get(ctx, resultKey(id)), pipe.HMGet(ctx, execKey(id), "q", "cnt")
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) {
			return 0, err
		}
		queue, _ := fields.Val()[0].(string)
		count, counted := fields.Val()[1].(string)
		info, err := c.taskInfo(queue, id)
		switch {
		case err != nil || info == nil || info.State == asynq.TaskStateArchived || info.State == asynq.TaskStateCompleted:
			return failedAlready, err
		case counted && strconv.Itoa(info.Retried) != count: // asynq gives it to another, see beginScript
			return failedAlready, nil
		case info.State != asynq.TaskStateActive:
			attempts := 0
			if r, err := decodeResult([]byte(raw.Val())); err == nil {
				attempts = r.Attempts
			}
			sum := sha1.Sum([]byte(raw.Val())) // Redis has no other, and it guards nothing
			return markAgainScript.Run(ctx, c.rdb, []string{execKey(id), resultKey(id)}, hex.EncodeToString(sum[:]), attempts).Int()
		case time.Now().After(until):
			return failedAlready, nil
		}
		if err := pause(ctx, firstLook); err != nil {
			return 0, err
		}
		if state, err = markScript.Run(ctx, c.rdb, []string{execKey(id)}, "").Int(); err != nil || state != failedAlready {
			return state, err
		}
	}
}

func (c *Client) hintCancel(ctx context.Context, ids []string) error {
	raw, err := json.Marshal(cancelTask{ids})
	if err != nil {
		return err
	}
	_, err = c.asynq.EnqueueContext(ctx, asynq.NewTask(TypeCancel, raw), asynq.TaskID("cancel:"+ulid.Make().String()), asynq.Queue(QueueRefresh),
		asynq.MaxRetry(asynqMaxRetry), asynq.Timeout(refreshTaskTimeout))
	return err
}

// canceller ends executions that are marked.
type canceller struct {
	p       *Pool
	running sync.Map      // token of an attempt → its context.CancelCauseFunc
	tasks   chan struct{} // that are done now, so that thousands leave refreshers to others
	slots   chan struct{} // who ends one now, and connections to others
}

func newCanceller(p *Pool) *canceller {
	return &canceller{p: p, tasks: make(chan struct{}, cancelShare), slots: make(chan struct{}, 2*resumeWidth)}
}

// hold lets an attempt be ended until release.
func (c *canceller) hold(ctx context.Context, token string) (held context.Context, release func()) {
	held, cancel := context.WithCancelCause(ctx)
	c.running.Store(token, cancel)
	return held, func() {
		c.running.Delete(token)
		cancel(nil)
	}
}

// stop ends an attempt, if it runs here.
func (c *canceller) stop(token string) bool {
	cancel, here := c.running.Load(token)
	if here {
		cancel.(context.CancelCauseFunc)(errCancelled)
	}
	return here
}

// hear ends the attempts that others ask for, also while the pool drains.
func (c *canceller) hear() {
	ctx := c.p.base
	sub := c.p.rdb.Subscribe(ctx, cancelChannel)
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-sub.Channel():
			if !ok {
				return
			}
			for token := range strings.FieldsSeq(m.Payload) {
				c.stop(token)
			}
		}
	}
}

// process runs one task. An execution that a worker has in hand is ended by
// that worker; this one looks until it is.
func (c *canceller) process(ctx context.Context, t *asynq.Task) error {
	var task cancelTask
	if err := json.Unmarshal(t.Payload(), &task); err != nil {
		return fmt.Errorf("the payload cannot be understood: %w", asynq.SkipRetry)
	}
	select {
	case c.tasks <- struct{}{}:
		defer func() { <-c.tasks }()
	default:
		return &waitError{why: whyDeferred, text: "cancel: many others are being done", delay: time.Second + rand.N(time.Second)}
	}
	left, begun := task.ExecutionIDs, time.Now()
	for wait := firstLook; ; wait = min(wait*3/2, lastLook) {
		round := &cancelRound{c: c, deaf: time.Since(begun) > deafAfter, last: time.Since(begun) > cancelStay}
		if left = round.run(ctx, left); len(left) == 0 {
			return nil
		}
		if round.last || c.p.draining.Load() {
			return &waitError{why: whyDeferred, text: fmt.Sprintf("cancel: %d executions are looked at again", len(left)), delay: time.Second}
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// cancelRound looks at each execution once.
type cancelRound struct {
	c          *canceller
	deaf, last bool

	mu     sync.Mutex
	left   []string
	tokens []string // of attempts that run elsewhere
}

func (r *cancelRound) run(ctx context.Context, ids []string) (left []string) {
	var wg sync.WaitGroup
	for _, id := range ids {
		r.c.slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-r.c.slots }()
			if r.one(ctx, id) {
				r.mu.Lock()
				r.left = append(r.left, id)
				r.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(r.tokens) > 0 { // should it not be heard the next round tells it again
		_ = r.c.p.rdb.Publish(ctx, cancelChannel, strings.Join(r.tokens, " ")).Err()
	}
	return r.left
}

// one ends an execution, unless a worker has it in hand; stays says that it is
// to be looked at again. What is not marked is none of ours: it has ended, or
// is another execution of that id.
func (r *cancelRound) one(ctx context.Context, id string) (stays bool) {
	p := r.c.p
	values, err := p.rdb.HMGet(ctx, execKey(id), "q", "end", "cx", "run").Result()
	if err != nil {
		return true
	}
	field := func(i int) string { s, _ := values[i].(string); return s }
	queue, end, token := field(0), Status(field(1)), field(3)
	if end != Cancelled && (end != "" || field(2) == "") {
		return false
	}
	info, err := p.client.taskInfo(queue, id)
	switch {
	case err != nil:
		return true
	case info == nil && (end != "" || r.last):
		if end == "" { // deleted from the dashboard: nobody will ever end it
			_ = p.rdb.PExpire(ctx, execKey(id), DefaultRetention).Err()
		}
		return false
	case info == nil: // somebody is just enqueueing it
		return true
	case info.Type != TypeStep:
		return false
	case info.State == asynq.TaskStateActive && end != "":
		return false // who has it in hand sees the end
	case info.State == asynq.TaskStateActive && !r.deaf:
		if token != "" && !r.c.stop(token) {
			r.mu.Lock()
			r.tokens = append(r.tokens, token)
			r.mu.Unlock()
		}
		return true
	}
	return r.end(ctx, info, end != "")
}

// end writes the end of an execution that no worker has in hand, and then
// deletes its task. An attempt that begins meanwhile sees the mark, or the end.
func (r *cancelRound) end(ctx context.Context, info *asynq.TaskInfo, ended bool) (stays bool) {
	p := r.c.p
	step, err := decodePayload(info.Payload)
	var newer *newerError
	switch {
	case errors.As(err, &newer):
		return true // a newer worker's
	case err != nil:
		step = &payload{}
	}
	now := time.Now()
	a := &attempt{p: p, id: info.ID, step: step, at: now, taken: now, origin: spans.Read(info.Headers), broken: info.State == asynq.TaskStateActive}
	if ended { // a worker died before it had given all back
		a.rec = &record{queue: info.Queue}
		a.unwait(ctx)
	} else if !a.claim(ctx, info) {
		return true
	} else if a.rec.end != "" || !a.rec.cancel {
		return false
	} else if !r.cancelled(ctx, a, info) {
		return true
	}
	killpoint.KillPoint("cancelled")
	if info.State != asynq.TaskStateActive && !r.buried(ctx, info) {
		_ = p.client.inspector.DeleteTask(info.Queue, info.ID) // else it was taken just now
	}
	return false
}

// cancelled ends the execution that a has claimed, as if it were an attempt.
func (r *cancelRound) cancelled(ctx context.Context, a *attempt, info *asynq.TaskInfo) bool {
	ctx = a.startCancelSpan(ctx, info.Queue)
	err := a.cancelled(ctx)
	a.end(ctx, err)
	return errors.Is(err, asynq.RevokeTask)
}

// buried says that a task stands in a backlog so long that Redis, which would
// have to go through all of it, would be held up: it goes when its turn comes.
func (r *cancelRound) buried(ctx context.Context, info *asynq.TaskInfo) bool {
	if info.State != asynq.TaskStatePending {
		return false
	}
	n, err := r.c.p.rdb.LLen(ctx, "asynq:{"+info.Queue+"}:pending").Result()
	return err != nil || n > longBacklog
}

// claim begins as an attempt does, so that what an earlier one still writes is
// void; an execution that has ended, or is not marked, is left as it is.
func (a *attempt) claim(ctx context.Context, info *asynq.TaskInfo) bool {
	cred, _, err := a.begin(ctx, info.Retried, beginMarked)
	if err != nil {
		return false
	}
	a.cred, a.rec.queue, a.rec.account = cred, info.Queue, a.step.account()
	if a.rec.enqueuedAt == 0 && !a.step.EnqueuedAt.IsZero() {
		a.rec.enqueuedAt = a.step.EnqueuedAt.UnixMilli()
	}
	killpoint.KillPoint("cancel-claimed")
	return true
}

// isCancelled says that an attempt's context was ended to cancel it.
func isCancelled(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errCancelled) }

// breakOff notes what an attempt did whose call was broken off.
func (a *attempt) breakOff(err error) error {
	var auth *connectors.AuthError
	var ce *connectors.CallError
	switch {
	case errors.As(err, &auth):
		a.broken = auth.Ran
		a.ran(auth.Ran, auth.Logs)
	case errors.As(err, &ce):
		a.broken = ce.Ran
		a.ran(ce.Ran, ce.Logs)
	default:
		a.broken = true
		a.ran(true, nil)
	}
	return errCancelled
}

// cancelled ends the execution. Its task goes: the result tells what became of it.
func (a *attempt) cancelled(ctx context.Context) error {
	a.put, a.stands = false, false // it waits for nothing any more
	a.rec.inSet = a.rec.begun      // perhaps: a worker may have died just after it joined
	res := a.result(Cancelled)
	res.Pages = a.rec.pages
	res.Error = &ResultError{Kind: KindCancelled, Message: a.cancelText()}
	if err := a.finish(ctx, res); err != nil {
		return err
	}
	a.p.observe(Moment{What: string(Cancelled), Text: res.Error.Message}, a)
	return fmt.Errorf("%w: %w", errCancelled, asynq.RevokeTask)
}

func (a *attempt) cancelText() string {
	n := a.rec.attempts
	switch {
	case a.broken:
		return "cancelled while its call was under way: the API may have carried it out"
	case n == 0 && a.rec.pages == 0:
		return "cancelled before its call was made"
	case a.rec.pages > 0:
		return fmt.Sprintf("cancelled between two attempts, after %d pages; what was fetched is given up", a.rec.pages)
	case n == 1:
		return "cancelled after one attempt, before the next: what the API did then is not undone"
	}
	return fmt.Sprintf("cancelled after %d attempts, before the next: what the API did then is not undone", n)
}

// unwait takes the execution out of its credential's waiting set.
func (a *attempt) unwait(ctx context.Context) {
	if a.step.CredentialID != "" {
		_ = a.p.cfg.Store.Unwait(ctx, a.step.CredentialID, a.waiter())
	}
}
