package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/codes"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/internal/killpoint"
	"github.com/stepworker/stepworker/internal/spans"
)

// This file is the one table from how an attempt ended to what happens next.
//
//	what happened                         next            uses up a retry
//	ran to its end                        completed       -
//	AuthError, credential known refused   parked          no
//	revoked, misconfigured                held            no
//	CallError.TurnAt, .Limited, .Defer    deferred        no
//	no place in its credential's line     deferred        no
//	CallError.Repeat                      retried         yes
//	any other error                       archived        -
//	worker drained, killed                another takes it  no
//	cancelled                             its task goes   -
//	this worker's own fault               put back        no
//	ran out of time while it stood still  put back        no

const (
	// asynqMaxRetry keeps asynq from ever ending an execution by itself: at
	// its limit it archives even what only parks.
	asynqMaxRetry = 1 << 20
	// attemptGrace is how much later asynq's timeout comes than ours.
	attemptGrace = 30 * time.Second

	// takeOver is how long a step of a dead worker rests. Each asynq.Server of
	// each worker lists the lapsed leases, then takes the tasks up one by one: were
	// one running again by then, the next would take it from that worker too.
	takeOver = 5 * time.Second

	firstRetry   = time.Second
	longestRetry = 10 * time.Minute
	// rateWait is how long a 429 without Retry-After waits; of rateGrowth the
	// first is added to the first in a row, and so on; the last stays.
	rateWait = 60 * time.Second
)

var rateGrowth = []time.Duration{0, time.Minute, 3 * time.Minute, 7 * time.Minute, 15 * time.Minute, 30 * time.Minute}

// waitError puts an execution back. It is no failure unless fault is set.
type waitError struct {
	why   string
	text  string
	delay time.Duration
	fault bool
	// untold: no log line has said so yet.
	untold    bool
	overtaken bool
}

func (e *waitError) Error() string { return e.why + ": " + e.text }

// waits says of a task's last error that it waits for its credential.
func waits(lastErr string) bool {
	why, _, _ := strings.Cut(lastErr, ": ")
	return why == whyParked || why == whyHeld
}

// retryDelay, isFailure are asynq's questions about a handler's error.
func retryDelay(n int, err error, t *asynq.Task) time.Duration {
	var w *waitError
	if errors.As(err, &w) {
		return w.delay
	}
	if errors.Is(err, asynq.ErrLeaseExpired) { // its worker is gone
		if t.Type() == TypeStep {
			return takeOver
		}
		return 0 // a refresh that is begun twice is made once
	}
	return backoffDelay(n)
}

func isFailure(err error) bool {
	var w *waitError
	if errors.As(err, &w) {
		return w.fault
	}
	return true
}

// backoffDelay grows from a second to ten minutes, doubling, with full jitter
// on its upper half.
func backoffDelay(n int) time.Duration {
	d := min(firstRetry<<min(n, 20), longestRetry)
	return d/2 + time.Duration(rand.Int64N(int64(d)/2+1))
}

// notBefore is the delay after which a time that an API named has come: asynq
// counts whole seconds, downwards.
func notBefore(d time.Duration) time.Duration {
	if d < time.Second {
		return d
	}
	return d + time.Second
}

