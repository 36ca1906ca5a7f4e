// Package spans is what the packages need of OpenTelemetry's API beyond the
// API itself: how trace context travels through Redis, and ids in logs. It
// knows no SDK: without one its spans cost next to nothing.
package spans

import (
	"context"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the instrumentation scope of all spans.
const Scope = "github.com/stepworker/stepworker"

// Tracer is a provider's; of nil the global provider's, as it is or comes to be.
func Tracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		p = otel.GetTracerProvider()
	}
	return p.Tracer(Scope)
}

// W3C Trace Context, whatever OTEL_PROPAGATORS says: what is written today must
// be read by a worker of tomorrow. Baggage stays behind, it may hold anything.
var format propagation.TraceContext

// Headers carries the trace context of ctx as headers of a task (W3C Trace
// Context: traceparent, tracestate); nil without one.
func Headers(ctx context.Context) map[string]string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return nil
	}
	h := propagation.MapCarrier{}
	format.Inject(ctx, h)
	return h
}

// Read is the trace context of a task's headers; what is none is not valid.
func Read(headers map[string]string) trace.SpanContext {
	if headers["traceparent"] == "" {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(format.Extract(context.Background(), propagation.MapCarrier(headers)))
}

// Text is a trace context in one text: traceparent and, behind a blank,
// tracestate; "" for one that is not valid.
func Text(sc trace.SpanContext) string {
	h := Headers(trace.ContextWithSpanContext(context.Background(), sc))
	if h == nil {
		return ""
	}
	return strings.TrimSpace(h["traceparent"] + " " + h["tracestate"])
}

// Parse reads a Text.
func Parse(text string) trace.SpanContext {
	parent, state, _ := strings.Cut(text, " ")
	return Read(map[string]string{"traceparent": parent, "tracestate": state})
}

// Live says that a span that was started in ctx is one of its own: not that of
// a provider that makes none.
func Live(ctx context.Context, span trace.Span) bool {
	sc := span.SpanContext()
	return sc.IsValid() && sc.SpanID() != trace.SpanContextFromContext(ctx).SpanID()
}

// Logger gives the lines of a log the trace_id and span_id of their context.
func Logger(log *slog.Logger) *slog.Logger {
	if _, has := log.Handler().(handler); has {
		return log
	}
	return slog.New(handler{log.Handler()})
}

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(a []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(a)} }
func (h handler) WithGroup(name string) slog.Handler   { return handler{h.Handler.WithGroup(name)} }
