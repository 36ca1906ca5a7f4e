package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

// unknownConnectorGrace is how long a step waits for a worker that knows its
// connector and method, so that a rolling restart loses nothing.
const unknownConnectorGrace = 5 * time.Minute

// attempt is one try of an execution by this worker.
type attempt struct {
	p    *Pool
	task *asynq.Task
	id   string
	step *payload

	origin trace.SpanContext // of its execution: who enqueued it, or its root
	span   trace.Span
	ending ending
	rerun  bool // within its task, because a newer version is stored

	rec  *record
	cred *credentials.Credential
	def  *definition.Connector
	meth *definition.Method
	at   time.Time
	logs []string

	taken time.Time // of the first attempt within this task
	put   bool      // off, by a rate limit: its place is kept

	epoch  string    // of its credential's line, "": it has none
	looked time.Time // at the line
	inside bool      // the line: it holds a place
	stands bool      // in the line, and keeps its place there
	paused bool      // a pause began during its call

	noted bool // that its credential works

	broken bool // off, in the middle of a call

	waitedFor string    // parked or held: it has waited until now, and this is not counted yet
	waited    time.Time // since when
	limit     string    // that ends it
}

func decodePayload(raw []byte) (*payload, error) {
	var p payload
	if json.Unmarshal(raw, &p) == nil && p.known() {
		// What our own client wrote is the same text when it is written again,
		// and needs no closer look.
		if again, err := encode(p); err == nil && bytes.Equal(again, raw) {
			return &p, p.Validate()
		}
	}
	p = payload{}
	err := decodeStrict(raw, &p, stepMembers)
	if err != nil || !p.known() {
		// Which version it is comes before what is wrong with it.
		var v struct {
			V *int `json:"v"`
		}
		switch bad := json.Unmarshal(raw, &v); {
		case bad == nil && v.V != nil && *v.V > payloadVersion:
			return nil, &newerError{*v.V, payloadVersion}
		case err != nil:
			return nil, err
		case v.V == nil || *v.V < 1:
			return nil, errors.New(`member "v" is missing; it says the payload's version and is 1, or 2 with sealed parameters`)
		}
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &p, nil
}

// peek is decodePayload for who only looks whose a task is: also of one that a
// newer build wrote.
func peek(raw []byte) (*payload, error) {
	p, err := decodePayload(raw)
	var newer *newerError
	if errors.As(err, &newer) {
		p = &payload{}
		err = json.Unmarshal(raw, p)
	}
	return p, err
}

// newerError is a payload that a newer build wrote.
type newerError struct{ v, reads int }

func (e *newerError) Error() string {
	return fmt.Sprintf("the payload's version is %d, this build reads up to %d: upgrade this worker", e.v, e.reads)
}

// ProcessTask runs one attempt of a step: it opens the credential, calls the
// method, and turns how that went into the execution's next state.
func (p *Pool) ProcessTask(ctx context.Context, t *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	if t.Type() != TypeStep {
		return p.archiveUnreadable(ctx, id, fmt.Errorf("a task of type %q stands in a queue of steps", t.Type()))
	}
	step, err := decodePayload(t.Payload())
	var newer *newerError
	if errors.As(err, &newer) {
		return p.workerFault(newer.Error())
	}
	if err != nil {
		return p.archiveUnreadable(ctx, id, err)
	}
	if step.ExecutionID != "" && step.ExecutionID != id {
		return p.archiveUnreadable(ctx, id, fmt.Errorf("execution_id is %q, but the task's id is %q", step.ExecutionID, id))
	}
	now := time.Now()
	p.metrics.running.Inc()
	defer p.metrics.running.Dec()
	a := &attempt{p: p, task: t, id: id, step: step, at: now, taken: now, origin: trace.SpanContextFromContext(ctx)}
	ctx, cancel := context.WithTimeout(ctx, step.timeout())
	defer cancel()
	return a.run(ctx)
}

func (a *attempt) run(ctx context.Context) (outcome error) {
	p := a.p
	defer func() { a.end(ctx, outcome) }()
	killpoint.KillPoint("taken")
	if err := p.awake.sure(a.taken); err != nil {
		return p.workerFault(err.Error())
	}
	killpoint.KillPoint("before-begin")
	count, _ := asynq.GetRetryCount(ctx)
	cred, opened, err := a.begin(ctx, count, beginAny)
	switch {
	case errors.Is(err, errOvertaken):
		return a.behind(ctx)
	case err != nil:
		return p.workerFault("redis cannot be used")
	}
	a.cred = cred
	ctx = a.startSpan(ctx)
	if queue, ok := asynq.GetQueueName(ctx); ok {
		a.rec.queue = queue
	}
	if a.rec.enqueuedAt == 0 && !a.step.EnqueuedAt.IsZero() {
		a.rec.enqueuedAt = a.step.EnqueuedAt.UnixMilli()
	}
	a.waitsOn()
	switch end := a.rec.end; {
	case end == Cancelled:
		a.unwait(ctx)
		return fmt.Errorf("%w: %w", errCancelled, asynq.RevokeTask)
	case end != "" && end != Failed: // as a newer build calls it, perhaps
		return nil // a worker died between the result and the task's end
	case a.rec.over: // so did this one's
		return fmt.Errorf("failed, as its result says: %w", asynq.SkipRetry)
	case end == Failed: // run again by a person: fresh budgets
		a.rec = &record{queue: a.rec.queue, enqueuedAt: a.rec.enqueuedAt, attempt: a.rec.attempt, number: a.rec.number, blank: true, newData: true}
		a.recount(ctx)
	}
	a.rec.account = a.step.account()
	if a.rec.cancel {
		return a.cancelled(ctx)
	}
	ctx, release := p.canceller.hold(ctx, a.rec.attempt)
	defer release()
	if err = a.proceed(ctx, opened); isCancelled(ctx) && a.ending.result == nil {
		a.rec.begun = true
		return a.cancelled(ctx)
	}
	return err
}

// proceed goes on with an attempt that has begun, to the execution's next state.
func (a *attempt) proceed(ctx context.Context, opened error) error {
	p := a.p
	if a.rec.blank { // asynq's count is of another life
		if a.rec.retried, _ = asynq.GetRetryCount(ctx); a.rec.retried > 0 {
			if err := p.saveRecord(ctx, a.id, a.rec); err != nil {
				return p.workerFault("redis cannot be written")
			}
		}
	}
	deaths := a.deaths(ctx)
	if deaths > 0 && a.at.Equal(a.taken) {
		p.metrics.takenOver.Inc()
	}
	if deaths >= maxDeaths {
		a.limit = limitDeaths
		return a.fail(ctx, &ResultError{Kind: KindLimit, Message: fmt.Sprintf("%d workers in a row died while they ran this execution", maxDeaths)})
	}
	bad, settle := a.admit(ctx, opened)
	switch {
	case bad != nil:
		return a.fail(ctx, bad)
	case settle != nil:
		return settle()
	}
	if a.rec.inSet { // it waits no more
		if err := p.cfg.Store.Unwait(ctx, a.step.CredentialID, a.waiter()); err != nil {
			return p.workerFault("redis cannot be written")
		}
		a.rec.inSet = false
	}
	return a.call(ctx)
}

// deaths counts the workers that died while running this execution, in a row.
// asynq counts a lapsed lease as a retry; a living worker notes that count.
func (a *attempt) deaths(ctx context.Context) int {
	n, _ := asynq.GetRetryCount(ctx)
	return n - a.rec.retried
}

// admit decides, before anything is sent, whether this attempt may call. A
// ResultError ends the execution; a function is what happens instead of the
// call: it waits, or a newer version is stored and it runs again.
func (a *attempt) admit(ctx context.Context, opened error) (*ResultError, func() error) {
	instead := func(err error) func() error { return func() error { return err } }
	park := func(kind credentials.Kind, text string) func() error {
		return func() error { return a.park(ctx, refusal{kind: kind, version: a.cred.Version, text: text}) }
	}
	hold := func(text string) func() error { return func() error { return a.hold(ctx, text) } }
	p, s := a.p, a.step
	if d := s.Deadline; d != nil && a.at.After(*d) {
		a.rec.inSet = true // perhaps: a worker may have died just after it joined
		return &ResultError{Kind: KindExpired, Message: "not begun by its deadline, " + d.UTC().Format(time.RFC3339)}, nil
	}
	var sealed *credentials.SealError
	switch {
	case errors.Is(opened, credentials.ErrNotFound):
		return a.unknownCredential(ctx), nil
	case errors.As(opened, &sealed):
		if err := p.cfg.Store.VerifyKeys(ctx); err != nil {
			return nil, instead(p.workerFault("its keys do not open the check value sealed at first start"))
		}
		const text = "no key of this worker opens the credential: add the key that sealed it, or put the credential again"
		if err := p.cfg.Store.NoteUnopened(ctx, s.CredentialID, a.cred.Version, text); err != nil {
			return nil, instead(p.workerFault("redis cannot be written"))
		}
		return nil, hold(text)
	case opened != nil:
		if fault := p.newerFault(opened); fault != nil {
			return nil, instead(fault)
		}
		return nil, instead(p.workerFault("redis cannot be read"))
	}
	p.fault.Store(nil)
	c := a.cred
	if c.Meta.NoKey { // another worker had no key for it; this one has
		if err := p.cfg.Store.NoteOpened(ctx, c.ID, c.Version); err != nil {
			return nil, instead(p.workerFault("redis cannot be written"))
		}
		c.Meta.State, c.Meta.NoKey = credentials.Active, false
	}
	if err := p.noteUnknown(ctx, c); err != nil {
		return nil, instead(p.workerFault("redis cannot be written"))
	}
	def, ok := p.cfg.Catalog.Get(c.Connector)
	if !ok {
		return a.unknownHere(ctx, fmt.Sprintf("connector %q", c.Connector), p.cfg.Catalog.Nearest(c.Connector))
	}
	if a.def, ok = def.For(c); !ok {
		return a.unknownHere(ctx, fmt.Sprintf("authentication %q of connector %q", c.Authentication, c.Connector), def.NearestAuthentication(c.Authentication))
	}
	def = a.def // what is asked from here on is asked of its own authentication
	if a.meth, ok = def.Method(s.Method); !ok {
		return a.unknownHere(ctx, fmt.Sprintf("method %q of connector %q", s.Method, c.Connector), def.NearestMethod(s.Method))
	}
	switch {
	case a.meth.IsLogin:
		return input("method %q is connector %q's login method; it cannot be a step", s.Method, c.Connector), nil
	case s.Method == def.LogoutMethod:
		return input("method %q is connector %q's logout method; as a step it would end the session that others use", s.Method, c.Connector), nil
	case s.AccountID != "" && s.AccountID != c.AccountID:
		return input("the step's account_id is %q, but credential %q belongs to another account", s.AccountID, c.ID), nil
	case s.Script != "" && p.cfg.DenyStepScripts:
		return input("steps may bring no script here (--step-scripts=deny)"), nil
	case p.cfg.DenyStepScripts && s.inlineScript() != "":
		return input("steps may bring no script here (--step-scripts=deny), and mapping %q is one", s.inlineScript()), nil
	}
	if r := s.ReplyTo; r != nil {
		if p.reads(r.Queue) {
			s.ReplyTo = nil
			return input("reply_to.queue %q is one of Stepworker's own; results need a queue of the flow's", r.Queue), nil
		}
	}
	if a.meth.Type == definition.TypeWebhook {
		return nil, nil // no call is made, so the credential need not be usable
	}
	waited := a.countRefresh()
	a.linkRefresh(waited)
	switch c.Meta.State {
	case credentials.Revoked:
		return nil, hold(heldText(c))
	case credentials.Misconfigured:
		if c.Meta.Refused || c.Meta.Token.Over(a.at) || c.Meta.Session.Over(a.at) {
			return nil, hold(heldText(c))
		} // a refresh ahead of expiry, or a person's, found that: what is stored is still good
	}
	oauth2, session := p.cfg.Caller.CanRefresh(def, c)
	switch {
	case c.Meta.Refused:
		return nil, park(c.Meta.RefusedKind, "the credential is known refused")
	case oauth2 && (c.Secrets.OAuth2 == nil || c.Secrets.OAuth2.AccessToken.Empty()):
		return nil, park(credentials.OAuth2, "no token yet")
	case waited: // what was just issued is used, however short it lives
	case oauth2 && c.Meta.Token.Over(a.at):
		return nil, park(credentials.OAuth2, "the token has expired")
	case session && c.Meta.Session.Over(a.at):
		return nil, park(credentials.Session, "the session has expired")
	}
	if oauth2 {
		a.renewAhead(ctx)
	}
	return nil, nil
}

// renewAhead asks for the refresh of a token that is in use and nears its
// expiry. Nobody waits for it; should it not come, the expiry asks again.
func (a *attempt) renewAhead(ctx context.Context) {
	c := a.cred
	at := c.Meta.Token.Ahead(c.ID, c.Version)
	if at.IsZero() || a.at.Before(at) || a.at.Before(c.Meta.NextTry) || a.at.Before(c.Meta.LeaseUntil) || !a.p.cfg.Caller.CanRenewToken(a.def, c) {
		return
	}
	if err := a.p.askRefresh(ctx, c.ID, c.Version, credentials.OAuth2); err != nil {
		a.p.log.WarnContext(ctx, "a refresh ahead of expiry could not be asked for", a.ids()...)
	}
}

// countRefresh notes whether the refresh that this execution waited for came.
func (a *attempt) countRefresh() (came bool) {
	r, c := a.rec, a.cred
	if r.parkedAt == 0 || c.Version <= r.parkedAt {
		return false
	}
	if lr := c.Meta.LastRefresh; lr != nil && lr.Verdict == credentials.Renewed && lr.At.UnixMilli() >= r.since {
		r.refreshes++
		came = true
		if r.forRefusal {
			r.unhelpful++ // until it succeeds
		}
	}
	r.parkedAt, r.forRefusal = 0, false
	r.why, r.since, r.waits = "", 0, 0
	return came
}

// call makes the API call and turns its end into the execution's next state.
func (a *attempt) call(ctx context.Context) error {
	a.resumed()
	if bad, err := a.unseal(ctx); err != nil {
		return err
	} else if bad != nil {
		return a.fail(ctx, bad)
	}
	data, err := a.p.actionData(a.id, a.rec)
	if fault := a.p.newerFault(err); fault != nil {
		return fault
	}
	if err != nil {
		return a.p.workerFault("its keys do not open an execution's action_data")
	}
	lastRun, err := a.seeLastRun(ctx)
	switch {
	case errors.Is(err, errOvertaken):
		return a.overtaken()
	case err != nil:
		return a.p.workerFault("redis cannot be used")
	}
	switch s, err := a.enter(ctx); {
	case err != nil:
		return a.p.workerFault("redis cannot be used")
	case s != nil:
		return a.wait(ctx, s, "")
	}
	defer func() {
		if a.inside { // a fault of ours
			a.exit(ctx, nil)
		}
	}()
	a.p.observe(Moment{What: "called"}, a)
	call := &connectors.Call{
		Definition: a.def, Method: a.meth, Credential: a.cred, ExecutionID: a.id,
		Parameters: a.step.Parameters, Body: a.step.Body, Script: a.step.Script, ActionData: data,
		Mappings: a.step.Mappings, FieldsInUse: a.step.FieldsInUse, LastRun: lastRun,
	}
	call.Pacer = a.pace
	kept := &pages{a: a}
	defer kept.free()
	if a.meth.Type == definition.TypeAction {
		call.Pages = kept
	}
	if w := a.step.Webhook; w != nil {
		call.Webhook = (*connectors.Webhook)(w)
	}
	if c := a.step.Cycle; c != nil {
		call.Cycle = connectors.Cycle(*c)
	}
	answer, err := a.p.cfg.Caller.Call(ctx, call)
	s := a.exit(ctx, err)
	if err == nil {
		return a.succeed(ctx, answer)
	}
	kept.free() // the step may run again before this attempt ends, and needs the room
	return a.outcome(ctx, err, s)
}

// unseal opens what the client sealed of the step's parameters.
func (a *attempt) unseal(ctx context.Context) (*ResultError, error) {
	err := a.p.cfg.Store.OpenStep(ctx, a.id, a.step.Parameters)
	if fault := a.p.newerFault(err); fault != nil {
		return nil, fault
	}
	var sealed *credentials.SealError
	var keys *credentials.StepKeyError
	switch {
	case err == nil:
		return nil, nil
	case errors.As(err, &keys):
		return nil, a.p.workerFault(keys.Error())
	case !errors.As(err, &sealed):
		return nil, a.p.workerFault("redis cannot be used")
	}
	return input("%s: it was sealed for another execution or another Redis; enqueue the step again with its value", sealed), nil
}

// unknownHere puts a step back whose connector or method this worker does not
// know; another worker of a rolling restart may.
func (a *attempt) unknownHere(ctx context.Context, what, near string) (*ResultError, func() error) {
	if a.rec.unknown == 0 {
		a.rec.unknown = a.at.UnixMilli()
	}
	if a.at.Sub(time.UnixMilli(a.rec.unknown)) < unknownConnectorGrace {
		return nil, func() error {
			a.p.metrics.deferrals.WithLabelValues(a.connector(), reasonUnknown).Inc()
			return a.putBack(ctx, whyDeferred, "this worker does not know "+what+hint(near), 10*time.Second)
		}
	}
	return input("no worker knows %s%s", what, hint(near)), nil
}

// noteUnknown has the credential tell what it names that this worker does not
// have, and no longer tell it once one has it.
func (p *Pool) noteUnknown(ctx context.Context, c *credentials.Credential) error {
	text := p.cfg.Catalog.Lacks(c)
	if text == c.Meta.Unknown {
		return nil
	}
	return p.cfg.Store.NoteUnknown(ctx, c.ID, c.Version, text)
}

func (a *attempt) unknownCredential(ctx context.Context) *ResultError {
	known, _ := a.p.cfg.Store.IDs(ctx, 1000) // without, there is no hint
	return input("unknown credential %q%s", a.step.CredentialID, hint(nearest(a.step.CredentialID, known)))
}

func hint(near string) string {
	if near == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", near)
}

func input(format string, args ...any) *ResultError {
	return &ResultError{Kind: KindInput, Message: fmt.Sprintf(format, args...)}
}

func heldText(c *credentials.Credential) string {
	why := c.Meta.LastError
	if why == "" {
		why = "the provider refused it"
	}
	if c.Meta.State == credentials.Misconfigured {
		return "the connector is misconfigured: " + why
	}
	return "the credential is revoked: " + why
}

// waiter is the execution's name in its credential's waiting set.
func (a *attempt) waiter() string { return waiterName(a.rec.queue, a.id) }