// outcome maps an error of Caller.Call to the execution's next state. Where the
// API asked to wait it stands in its credential's line, unless Redis was away.
func (a *attempt) outcome(ctx context.Context, err error, s *stand) error {
	var auth *connectors.AuthError
	var ce *connectors.CallError
	switch {
	case isCancelled(ctx):
		return a.breakOff(err)
	case ranOut(err) && a.p.awake.lapsedSince(a.taken):
		return a.p.workerFault("this worker stood still for so long that others take its executions over; what ran out of time meanwhile tells nothing")
	case errors.As(err, &auth):
		a.ran(auth.Ran, auth.Logs)
		return a.refused(ctx, auth)
	case errors.As(err, &ce):
		a.ran(ce.Ran, ce.Logs)
		a.limit = ce.Limit
	case errors.Is(err, context.DeadlineExceeded):
		a.ran(true, nil)
		a.limit = limitStepTimeout
		return a.fail(detached(ctx), &ResultError{Kind: KindLimit, Message: fmt.Sprintf("the attempt took longer than the step's timeout, %s", a.step.timeout())})
	case errors.Is(err, errOvertaken): // told by what keeps its pages
		return a.overtaken()
	case errors.Is(err, context.Canceled):
		return err // the worker drains: asynq puts the task back
	default:
		return a.p.workerFault(err.Error())
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if err := a.p.keepActionData(a.id, a.rec, ce.ActionData); err != nil {
		return a.p.workerFault("action_data cannot be sealed")
	}
	failure := &ResultError{Kind: ce.Kind, Message: ce.Message, Detail: ce.Detail, At: ce.At}
	switch {
	case a.paused:
		s, err := a.askLine(ctx, "join", "", nil)
		if err != nil {
			return a.p.workerFault("redis cannot be written")
		}
		return a.wait(ctx, s, "")
	case !ce.TurnAt.IsZero():
		return a.awaitTurn(ctx, ce)
	case ce.Limited && s == nil:
		return a.p.workerFault("redis cannot be written")
	case ce.Limited:
		return a.wait(ctx, s, ce.Message)
	case ce.Defer:
		a.p.metrics.deferrals.WithLabelValues(a.connector(), reasonScript).Inc()
		a.p.observe(Moment{What: "deferred", Text: ce.Message}, a)
		return a.putBack(ctx, whyDeferred, ce.Message, notBefore(ce.RetryAfter))
	case ce.Repeat && a.rec.faults < a.step.maxRetries():
		a.rec.faults++
		a.p.observe(Moment{What: "retried", Text: ce.Message}, a)
		delay := max(backoffDelay(a.rec.faults-1), notBefore(ce.RetryAfter))
		return a.retry(ctx, ce.Message, delay)
	}
	return a.failCode(ctx, failure, ce.StatusCode)
}

// ranOut says that an attempt may have failed for want of time, or of a
// connection that was kept up meanwhile.
func ranOut(err error) bool {
	var ce *connectors.CallError
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ce) && (ce.Kind == KindNetwork || ce.Kind == KindLimit)
}

func (a *attempt) ran(ran bool, logs []string) {
	if ran {
		a.rec.attempts++
	}
	a.logs = append(a.logs, logs...)
}

func (a *attempt) succeed(ctx context.Context, ans *connectors.Answer) error {
	a.ran(ans.Ran, ans.Logs)
	if err := a.worked(detached(ctx)); err != nil {
		return a.p.workerFault("redis cannot be written")
	}
	if ans.Warning == "" { // a warning fetched nothing: the next run asks again
		switch err := a.moveLastRun(detached(ctx), ans); {
		case errors.Is(err, errOvertaken):
			return a.overtaken()
		case err != nil:
			return a.p.workerFault("redis cannot be written")
		}
	}
	res := a.result(Succeeded)
	if ans.Warning != "" {
		res.Status = Warning
		res.Error = &ResultError{Kind: KindHTTP, Message: ans.Warning}
	}
	res.StatusCode, res.Exit = ans.StatusCode, ans.Exit
	res.Content, res.ContentEncoding, res.Fields = ans.Content, ans.ContentEncoding, ans.Fields
	res.Webhook = NewWebhookResult(ans.Webhook)
	if res.Pages = ans.Pages; res.Pages == 0 && ans.StatusCode != 0 {
		res.Pages = 1
	}
	if err := a.finish(ctx, res); err != nil {
		return err
	}
	a.p.observe(Moment{What: string(res.Status)}, a)
	return nil
}

// worked notes that the API took the credential, and that a refresh made for
// this method helped.
func (a *attempt) worked(ctx context.Context) error {
	if a.noted {
		return nil
	}
	if _, unhelped := a.cred.Meta.Unhelped[a.meth.Name]; unhelped || a.rec.refusals > 0 || a.cred.Meta.MadeFor == a.meth.Name {
		if err := a.p.cfg.Store.Helped(ctx, a.cred.ID, a.meth.Name); err != nil {
			return err
		}
	}
	if a.cred.Meta.DeniedTo == a.meth.Name {
		if err := a.p.cfg.Store.NoteDenied(ctx, a.cred.ID, a.cred.Version, a.meth.Name, ""); err != nil {
			return err
		}
	}
	if a.cred.Meta.Proving {
		if err := a.p.cfg.Store.NoteUsed(ctx, a.cred.ID, a.cred.Version); err != nil {
			return err
		}
	}
	a.noted = true
	return nil
}

func (a *attempt) fail(ctx context.Context, e *ResultError) error { return a.failCode(ctx, e, 0) }

