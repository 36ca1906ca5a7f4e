// Package otlptest is a collector for tests: it takes traces by OTLP over HTTP,
// as they are on the wire.
package otlptest

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	proto3 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span as it came, with ids in hexadecimal.
type Span struct {
	Name, Trace, ID, Parent string
	Kind                    string // CLIENT CONSUMER INTERNAL PRODUCER SERVER
	Attributes              map[string]string
	Events                  []Event
	Links                   []string // trace/span
	Error                   bool
	Status                  string
	Start, End              uint64
	Resource                map[string]string
}

// Event is an event of a span.
type Event struct {
	Name       string
	Attributes map[string]string
}

// Place is the span as a Link names it.
func (s *Span) Place() string { return s.Trace + "/" + s.ID }

// Collector is a server that keeps what it was sent.
type Collector struct {
	URL string

	mu      sync.Mutex
	spans   []*Span
	raw     bytes.Buffer
	headers []http.Header
	bad     []string
}

// New starts a collector, which ends with the test.
func New(t testing.TB) *Collector {
	c := &Collector{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// ServeHTTP takes an export (https://opentelemetry.io/docs/specs/otlp/#otlphttp-request).
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		in, _ = gzip.NewReader(r.Body)
	}
	raw, err := io.ReadAll(in)
	var export collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(raw, &export)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || r.URL.Path != "/v1/traces" {
		c.bad = append(c.bad, r.URL.Path)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.raw.Write(raw)
	c.headers = append(c.headers, r.Header)
	for _, rs := range export.ResourceSpans {
		resource := texts(rs.GetResource().GetAttributes())
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, read(s, resource))
			}
		}
	}
}

func read(s *proto3.Span, resource map[string]string) *Span {
	out := &Span{
		Name: s.Name, Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		Kind: strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"), Attributes: texts(s.Attributes),
		Error: s.GetStatus().GetCode() == proto3.Status_STATUS_CODE_ERROR, Status: s.GetStatus().GetMessage(),
		Start: s.StartTimeUnixNano, End: s.EndTimeUnixNano, Resource: resource,
	}
	for _, e := range s.Events {
		out.Events = append(out.Events, Event{e.Name, texts(e.Attributes)})
	}
	for _, l := range s.Links {
		out.Links = append(out.Links, hex.EncodeToString(l.TraceId)+"/"+hex.EncodeToString(l.SpanId))
	}
	return out
}

// texts are attributes with their values as text.
func texts(attributes []*common.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range attributes {
		if s, ok := a.GetValue().GetValue().(*common.AnyValue_StringValue); ok {
			m[a.Key] = s.StringValue
		} else {
			m[a.Key] = strings.TrimSpace(a.GetValue().String())
		}
	}
	return m
}

// Spans are those that came, as far as keep says so.
func (c *Collector) Spans(keep func(*Span) bool) []*Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Span
	for _, s := range c.spans {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// Raw is all that came, as it came.
func (c *Collector) Raw() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw.String()
}

// Header is a header of the last export.
func (c *Collector) Header(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.headers) == 0 {
		return ""
	}
	return c.headers[len(c.headers)-1].Get(name)
}

// Refused are the paths of requests that were no exports.
func (c *Collector) Refused() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.bad...)
}
