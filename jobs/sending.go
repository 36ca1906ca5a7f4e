package jobs

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/internal/spans"
)

// sending is the span of an EnqueueBatch. A single step has one PRODUCER span,
// in which its execution goes on; of many each has one, and the batch links to
// them (semantic conventions for messaging). Where nobody traces there are none,
// and the executions go on in the trace of the caller's context, if it has one.
type sending struct {
	c      *Client
	parent context.Context
	span   trace.Span
	alone  map[string]string // headers of the one step
	each   []trace.Span
}

// maxLinks is how many links a span may have that are all kept (OTEL_SPAN_LINK_COUNT_LIMIT).
const maxLinks = 128

func (c *Client) startSending(ctx context.Context, steps []*Step) *sending {
	s := &sending{c: c, parent: ctx}
	if len(steps) != 1 {
		_, s.span = c.tracer.Start(ctx, "send steps", trace.WithSpanKind(trace.SpanKindClient))
		if spans.Live(ctx, s.span) {
			s.each = make([]trace.Span, len(steps))
		}
		s.alone = spans.Headers(ctx)
		return s
	}
	queue := QueueSteps
	if steps[0] != nil {
		queue = steps[0].queue()
	}
	var in context.Context
	in, s.span = c.startSend(ctx, queue)
	s.alone = spans.Headers(in)
	return s
}

// headers are those of a step's task.
func (s *sending) headers(i int, a *accepted) map[string]string {
	if s.each == nil {
		return s.alone
	}
	ctx, span := s.c.tracer.Start(s.parent, "create "+a.step.queue(), trace.WithSpanKind(trace.SpanKindProducer))
	s.each[i] = span
	return spans.Headers(ctx)
}

// end tells what became of the steps.
func (s *sending) end(batch []*accepted, receipts []Receipt) {
	links := 0
	for i, span := range s.each {
		if span == nil {
			continue
		}
		if span.IsRecording() {
			span.SetAttributes(message("create", "create", batch[i].queue, batch[i].id)...)
			tellReceipt(span, batch[i].step, receipts[i])
			if links++; links <= maxLinks {
				s.span.AddLink(trace.Link{SpanContext: span.SpanContext()})
			}
		}
		span.End()
	}
	switch {
	case !s.span.IsRecording():
	case len(receipts) == 1:
		if a := batch[0]; a != nil {
			s.span.SetAttributes(message("send", "send", a.queue, a.id)...)
			tellReceipt(s.span, a.step, receipts[0])
		} else {
			tellReceipt(s.span, nil, receipts[0])
		}
	default:
		s.span.SetAttributes(semconv.MessagingSystemKey.String("asynq"), semconv.MessagingOperationName("send"),
			semconv.MessagingOperationTypeKey.String("send"), semconv.MessagingBatchMessageCount(len(receipts)))
		for _, r := range receipts {
			if r.Err != nil {
				s.span.SetStatus(codes.Error, "not all steps were accepted")
				break
			}
		}
	}
	s.span.End()
}

func tellReceipt(span trace.Span, step *Step, r Receipt) {
	if step != nil {
		span.SetAttributes(attrCredential.String(step.CredentialID), attrMethod.String(step.Method))
	}
	var invalid *InvalidError
	switch {
	case errors.As(r.Err, &invalid): // whose text may hold what the step does
		span.SetAttributes(semconv.ErrorTypeKey.String("invalid"))
		span.SetStatus(codes.Error, "the step's form is wrong")
	case r.Err != nil:
		span.SetAttributes(semconv.ErrorTypeKey.String("redis"))
		span.SetStatus(codes.Error, clip(r.Err.Error(), 200))
	default:
		span.SetAttributes(attrReceipt.String(r.Status))
	}
}

// startSend starts the PRODUCER span of one task.
func (c *Client) startSend(ctx context.Context, queue string) (context.Context, trace.Span) {
	return c.tracer.Start(ctx, "send "+queue, trace.WithSpanKind(trace.SpanKindProducer))
}
