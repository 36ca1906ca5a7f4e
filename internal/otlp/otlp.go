// Package otlp has a program's traces exported by the OpenTelemetry protocol,
// as the standard OTEL_* variables say
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
//
// What the specification would have warned of and passed over is a mistake
// here, told before anything starts: traces that silently do not come are found
// out when they are needed. What happens afterwards, a collector that is down,
// refuses or hangs, harms nothing but the traces: spans wait in a queue of
// bounded length, are dropped where it is full, and a log line says so once a
// minute.
package otlp

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/stepworker/stepworker/credentials"
)

// Config is what the environment says. The zero value exports nothing.
type Config struct {
	enabled bool
	grpc    bool
	secrets []string // values of headers and paths of endpoints, which no log line shows
}

// Traces exports what its provider's tracers make.
type Traces struct {
	provider *sdk.TracerProvider // nil: nothing is exported
	errors   *errorLog
}

// Open makes the exporter of a program, whose version may be "". It connects to
// nothing yet. A nil Config exports nothing.
func (c *Config) Open(ctx context.Context, program, version string, log *slog.Logger) (*Traces, error) {
	if c == nil || !c.enabled {
		return &Traces{}, nil
	}
	t := &Traces{errors: &errorLog{log: log, mask: credentials.NewRedactor(c.secrets, 6)}}
	otel.SetLogger(logr.Discard()) // of what it would say of the environment, we have told
	otel.SetErrorHandler(t.errors)
	client := otlptracehttp.NewClient()
	if c.grpc {
		client = otlptracegrpc.NewClient()
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, err
	}
	about := []attribute.KeyValue{attribute.String("service.name", "stepworker-"+program), attribute.String("service.instance.id", ulid.Make().String())}
	if version != "" {
		about = append(about, attribute.String("service.version", version))
	}
	res, err := resource.New(ctx, resource.WithHost(), resource.WithTelemetrySDK(), resource.WithAttributes(about...), resource.WithFromEnv()) // the last wins
	if err != nil {
		t.errors.Handle(err) // it is there all the same, in part
	}
	t.provider = sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(res)) // the sampler is the environment's
	return t, nil
}

// Provider is what tracers are had from.
func (t *Traces) Provider() trace.TracerProvider {
	if t == nil || t.provider == nil {
		return noop.NewTracerProvider()
	}
	return t.provider
}

// Close exports what is left, as long as within allows.
func (t *Traces) Close(within time.Duration) {
	if t == nil || t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.errors.last(err)
	}
}

// errorLog logs what goes wrong with the export, once in errorEvery.
type errorLog struct {
	log  *slog.Logger
	mask *credentials.Redactor

	mu     sync.Mutex
	at     time.Time
	silent int // errors since
}

const (
	errorEvery = time.Minute
	maxError   = 500 // bytes of its text: a collector's answer is part of it
)

// Handle implements otel.ErrorHandler.
func (l *errorLog) Handle(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) < errorEvery {
		l.silent++
		return
	}
	l.tell(err)
	l.at, l.silent = time.Now(), 0
}

func (l *errorLog) last(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(err)
}

func (l *errorLog) tell(err error) {
	l.log.Warn("traces cannot be exported", "error", l.mask.Cut(err.Error(), maxError), "more", l.silent)
}
