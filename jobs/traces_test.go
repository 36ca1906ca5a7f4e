package jobs_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/hibiken/asynq"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// recorder is a provider and what it was told.
func recorder() (*sdk.TracerProvider, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	return sdk.NewTracerProvider(sdk.WithSpanProcessor(r)), r
}

func spansOf(r *tracetest.SpanRecorder, name, id string) (all []sdk.ReadOnlySpan) {
	for _, s := range r.Ended() {
		for _, a := range s.Attributes() {
			if s.Name() == name && a.Key == "messaging.message.id" && a.Value.AsString() == id {
				all = append(all, s)
			}
		}
	}
	return all
}

// A library's user has a span of his own: what he enqueues goes on in its trace,
// one step or many, valid or not.
func TestEnqueue_goesOnInTheCallersTrace(t *testing.T) {
	provider, told := recorder()
	h := newHouse(t, nil)
	client := jobs.NewClient(h.rdb, jobs.WithTracerProvider(provider))
	ctx, flow := provider.Tracer("flow").Start(context.Background(), "flow")
	step := func() *jobs.Step { return &jobs.Step{CredentialID: "c", Method: "m"} }
	one, err := client.Enqueue(ctx, step())
	if err != nil {
		t.Fatal(err)
	}
	many := client.EnqueueBatch(ctx, []*jobs.Step{step(), {}, step()})
	flow.End()
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	for name, want := range map[string]struct {
		r    jobs.Receipt
		span string
	}{"alone": {one, "send steps"}, "first of three": {many[0], "create steps"}, "last of three": {many[2], "create steps"}} {
		sent := spansOf(told, want.span, want.r.ExecutionID)
		if len(sent) != 1 || sent[0].Parent().SpanID() != flow.SpanContext().SpanID() || sent[0].SpanKind() != trace.SpanKindProducer {
			t.Errorf("%s: %+v", name, sent)
			continue
		}
		info, err := inspector.GetTaskInfo("steps", want.r.ExecutionID)
		if err != nil {
			t.Fatal(err)
		}
		sc := sent[0].SpanContext()
		if got, want := info.Headers["traceparent"], "00-"+flow.SpanContext().TraceID().String()+"-"+sc.SpanID().String()+"-01"; got != want {
			t.Errorf("%s: traceparent %q, want %q", name, got, want)
		}
		var payload map[string]any
		if err := json.Unmarshal(info.Payload, &payload); err != nil || payload["traceparent"] != nil {
			t.Errorf("%s: the payload is %s", name, info.Payload)
		}
	}
	i := slices.IndexFunc(told.Ended(), func(s sdk.ReadOnlySpan) bool { return s.SpanKind() == trace.SpanKindClient })
	if i < 0 || len(told.Ended()[i].Links()) != 2 {
		t.Errorf("the batch's span does not link to its two steps: %+v", told.Ended())
	}

	// One who traces nothing himself hands on what he was handed.
	plain, err := jobs.NewClient(h.rdb).Enqueue(ctx, step())
	if err != nil {
		t.Fatal(err)
	}
	info, err := inspector.GetTaskInfo("steps", plain.ExecutionID)
	if want := "00-" + flow.SpanContext().TraceID().String() + "-" + flow.SpanContext().SpanID().String() + "-01"; err != nil || info.Headers["traceparent"] != want {
		t.Errorf("%v, %v", info.Headers, err)
	}
	none, err := jobs.NewClient(h.rdb).Enqueue(context.Background(), step())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := inspector.GetTaskInfo("steps", none.ExecutionID); err != nil || len(info.Headers) != 0 {
		t.Errorf("%v, %v", info.Headers, err)
	}
}

