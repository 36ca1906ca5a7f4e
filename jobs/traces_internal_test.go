package jobs

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/stepworker/stepworker/internal/spans"
)

// What the spans of one attempt cost, its log line apart: root, queue, attempt,
// an event, their ends.
func BenchmarkAttemptSpans(b *testing.B) {
	for name, provider := range map[string]trace.TracerProvider{
		"global":    nil,
		"noop":      noop.NewTracerProvider(),
		"unsampled": sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample())),
		"sampled":   sdk.NewTracerProvider(),
	} {
		b.Run(name, func(b *testing.B) {
			p := &Pool{tracer: spans.Tracer(provider), log: slog.New(slog.DiscardHandler)}
			task := asynq.NewTask(TypeStep, nil)
			step := &payload{EnqueuedAt: time.Now(), Step: Step{CredentialID: "c", Method: "m"}}
			b.ReportAllocs()
			for b.Loop() {
				ctx := context.Background()
				a := &attempt{p: p, task: task, id: "01", step: step, at: time.Now(), rec: &record{number: 1}}
				r := a.newRoot(ctx)
				a.origin = r.settle(a.origin, r.text())
				ctx = a.startSpan(ctx)
				a.event(Moment{What: "parked", Text: "why"})
				a.ending.again = true
				a.end(ctx, nil)
			}
		})
	}
}