func (a *attempt) failCode(ctx context.Context, e *ResultError, status int) error {
	res := a.result(Failed)
	res.Error, res.StatusCode, res.Pages = e, status, a.rec.pages
	if err := a.finish(ctx, res); err != nil {
		return err
	}
	a.p.observe(Moment{What: string(Failed), Text: e.Message}, a)
	return fmt.Errorf("%s: %s: %w", e.Kind, clip(e.Message, 500), asynq.SkipRetry)
}

func (a *attempt) result(status Status) *Result {
	r := &Result{
		ExecutionID: a.id, CredentialID: a.step.CredentialID, Method: a.step.Method, Status: status, Tag: a.step.Tag,
		Attempts: a.rec.attempts, Refreshes: a.rec.refreshes,
		FinishedAt: timeOf(time.Now()),
	}
	if a.rec.enqueuedAt != 0 {
		r.EnqueuedAt = timeOf(time.UnixMilli(a.rec.enqueuedAt))
	}
	if a.cred != nil {
		r.Connector = a.cred.Connector
	}
	if c := a.step.Cycle; c != nil {
		r.Cycle = &Cycle{CycleID: c.CycleID, CycleStepID: c.CycleStepID, TransactionID: c.TransactionID}
	}
	return r
}

// finish stores a result. The reply goes first: a worker that dies between
// the two sends it again, under the same task id.
func (a *attempt) finish(ctx context.Context, res *Result) error {
	ctx = detached(ctx)
	a.giveBack(ctx)
	a.outOfLine(ctx)
	switch err := a.p.storeResult(ctx, a.rec, res, a.step.ReplyTo, a.step.retention()); {
	case errors.Is(err, errOvertaken):
		return a.overtaken()
	case err != nil:
		return a.p.workerFault("redis cannot be written")
	}
	a.ending.result = res
	killpoint.KillPoint("stored")
	if a.rec.inSet {
		a.unwait(ctx)
	}
	killpoint.KillPoint("ended")
	a.p.metrics.ended(a, res)
	return nil
}

// overtaken leaves an execution to the attempt that has begun meanwhile. asynq
// lets a worker that lost its lease change nothing; should it still have it,
// the task is looked at once more.
func (a *attempt) overtaken() error {
	a.p.metrics.overtaken.Inc()
	return &waitError{why: whyWorker, text: errOvertaken.Error(), delay: 30 * time.Second, overtaken: true}
}

// behind leaves an execution to the attempt of a higher count that has begun,
// unless asynq says that this one's count is the task's: then that attempt was of
// another task, which was deleted before it had ended and enqueued again.
func (a *attempt) behind(ctx context.Context) error {
	queue, _ := asynq.GetQueueName(ctx)
	count, _ := asynq.GetRetryCount(ctx)
	info, err := a.p.client.taskInfo(queue, a.id)
	switch {
	case err != nil:
		return a.p.workerFault("redis cannot be used")
	case info == nil || info.Retried != count:
		return a.overtaken()
	}
	if err := a.p.rdb.HSet(ctx, execKey(a.id), "cnt", count).Err(); err != nil {
		return a.p.workerFault("redis cannot be written")
	}
	return a.run(ctx)
}

func (p *Pool) storeResult(ctx context.Context, rec *record, res *Result, reply *ReplyTo, retention time.Duration) error {
	raw, err := packResult(res)
	if err != nil { // what a hook or an API left cannot be written
		res.Status, res.Content, res.ContentEncoding, res.Fields, res.Webhook = Failed, nil, "", nil, nil
		res.Error = &ResultError{Kind: KindLimit, Message: "the result cannot be stored: " + clip(err.Error(), 200)}
		if raw, err = packResult(res); err != nil {
			return err
		}
	}
	if reply != nil {
		if owner, err := p.rdb.HGet(ctx, execKey(res.ExecutionID), "run").Result(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		} else if rec.attempt != "" && owner != rec.attempt {
			return errOvertaken
		}
		if err := p.reply(ctx, reply, res); err != nil {
			return err
		}
		killpoint.KillPoint("replied")
	}
	n, err := p.end(ctx, rec, res.ExecutionID, []string{execKey(res.ExecutionID), resultKey(res.ExecutionID), pagesKey(res.ExecutionID)},
		rec.queue, rec.enqueuedAt, string(res.Status), raw, retention.Milliseconds(), rec.attempt)
	if err == nil && n == 0 {
		return errOvertaken
	}
	return err
}

