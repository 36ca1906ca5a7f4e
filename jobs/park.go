package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

// Budgets of one execution (never of asynq's count).
const (
	maxUnhelpful = 2 // refreshes made for it that did not help
	maxRefusals  = 8 // refusals in all, stale ones included
	maxDeaths    = 10
)

// Timers of waiting executions: a dead man's switch, should a wake-up be
// lost. They grow, so that ten thousand parked ones are no flood.
const (
	parkTimer    = 20 * time.Second
	maxParkTimer = 5 * time.Minute
)

// refusal is why an attempt parks.
type refusal struct {
	kind    credentials.Kind
	version int64 // that this attempt used
	text    string
	refused bool   // the API refused it, in this attempt
	method  string // that was refused
}

// refused handles a credential that showed in this attempt that it is dead.
func (a *attempt) refused(ctx context.Context, e *connectors.AuthError) error {
	p, r := a.p, a.rec
	if err := p.keepActionData(a.id, r, e.ActionData); err != nil {
		return p.workerFault("action_data cannot be sealed")
	}
	if e.Restart {
		r.pages = 0
	}
	if e.Unsent {
		return a.park(ctx, refusal{kind: e.Kind, version: e.Version, text: e.Text})
	}
	r.refusals++
	p.metrics.refused.WithLabelValues(a.connector()).Inc()
	if r.unhelpful > 0 {
		p.metrics.renewed.WithLabelValues(a.connector()).Inc()
	}
	p.observe(Moment{What: "refused", Text: e.Text}, a)
	failure := &ResultError{Kind: KindAuth, Detail: e.Detail, At: e.At}
	switch {
	case e.NoRenewal:
		return a.nothingToRenew(ctx, e, failure)
	case r.unhelpful >= maxUnhelpful:
		_, _ = p.cfg.Store.CountUnhelped(ctx, a.cred.ID, a.meth.Name, e.Version)
		failure.Message = fmt.Sprintf("the API still refuses the credential after it was renewed %d times for this execution: check its permissions for method %q", maxUnhelpful, a.meth.Name)
		return a.failCode(ctx, failure, e.Status)
	case r.refusals >= maxRefusals:
		failure.Message = fmt.Sprintf("the API refused the credential %d times", r.refusals)
		return a.failCode(ctx, failure, e.Status)
	}
	if len(e.Session) > 0 && e.Kind == credentials.Session {
		return a.adoptSession(ctx, e)
	}
	// What others found out while this call was under way counts too.
	// A version that was asked for by refused executions of this method and is
	// refused to another one of it has not helped them either: they may stand
	// far behind in the queue, and must not be waited for.
	count := p.cfg.Store.Unhelped
	if r.unhelpful > 0 || a.cred.Meta.MadeFor == a.meth.Name && a.cred.Version == e.Version {
		count = p.cfg.Store.CountUnhelped
	}
	unhelped, err := count(ctx, a.cred.ID, a.meth.Name, e.Version)
	if err != nil {
		return p.workerFault("redis cannot be used")
	}
	if time.Now().Before(unhelped.Until) {
		failure.Message = fmt.Sprintf("a renewed credential was refused again and again by method %q; until %s its refused executions fail at once: check the account's permissions",
			a.meth.Name, unhelped.Until.UTC().Format(time.RFC3339))
		return a.failCode(ctx, failure, e.Status)
	}
	return a.park(ctx, refusal{kind: e.Kind, version: e.Version, text: e.Text, refused: true, method: a.meth.Name})
}

// park joins the credential's waiting set, makes sure that a refresh is asked
// for, and gives the worker back. Joining and reading the version are one
// script: if the version moved meanwhile, the step runs again at once.
func (a *attempt) park(ctx context.Context, ref refusal) error {
	p, r := a.p, a.rec
	if ref.refused {
		r.why, r.since, r.waits = "", 0, 0 // it ran: a new wait begins
	}
	killpoint.KillPoint("before-park")
	parked, err := p.cfg.Store.Park(ctx, credentials.ParkRequest{
		ID: a.cred.ID, Execution: a.waiter(), Version: ref.version, Kind: ref.kind, Refused: true, Since: a.waitsSince(), Method: ref.method, Trace: a.traced(),
	})
	if err != nil {
		return p.workerFault("redis cannot be written")
	}
	r.inSet = !parked.Gone && !parked.Newer
	killpoint.KillPoint("parked")
	switch {
	case parked.Gone:
		return a.fail(ctx, a.unknownCredential(ctx))
	case parked.Newer:
		// Refused with an older version than the stored one: no refresh.
		r.parkedAt, r.forRefusal = 0, false
		return a.again(ctx)
	}
	if r.parkedAt != ref.version {
		r.parkedAt, r.forRefusal = ref.version, ref.refused
	}
	meta, _, err := p.cfg.Store.WithClient(ctx, parked.Meta)
	switch {
	case err != nil:
		return p.workerFault("redis cannot be read")
	case meta.State == credentials.Revoked || meta.State == credentials.Misconfigured:
		a.cred.Meta = meta
		return a.hold(ctx, heldText(a.cred))
	}
	if done, err := a.held(ctx); done {
		return err
	}
	if err := p.askRefresh(ctx, a.cred.ID, ref.version, ref.kind); err != nil {
		return p.workerFault("redis cannot be written")
	}
	p.observe(Moment{What: "parked", Text: ref.text}, a)
	return a.putBack(ctx, whyParked, ref.text, a.timer(parked.Meta.NextTry))
}

