package jobs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/hibiken/asynq"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/spans"
)

// This file is what becomes of an attempt in traces and logs.
//
// An execution is in one trace, from first to last: that of who enqueued it, by
// the headers of its task, else one that its first attempt begins and leaves in
// the execution's record. Attempts are children of what enqueued it, and so
// siblings, on whichever workers they run. A refresh serves many executions and
// is a trace of its own: it links to the attempts that asked for it, and those
// that run after it link to it.

// Attributes of our own.
const (
	attrCredential = attribute.Key("stepworker.credential_id")
	attrConnector  = attribute.Key("stepworker.connector")
	attrMethod     = attribute.Key("stepworker.method")
	attrAttempt    = attribute.Key("stepworker.attempt")
	attrVerdict    = attribute.Key("stepworker.verdict")
	attrReason     = attribute.Key("stepworker.reason")
	attrReceipt    = attribute.Key("stepworker.receipt")
	attrKind       = attribute.Key("stepworker.refresh.kind")
	attrVersion    = attribute.Key("stepworker.version")
)

// Verdicts of attempts, beside statuses of results.
const (
	verdictAgain     = "again"     // a newer version is stored: it runs again at once
	verdictRetried   = "retried"   // a fault, with backoff
	verdictDrained   = "drained"   // another worker takes it
	verdictOvertaken = "overtaken" // another attempt has begun
	verdictOver      = "over"      // it had ended before
)

// message describes an execution, or what else a task is (semantic conventions
// for messaging).
func message(operation, kind, queue, id string) []attribute.KeyValue {
	all := []attribute.KeyValue{
		semconv.MessagingSystemKey.String("asynq"), semconv.MessagingOperationName(operation),
		semconv.MessagingDestinationName(queue), semconv.MessagingMessageID(id),
	}
	if kind != "" {
		all = append(all, semconv.MessagingOperationTypeKey.String(kind))
	}
	return all
}

// root is the beginning of a trace for an execution whose enqueuer made none.
type root struct{ span trace.Span }

// newRoot starts it. It is told only where the execution turns out to have none.
func (a *attempt) newRoot(ctx context.Context) root {
	if a.origin.IsValid() {
		return root{}
	}
	queue, _ := asynq.GetQueueName(ctx)
	_, span := a.p.tracer.Start(ctx, "queue "+queue, trace.WithNewRoot(), trace.WithTimestamp(a.firstDue()))
	if !span.SpanContext().IsValid() {
		return root{}
	}
	if span.IsRecording() {
		span.SetAttributes(message("queue", "", queue, a.id)...)
		span.SetAttributes(attrCredential.String(a.step.CredentialID), attrMethod.String(a.step.Method))
	}
	return root{span}
}

func (r root) text() string {
	if r.span == nil {
		return ""
	}
	return spans.Text(r.span.SpanContext())
}

// settle says whose child the execution's attempts are: who enqueued it comes
// before what is stored.
func (r root) settle(enqueuer trace.SpanContext, stored string) trace.SpanContext {
	switch {
	case enqueuer.IsValid() || stored == "":
		return enqueuer
	case r.span != nil && stored == r.text():
		r.span.End()
	}
	return spans.Parse(stored)
}

// startSpan starts the attempt's span, and tells how long it had stood in its
// queue.
func (a *attempt) startSpan(ctx context.Context) context.Context {
	ctx = trace.ContextWithRemoteSpanContext(ctx, a.origin)
	queue, _ := asynq.GetQueueName(ctx)
	if due := a.due(); !due.IsZero() && due.Before(a.at) {
		_, waited := a.p.tracer.Start(ctx, "queue "+queue, trace.WithTimestamp(due))
		if waited.IsRecording() {
			waited.SetAttributes(message("queue", "", queue, a.id)...)
		}
		waited.End(trace.WithTimestamp(a.at))
	}
	ctx, a.span = a.p.tracer.Start(ctx, "process "+queue, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(a.at))
	if a.span.IsRecording() {
		a.span.SetAttributes(message("process", "process", queue, a.id)...)
		a.span.SetAttributes(attrCredential.String(a.step.CredentialID), attrMethod.String(a.step.Method), attrAttempt.Int(a.rec.number))
	}
	return ctx
}

// startCancelSpan starts the span of what ends the execution instead of an attempt.
func (a *attempt) startCancelSpan(ctx context.Context, queue string) context.Context {
	ctx = trace.ContextWithRemoteSpanContext(ctx, a.origin)
	ctx, a.span = a.p.tracer.Start(ctx, "cancel "+queue, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(a.at))
	if a.span.IsRecording() {
		a.span.SetAttributes(message("cancel", "", queue, a.id)...)
		a.span.SetAttributes(attrCredential.String(a.step.CredentialID), attrMethod.String(a.step.Method))
	}
	return ctx
}

// firstDue is when an execution could first be taken.
func (a *attempt) firstDue() time.Time {
	due := a.at
	if at := a.step.EnqueuedAt; !at.IsZero() && at.Before(due) {
		due = at
	}
	if at := a.step.ProcessAt; at != nil && at.After(due) && at.Before(a.at) {
		due = *at
	}
	return due
}

