package connectors

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// told is what a request's span may tell beside its verb, its host and how it
// was answered. Filled URLs, queries, headers and bodies hold secrets and are
// never told; nor is trace context sent to an API, which is a stranger.
type told struct {
	template string // of the path, as the connector file has it; "": not known
	mask     func() *credentials.Redactor
}

// told of this call's requests.
func (x *exchange) told() told {
	return told{template: pathTemplate(x.d.BaseURL, x.m.Endpoint), mask: x.mask}
}

// startRequest starts a request's CLIENT span (semantic conventions for HTTP).
func (c *Caller) startRequest(req *http.Request, what told) (*http.Request, trace.Span) {
	name := req.Method
	if what.template != "" {
		name += " " + what.template
	}
	ctx, span := c.tracer.Start(req.Context(), name, trace.WithSpanKind(trace.SpanKindClient))
	if !span.IsRecording() {
		return req, span
	}
	r := what.mask()
	span.SetAttributes(semconv.HTTPRequestMethodKey.String(req.Method), semconv.ServerAddress(r.String(req.URL.Hostname())))
	if port, err := strconv.Atoi(req.URL.Port()); err == nil {
		span.SetAttributes(semconv.ServerPort(port))
	}
	if what.template != "" {
		span.SetName(r.String(name))
		span.SetAttributes(semconv.URLTemplate(r.String(what.template)))
	}
	if purpose := PurposeOf(ctx); purpose != "" {
		span.SetAttributes(attribute.String("stepworker.purpose", purpose))
	}
	return req.WithContext(ctx), span
}

// endRequest ends a request's span: at once where there is no answer, else when
// its body has been read or is closed.
func endRequest(span trace.Span, what told, res *http.Response, f *fault) {
	if !span.IsRecording() {
		return
	}
	switch {
	case f != nil:
		span.SetAttributes(semconv.ErrorTypeKey.String(f.errorType()))
		span.SetStatus(otelcodes.Error, what.mask().Cut(f.text, maxText))
		span.End()
		return
	case res.StatusCode >= 400:
		span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(res.StatusCode)))
		span.SetStatus(otelcodes.Error, "")
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(res.StatusCode))
	res.Body = &spannedBody{res.Body, span}
}

type spannedBody struct {
	io.ReadCloser
	span trace.Span
}

// Read ends the span with the answer: what is made of that is another matter.
func (b *spannedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.span.End()
	}
	return n, err
}

func (b *spannedBody) Close() error {
	err := b.ReadCloser.Close()
	b.span.End()
	return err
}

func (f *fault) errorType() string {
	switch {
	case f.refused != nil:
		return "address_refused"
	case f.timeout:
		return "timeout"
	case f.sent:
		return "connection_broken"
	}
	return "not_reached"
}

// pathTemplate is the path of a URL's template as the connector file has it,
// below base where it is not absolute: no host, no query.
func pathTemplate(base, endpoint string) string {
	t := endpoint
	if base != "" && !strings.Contains(endpoint, "://") {
		t = strings.TrimRight(beforeQuery(base), "/")
		if e := beforeQuery(endpoint); e != "" {
			t += "/" + strings.TrimLeft(e, "/")
		}
	}
	if strings.HasPrefix(endpoint, "=") { // inline script
		return ""
	}
	t = beforeQuery(t)
	if _, rest, absolute := strings.Cut(t, "://"); absolute {
		_, path, _ := strings.Cut(rest, "/")
		t = "/" + path
	}
	return t
}

// beforeQuery is a template up to its query or fragment. What stands in a merge
// field is none.
func beforeQuery(t string) string {
	depth := 0
	for i := range len(t) {
		switch t[i] {
		case '{':
			depth++
		case '}':
			depth--
		case '?', '#':
			if depth <= 0 {
				return t[:i]
			}
		}
	}
	return t
}

// startEvent starts the span of an event of scripts. It is not to be ended
// where nothing ran.
func (c *Caller) startEvent(ctx context.Context, event string) (context.Context, trace.Span) {
	return c.tracer.Start(ctx, "hook "+event)
}

// endEvent ends the span of an event that ran.
func endEvent(span trace.Span, ev *hooks.Event, out *hooks.Outcome, err error, mask func() *credentials.Redactor) {
	if !span.IsRecording() || err == nil && (out == nil || !out.Ran) {
		return
	}
	levels := []string{}
	for _, l := range eventLevels(ev) {
		levels = append(levels, string(l))
	}
	span.SetAttributes(attribute.String("stepworker.hook.event", ev.Name), attribute.StringSlice("stepworker.hook.levels", levels))
	var exc *hooks.Exception
	switch {
	case err == nil:
	case errors.As(err, &exc): // the way in which connectors say what is to come: no error
		span.AddEvent("exception thrown", trace.WithAttributes(attribute.String("stepworker.hook.exception", string(exc.Kind)),
			attribute.String("stepworker.hook.level", string(exc.Level)), attribute.String("stepworker.reason", mask().Cut(exc.Text, maxText))))
	default:
		span.SetAttributes(semconv.ErrorTypeKey.String(hookErrorType(err)))
		span.SetStatus(otelcodes.Error, mask().Cut(err.Error(), maxText))
	}
	span.End()
}

func hookErrorType(err error) string {
	var script *hooks.ScriptError
	var limit *hooks.LimitError
	switch {
	case errors.As(err, &script):
		return "script"
	case errors.As(err, &limit):
		return "limit"
	case ofContext(err):
		return "timeout"
	}
	return "hook_host"
}

// told of a token request.
func (t *tokenRequest) told() told {
	return told{template: pathTemplate("", t.d.Auth.TokenURL), mask: t.mask}
}

func (t *tokenRequest) mask() *credentials.Redactor { return credentials.NewRedactor(t.secrets(), 6) }