// hold waits for a person: a new put, or a credential refresh that succeeds.
func (a *attempt) hold(ctx context.Context, text string) error {
	p := a.p
	version := int64(math.MaxInt64) // one that no key opens: whatever is stored
	if a.cred != nil {
		version = a.cred.Version
	}
	parked, err := p.cfg.Store.Park(ctx, credentials.ParkRequest{ID: a.step.CredentialID, Execution: a.waiter(), Version: version, Since: a.waitsSince(), Trace: a.traced()})
	a.rec.inSet = err == nil && !parked.Gone && !parked.Newer
	switch {
	case err != nil:
		return p.workerFault("redis cannot be written")
	case parked.Gone:
		return a.fail(ctx, a.unknownCredential(ctx))
	case parked.Newer && a.cred != nil:
		return a.again(ctx)
	}
	if a.rec.parkedAt == 0 && a.cred != nil {
		a.rec.parkedAt = version
	}
	if done, err := a.held(ctx); done {
		return err
	}
	a.linkRefusal()
	p.observe(Moment{What: "held", Text: text}, a)
	return a.putBack(ctx, whyHeld, text, a.timer(time.Time{}))
}

// waitsSince is when this wait for the credential began: now, unless the
// execution was woken and found nothing changed.
func (a *attempt) waitsSince() time.Time {
	if r := a.rec; r.since != 0 && (r.why == whyParked || r.why == whyHeld) {
		return time.UnixMilli(r.since)
	}
	return a.at
}

// held ends an execution whose wait is over: past --hold, or its deadline.
func (a *attempt) held(ctx context.Context) (bool, error) {
	if a.at.Sub(a.waitsSince()) < a.p.cfg.Hold {
		return false, nil
	}
	e := &ResultError{Kind: KindAuth, Message: fmt.Sprintf("waited %s for its credential, longer than --hold allows", a.p.cfg.Hold)}
	if c := a.cred; c != nil {
		switch {
		case c.Meta.State == credentials.Revoked:
			e.Kind = KindRevoked
			e.Message += "; " + heldText(c)
		case c.Meta.State == credentials.Misconfigured:
			e.Message += "; " + heldText(c)
		case c.Meta.LastError != "":
			e.Message += "; the last refresh: " + c.Meta.LastError
		}
	}
	return true, a.fail(ctx, e)
}

// again runs the step once more within this task: the stored credential is
// newer than the one that was refused.
func (a *attempt) again(ctx context.Context) error {
	switch err := a.p.saveRecord(ctx, a.id, a.rec); {
	case errors.Is(err, errOvertaken):
		return a.overtaken()
	case err != nil:
		return a.p.workerFault("redis cannot be written")
	}
	a.ending.again = true
	a.end(ctx, nil)
	next := &attempt{p: a.p, task: a.task, id: a.id, step: a.step, at: time.Now(), taken: a.taken, origin: a.origin, rerun: true, waitedFor: a.waitedFor, waited: a.waited}
	return next.run(trace.ContextWithRemoteSpanContext(ctx, a.origin))
}

// timer is when a waiting execution looks by itself, resumed or not.
func (a *attempt) timer(next time.Time) time.Duration {
	d := min(parkTimer<<min(a.rec.waits, 5), maxParkTimer)
	if until := next.Sub(a.at); until > d {
		d = until
	}
	d += time.Duration(rand.Int64N(int64(d)/4 + 1))
	return max(min(d, a.waitsSince().Add(a.p.cfg.Hold).Sub(a.at)), time.Second)
}