// due is when this attempt could have been taken, zero where that is not known.
func (a *attempt) due() time.Time {
	r := a.rec
	switch {
	case a.rerun:
	case r.number == 1 && a.step.EnqueuedAt.IsZero():
	case r.number == 1:
		if spans.Read(a.task.Headers()).IsValid() { // else its root has told
			return a.firstDue()
		}
	case r.why == whyParked || r.why == whyHeld:
		if lr := a.lastRefresh(); lr != nil && lr.At.UnixMilli() >= r.since {
			return lr.At
		}
		if m := a.meta(); m != nil && m.State == credentials.Active && !m.Refused && m.Since.UnixMilli() >= r.since && m.Since.Before(a.at) {
			return m.Since // a person put it
		}
	case r.turn > 0:
		return time.UnixMilli(r.turn)
	case r.lined > 1:
		return time.UnixMilli(r.lined)
	}
	return time.Time{}
}

// meta is nil where there is no credential.
func (a *attempt) meta() *credentials.Meta {
	if a.cred == nil {
		return nil
	}
	return &a.cred.Meta
}

func (a *attempt) lastRefresh() *credentials.LastRefresh {
	if m := a.meta(); m != nil && m.LastRefresh != nil && m.LastRefresh.Verdict == credentials.Renewed {
		return m.LastRefresh
	}
	return nil
}

// linkRefresh links the attempt to the refresh that it waited for, or that came
// while it ran.
func (a *attempt) linkRefresh(came bool) {
	if lr := a.lastRefresh(); lr != nil && (came || a.rerun) {
		a.linkTo(lr)
	}
}

// linkRefusal links an attempt that is held to the refresh that was refused.
func (a *attempt) linkRefusal() {
	m := a.meta()
	if m == nil || m.LastRefresh == nil {
		return
	}
	switch m.LastRefresh.Verdict {
	case credentials.VerdictRevoked, credentials.VerdictMisconfigured:
		a.linkTo(m.LastRefresh)
	}
}

func (a *attempt) linkTo(lr *credentials.LastRefresh) {
	if sc := spans.Parse(lr.Trace); sc.IsValid() && a.span != nil && a.span.IsRecording() {
		a.span.AddLink(trace.Link{SpanContext: sc})
	}
}

// traced is the attempt's trace context, for a refresh to link to; "" where it
// is not told of.
func (a *attempt) traced() string {
	if a.span == nil || !a.span.IsRecording() {
		return ""
	}
	return spans.Text(a.span.SpanContext())
}

// ids are what every log line of an attempt carries, beside those of its trace.
func (a *attempt) ids() []any {
	ids := []any{"execution_id", a.id, "credential_id", a.step.CredentialID}
	switch {
	case a.def != nil:
		ids = append(ids, "connector", a.def.Name)
	case a.cred != nil:
		ids = append(ids, "connector", a.cred.Connector)
	}
	ids = append(ids, "method", a.step.Method)
	if a.rec != nil {
		ids = append(ids, "attempt", a.rec.number)
	}
	return ids
}

// ending is how an attempt ended, as far as it is known before.
type ending struct {
	result *Result // stored
	again  bool
	told   bool
}

// end ends the attempt's span, and writes its log line.
func (a *attempt) end(ctx context.Context, err error) {
	if a.ending.told {
		return
	}
	a.ending.told = true
	h := a.how(err)
	a.p.log.Log(ctx, h.level, h.msg, append(append(a.ids(), "verdict", h.verdict, "seconds", time.Since(a.at).Seconds()), h.more...)...)
	for _, line := range a.logs {
		a.p.log.InfoContext(ctx, "script", append(a.ids(), "text", line)...)
	}
	if a.span == nil {
		return
	}
	if a.span.IsRecording() {
		a.span.SetAttributes(attrVerdict.String(h.verdict))
		if a.cred != nil {
			a.span.SetAttributes(attrConnector.String(a.cred.Connector))
		}
		if res := a.ending.result; res != nil && res.StatusCode != 0 {
			a.span.SetAttributes(semconv.HTTPResponseStatusCode(res.StatusCode))
		}
		if h.errorType != "" {
			a.span.SetAttributes(semconv.ErrorTypeKey.String(h.errorType))
			if h.verdict != string(Warning) && h.verdict != string(Cancelled) { // somebody wanted that
				a.span.SetStatus(codes.Error, h.text)
			}
		}
	}
	a.span.End()
}

// how is how an attempt ended, for its log line and its span.
type how struct {
	level           slog.Level
	msg, verdict    string
	errorType, text string // of what is an error
	more            []any  // for the log
}