// A retry, a park with its resume, and a rerun from the dashboard: the headers
// are still there, and where there were none the record is.
func TestTrace_ofAllAttempts(t *testing.T) {
	provider, told := recorder()
	h := newHouse(t, func(c *jobs.PoolConfig) { c.TracerProvider = provider })
	var failures atomic.Int64
	failures.Store(2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/orders" && failures.Add(-1) >= 0 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		h.api.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	h.putOAuth("c", "orders")
	for name, client := range map[string]*jobs.Client{"of who enqueues": jobs.NewClient(h.rdb, jobs.WithTracerProvider(provider)), "of the first attempt": jobs.NewClient(h.rdb)} {
		failures.Store(1)
		h.api.KillToken("c")
		r, err := client.Enqueue(context.Background(), &jobs.Step{CredentialID: "c", Method: "list_orders"})
		if err != nil {
			t.Fatal(err)
		}
		if res := h.results([]string{r.ExecutionID})[r.ExecutionID]; res.Status != jobs.Succeeded {
			t.Fatalf("%s: %+v", name, res.Error)
		}
		h.until("the spans are told", func() bool { return len(spansOf(told, "process steps", r.ExecutionID)) == 3 })
		root := "queue steps"
		if name == "of who enqueues" {
			root = "send steps"
		}
		roots := slices.DeleteFunc(spansOf(told, root, r.ExecutionID), func(s sdk.ReadOnlySpan) bool { return s.Parent().IsValid() })
		if len(roots) != 1 {
			t.Fatalf("%s: roots %+v", name, roots)
		}
		verdicts := []string{}
		for _, s := range spansOf(told, "process steps", r.ExecutionID) {
			if s.Parent().SpanID() != roots[0].SpanContext().SpanID() || s.SpanContext().TraceID() != roots[0].SpanContext().TraceID() {
				t.Errorf("%s: %+v is no child of its root", name, s)
			}
			for _, a := range s.Attributes() {
				if a.Key == "stepworker.verdict" {
					verdicts = append(verdicts, a.Value.AsString())
				}
			}
		}
		if want := []string{"retried", "parked", "succeeded"}; !slices.Equal(verdicts, want) {
			t.Errorf("%s: %q, want %q", name, verdicts, want)
		}
	}

	// What has failed is run again by a person.
	failures.Store(1)
	none := 0
	r, err := jobs.NewClient(h.rdb).Enqueue(context.Background(), &jobs.Step{CredentialID: "c", Method: "list_orders", MaxRetries: &none})
	if err != nil {
		t.Fatal(err)
	}
	if res := h.results([]string{r.ExecutionID})[r.ExecutionID]; res.Status != jobs.Failed {
		t.Fatalf("%+v", res)
	}
	h.until("it can be run again", func() bool {
		return asynq.NewInspectorFromRedisClient(h.rdb).RunTask("steps", r.ExecutionID) == nil
	})
	h.until("it ran again", func() bool { return len(spansOf(told, "process steps", r.ExecutionID)) == 2 })
	all := spansOf(told, "process steps", r.ExecutionID)
	if all[0].SpanContext().TraceID() != all[1].SpanContext().TraceID() {
		t.Error("a person's rerun is in another trace")
	}
}

// `credential get` shows what it always did.
func TestLastRefresh_traceIsNotShown(t *testing.T) {
	provider, _ := recorder()
	h := newHouse(t, func(c *jobs.PoolConfig) { c.TracerProvider = provider })
	h.putOAuth("c", "orders")
	h.api.KillToken("c")
	r, err := h.client.Enqueue(context.Background(), &jobs.Step{CredentialID: "c", Method: "list_orders"})
	if err != nil {
		t.Fatal(err)
	}
	if res := h.results([]string{r.ExecutionID})[r.ExecutionID]; res.Status != jobs.Succeeded {
		t.Fatalf("%+v", res.Error)
	}
	c, err := h.store.Get(context.Background(), "c")
	if err != nil || c.Meta.LastRefresh == nil || c.Meta.LastRefresh.Trace == "" {
		t.Fatalf("%+v, %v", c, err)
	}
	var st *credentials.Status
	if st, err = h.store.Status(context.Background(), "c"); err != nil || st.LastRefresh.Trace != "" {
		t.Errorf("%+v, %v", st.LastRefresh, err)
	}
}

// What is held links to the refresh that was refused. A hold that a person ends has its time in the queue told, its refresh links
// once to each attempt, and an execution that somebody cancels is no error.
func TestTrace_ofHeldExecutions(t *testing.T) {
	t.Parallel()
	provider, told := recorder()
	h := newHouse(t, func(c *jobs.PoolConfig) { c.TracerProvider = provider })
	client := jobs.NewClient(h.rdb, jobs.WithTracerProvider(provider))
	ids := []string{"", ""}
	for i, credential := range []string{"put", "cancelled"} {
		h.putOAuth(credential, "orders")
		h.api.Revoke(credential)
		r, err := client.Enqueue(context.Background(), &jobs.Step{CredentialID: credential, Method: "list_orders"})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = r.ExecutionID
		h.until("it is held", func() bool { return len(spansOf(told, "process steps", r.ExecutionID)) >= 2 })
	}
	if links := spansOf(told, "process steps", ids[0])[1].Links(); len(links) != 1 || !slices.ContainsFunc(told.Ended(), func(s sdk.ReadOnlySpan) bool {
		return s.Name() == "refresh oauth2" && s.SpanContext().SpanID() == links[0].SpanContext.SpanID()
	}) {
		t.Errorf("what is held does not link to the refresh that was refused: %+v", links)
	}
	before := len(spansOf(told, "queue steps", ids[0]))
	h.putOAuth("put", "orders")
	if err := h.client.Cancel(context.Background(), ids[1]); err != nil {
		t.Fatal(err)
	}
	h.results(ids)
	c, err := h.store.Get(context.Background(), "put")
	if err != nil {
		t.Fatal(err)
	}
	h.until("the spans are told", func() bool { return len(spansOf(told, "cancel steps", ids[1])) == 1 })
	queued := spansOf(told, "queue steps", ids[0])
	if len(queued) != before+1 || !queued[before].StartTime().Equal(c.Meta.Since) {
		t.Errorf("%d spans of the queue after %d, want one that begins at the put, %s: %+v", len(queued), before, c.Meta.Since, queued)
	}
	if s := spansOf(told, "cancel steps", ids[1])[0]; s.Status().Code == codes.Error {
		t.Errorf("a cancelled execution is an error: %+v", s.Status())
	}
	h.api.Revoke("put")
	if _, err := client.Enqueue(context.Background(), &jobs.Step{CredentialID: "put", Method: "list_orders"}); err != nil {
		t.Fatal(err)
	}
	h.until("it is held, too", func() bool {
		askers, err := h.store.Askers(context.Background(), "put")
		return err == nil && len(askers) == 2 // the first attempt, and the one that is held
	})
}