func (p *Pool) reply(ctx context.Context, to *ReplyTo, res *Result) (err error) {
	ctx, span := p.client.startSend(ctx, to.Queue)
	defer func() {
		span.SetAttributes(message("send", "send", to.Queue, "r."+res.ExecutionID)...)
		if err != nil {
			span.SetStatus(codes.Error, "redis cannot be written")
		}
		span.End()
	}()
	raw, err := encode(res.Short())
	if err != nil {
		return err
	}
	id := "r." + res.ExecutionID
	for range 2 {
		_, err := p.client.asynq.EnqueueContext(ctx, asynq.NewTaskWithHeaders(to.Type, raw, spans.Headers(ctx)), asynq.TaskID(id), asynq.Queue(to.Queue))
		if !errors.Is(err, asynq.ErrTaskIDConflict) {
			return err
		}
		// One is there that nobody has taken yet: of an attempt whose worker
		// died right after, or of an earlier life of this execution.
		info, err := p.client.taskInfo(to.Queue, id)
		if err != nil {
			return err
		}
		if info != nil && (bytes.Equal(info.Payload, raw) || info.State == asynq.TaskStateActive) {
			return nil
		}
		if err := p.client.inspector.DeleteTask(to.Queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
			return nil // it was taken just now
		}
	}
	return nil
}

// putBack leaves the execution waiting, without a worker.
func (a *attempt) putBack(ctx context.Context, why, text string, delay time.Duration) error {
	return a.leave(ctx, &waitError{why: why, text: clip(text, 500), delay: delay})
}

func (a *attempt) retry(ctx context.Context, text string, delay time.Duration) error {
	return a.leave(ctx, &waitError{why: whyRetry, text: clip(text, 500), delay: delay, fault: true})
}

func (a *attempt) leave(ctx context.Context, w *waitError) error {
	ctx = detached(ctx)
	if w.why != a.rec.why || w.why == whyParked || w.why == whyHeld {
		a.rec.wait(w.why, a.at)
	}
	a.giveBack(ctx)
	a.outOfLine(ctx)
	n, _ := asynq.GetRetryCount(ctx)
	if w.fault {
		n++ // asynq will count this one
	}
	a.rec.retried = n
	if d := a.step.Deadline; d != nil {
		w.delay = min(w.delay, max(time.Until(*d)+time.Second, time.Second))
	}
	if w.why != whyParked && w.why != whyHeld && a.rec.inSet {
		_ = a.p.cfg.Store.Unwait(ctx, a.step.CredentialID, a.waiter()) // left there, it is seen to be deferred
		a.rec.inSet = false
	}
	switch err := a.p.saveRecord(ctx, a.id, a.rec); {
	case errors.Is(err, errOvertaken):
		return a.overtaken()
	case err != nil:
		return a.p.workerFault("redis cannot be written")
	}
	a.p.metrics.attempts.WithLabelValues(a.connector(), w.why).Inc()
	return w
}

// workerFault puts a task back because of this worker, not because of the
// task: it is never charged to the execution, /readyz says so, and a log line
// at the attempt's end.
func (p *Pool) workerFault(text string) error {
	p.metrics.faults.Inc()
	p.fault.Store(&workerFault{text, time.Now()})
	return &waitError{why: whyWorker, text: text, delay: 5*time.Second + rand.N(5*time.Second), untold: true}
}

// archiveUnreadable ends a task whose payload cannot be understood.
func (p *Pool) archiveUnreadable(ctx context.Context, id string, why error) error {
	queue, _ := asynq.GetQueueName(ctx)
	now := time.Now()
	res := &Result{ExecutionID: id, Status: Failed, FinishedAt: timeOf(now), Error: &ResultError{Kind: KindInput, Message: "the payload cannot be understood: " + clip(why.Error(), 500)}}
	if executionID.MatchString(id) {
		if err := p.storeResult(detached(ctx), &record{queue: queue, enqueuedAt: now.UnixMilli()}, res, nil, DefaultRetention); err != nil {
			return p.workerFault("redis cannot be written")
		}
	}
	p.metrics.ended(&attempt{p: p, at: now}, res)
	p.log.WarnContext(ctx, "unreadable payload", "execution_id", id, "queue", queue, "error", why.Error())
	return fmt.Errorf("%s: %w", res.Error.Message, asynq.SkipRetry)
}

// detached outlives the attempt's own deadline: what was found out is stored.
func detached(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