func (a *attempt) how(err error) how {
	h := how{msg: "attempt ended"}
	var w *waitError
	switch res := a.ending.result; {
	case res != nil:
		h.msg, h.verdict = "execution ended", string(res.Status)
		h.more = []any{"status", res.Status, "attempts", res.Attempts, "refreshes", res.Refreshes}
		if e := res.Error; e != nil {
			if h.errorType, h.text = e.Kind, e.Message; res.Status != Cancelled { // somebody wanted that
				h.level = slog.LevelWarn
			}
			h.more = append(h.more, "error_kind", e.Kind, "error", e.Message)
		}
	case a.ending.again:
		h.verdict = verdictAgain
	case errors.As(err, &w) && w.overtaken:
		h.level, h.msg, h.verdict = slog.LevelWarn, "attempt overtaken", verdictOvertaken
	case errors.As(err, &w) && w.why == whyWorker:
		h.level, h.msg, h.verdict, h.errorType, h.text = slog.LevelError, "worker fault", whyWorker, whyWorker, w.text
		h.more = []any{"text", w.text}
		w.untold = false
	case errors.As(err, &w):
		if h.verdict = w.why; w.fault {
			h.verdict, h.errorType, h.text = verdictRetried, w.why, w.text
		}
		h.more = []any{"text", w.text, "next_try", time.Now().Add(w.delay).UTC()}
	case errors.Is(err, context.Canceled):
		h.verdict = verdictDrained
	default:
		h.verdict = verdictOver
	}
	return h
}

// spanEvents are the moments of an attempt that its span tells.
var spanEvents = map[string]bool{"refused": true, "parked": true, "held": true, "deferred": true, "retried": true}

// event tells a moment in the attempt's span.
func (a *attempt) event(m Moment) {
	if a.span != nil && spanEvents[m.What] && a.span.IsRecording() {
		a.span.AddEvent(m.What, trace.WithAttributes(attrReason.String(clip(m.Text, 500))))
	}
}

// refreshTrace is the trace of one refresh. It begins when the provider is
// asked: most tasks find that others have done what they are for.
type refreshTrace struct {
	p     *Pool
	kind  credentials.Kind
	begun time.Time
	span  trace.Span
}

func (p *Pool) traceRefresh(kind credentials.Kind) *refreshTrace {
	return &refreshTrace{p: p, kind: kind, begun: time.Now()}
}

// around has what asks the provider do so in the refresh's trace. ctx has the
// trace context of who asked for the refresh, if that is known.
func (t *refreshTrace) around(do credentials.RefreshFunc) credentials.RefreshFunc {
	return func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
		if t.span == nil {
			asker := trace.SpanContextFromContext(ctx)
			_, span := t.p.tracer.Start(ctx, "refresh "+string(t.kind), trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(t.begun))
			if !spans.Live(ctx, span) {
				return do(ctx, c)
			}
			if t.span = span; span.IsRecording() {
				t.span.SetAttributes(message("process", "process", QueueRefresh, taskID(ctx))...)
				t.span.SetAttributes(attrCredential.String(c.ID), attrConnector.String(c.Connector), attrKind.String(string(t.kind)), attrVersion.Int64(c.Version))
				if asker.IsValid() {
					t.span.AddLink(trace.Link{SpanContext: asker})
				}
			}
		}
		return do(t.context(ctx), c)
	}
}

// context is ctx with the refresh's span, if it has begun.
func (t *refreshTrace) context(ctx context.Context) context.Context {
	if t.span == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, t.span)
}

func (t *refreshTrace) text() string {
	if t.span == nil {
		return ""
	}
	return spans.Text(t.span.SpanContext())
}

// outcome tells how the refresh went, and links it to the attempts that have
// parked meanwhile: they stand there before the version rises, or are told that
// it has.
func (t *refreshTrace) outcome(ctx context.Context, id string, res credentials.RefreshResult, err error) {
	if t.span == nil || !t.span.IsRecording() {
		return
	}
	ctx = detached(ctx)
	asker := trace.SpanContextFromContext(ctx)
	askers, _ := t.p.cfg.Store.Askers(ctx, id) // else it links to who asked first
	for _, text := range askers {
		if sc := spans.Parse(text); sc.IsValid() && sc.SpanID() != asker.SpanID() {
			t.span.AddLink(trace.Link{SpanContext: sc})
		}
	}
	if res.Outcome == credentials.OutcomeRenewed {
		_ = t.p.cfg.Store.TakeAskers(ctx, id) // else they lapse
	}
	t.span.SetAttributes(attrVerdict.String(res.Outcome))
	switch {
	case err != nil:
		t.span.SetAttributes(semconv.ErrorTypeKey.String("redis"))
		t.span.SetStatus(codes.Error, "the refresh could not be done")
	case res.Err != nil:
		t.span.SetAttributes(semconv.ErrorTypeKey.String(string(res.Err.Verdict)))
		if res.Err.Status != 0 {
			t.span.SetAttributes(semconv.HTTPResponseStatusCode(res.Err.Status))
		}
		t.span.SetStatus(codes.Error, clip(res.Err.Text, 500))
	}
}

func (t *refreshTrace) end() {
	if t.span != nil {
		t.span.End()
	}
}

func taskID(ctx context.Context) string {
	id, _ := asynq.GetTaskID(ctx)
	return id
}
