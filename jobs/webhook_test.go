package jobs_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

const received = `
connector: own
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters:
  - {name: base, target: merge_field, property: account}
methods:
  - {method: strict, endpoint: /strict}
  - method: received
    type: webhook
    response: {fields: [{field: id, system: Id}]}
    script: |
      function before_webhook() {
        if (method_request_headers['x-key'] !== 'k') {
          method_response = {error: 'no key'};
          return false;
        }
      }
      function after_webhook() { return method_response.id > 0; }
`

// A webhook waits for nobody: not even a revoked credential keeps it.
func TestWebhook_needsNoUsableCredential(t *testing.T) {
	t.Parallel()
	h := newHouse(t, withConnector(t, received))
	h.putOAuth("c", "own")
	h.api.Revoke("c")
	held := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "strict"})
	h.until("the credential is revoked", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked
	})
	cases := map[string]struct{ headers, body, webhook, content, fields string }{
		"accepted":         {`{"X-Key":"k"}`, `{"id":1}`, `{"accepted":true}`, `{"id":1}`, `{"Id":1}`},
		"dropped":          {`{"X-Key":"k"}`, `{"id":0}`, `{"accepted":false}`, ``, ``},
		"dropped and told": {`{}`, `{"id":1}`, `{"accepted":false,"reply":{"headers":{},"content":{"error":"no key"}}}`, ``, ``},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "received", Webhook: &jobs.Webhook{Headers: parameters(c.headers), Body: json.RawMessage(c.body)}})
			r := h.results(ids)[ids[0]]
			webhook, err := json.Marshal(r.Webhook)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{string(r.Status), string(webhook), string(r.Content), string(r.Fields)}
			if d := cmp.Diff([]string{"succeeded", c.webhook, c.content, c.fields}, got); d != "" {
				t.Error(d)
			}
		})
	}
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "received"})
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindInput {
		t.Errorf("without a webhook: got %+v", r.Error)
	}
	h.putOAuth("c", "own")
	h.succeed(held)
}

func TestReply_leavesOutALargeReplyOfAWebhook(t *testing.T) {
	h := newHouse(t, withConnector(t, received))
	h.putOAuth("c", "own")
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "received", Webhook: &jobs.Webhook{Headers: parameters(`{"X-Key":"k"}`), Body: json.RawMessage(`{"id":1}`)},
		Script:  "function before_webhook() { method_response = 'x'.repeat(300 * 1024); }",
		ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}})
	kept := h.results(ids)[ids[0]]
	if n := len(kept.Webhook.Reply.Content); n != 300*1024+2 {
		t.Errorf("the result's reply has %d bytes", n)
	}
	info, err := asynq.NewInspectorFromRedisClient(h.rdb).GetTaskInfo("flows", "r."+ids[0])
	if err != nil {
		t.Fatal(err)
	}
	var got jobs.Result
	if err := json.Unmarshal(info.Payload, &got); err != nil {
		t.Fatal(err)
	}
	want := &jobs.WebhookResult{Accepted: true, Reply: &jobs.WebhookReply{Headers: json.RawMessage(`{}`)}}
	if d := cmp.Diff(want, got.Webhook); d != "" || !got.ContentOmitted {
		t.Errorf("omitted %v, %s", got.ContentOmitted, d)
	}
}

func TestDenyStepScripts_refusesInlineScriptToo(t *testing.T) {
	h := newHouse(t, func(c *jobs.PoolConfig) { withConnector(t, dated)(c); c.DenyStepScripts = true })
	h.put(map[string]any{"credential_id": "a", "connector": "own"})
	step := jobs.Step{CredentialID: "a", Method: "look", Mappings: map[string]string{"parameters.next": "2026-01-01"}}
	h.succeed(h.enqueue(1, step))
	step.Mappings = map[string]string{"parameters.next": "='2026-01-01'"}
	ids := h.enqueue(1, step)
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindInput {
		t.Errorf("got %+v", r.Error)
	}
}

func TestValidate_webhook(t *testing.T) {
	for name, c := range map[string]struct{ webhook, want string }{
		"all of it":         {`{"url":"https://h.example/1?a=b","method":"POST","headers":{"A":"b","B":["c"]},"query":{"q":"1"},"body":{"a":1}}`, ""},
		"nothing":           {`{}`, ""},
		"text as body":      {`{"body":"a=1"}`, ""},
		"a relative URL":    {`{"url":"/hook"}`, "webhook.url: an absolute http or https URL is needed"},
		"no method":         {`{"method":"GET /"}`, `webhook.method "GET /" is no HTTP method`},
		"a number":          {`{"headers":{"A":1}}`, "webhook.headers.A: text or a list of texts is needed"},
		"a number in query": {`{"query":{"A":[1]}}`, "webhook.query.A: text or a list of texts is needed"},
		"misspelt":          {`{"header":{}}`, `webhook: unknown member "header"; did you mean "headers"?`},
		"no object":         {`[]`, "webhook: a list is not allowed here"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := jobs.DecodeStep([]byte(`{"credential_id":"c","method":"m","webhook":` + c.webhook + `}`))
			if err == nil {
				err = s.Validate()
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
