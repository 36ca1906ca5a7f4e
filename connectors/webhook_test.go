package connectors_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

// webhookConnector has a webhook method with the given scripts.
func webhookConnector(connector, method string) string {
	script := func(s, indent string) string {
		if s == "" {
			return ""
		}
		return indent + "script: |\n" + indent + "  " + strings.ReplaceAll(s, "\n", "\n"+indent+"  ") + "\n"
	}
	return "connector: acme\nbase_url: BASE\nauth: {type: api_key}\nparameters:\n  - {name: needed, target: query_string}\n  - {name: sid, target: http_header, property: session}\n  - {name: region, target: script, value: eu}\n" +
		script(connector, "") + "methods:\n  - method: received\n    type: webhook\n    response: {fields: [{field: '[items].id', system: Id}]}\n" + script(method, "    ")
}

func withWebhook(w connectors.Webhook) func(*connectors.Call) {
	return func(c *connectors.Call) { c.Webhook = &w }
}

// answerOf is an answer as a comparable text.
func answerOf(t *testing.T, a *connectors.Answer) string {
	t.Helper()
	m := map[string]any{"accepted": a.Webhook.Accepted}
	if a.Content != nil {
		m["content"] = a.Content
	}
	if a.Fields != nil {
		m["fields"] = a.Fields
	}
	if r := a.Webhook.Reply; r != nil {
		m["headers"], m["reply"] = r.Headers, r.Content
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestWebhook_whatBecomesOfIt(t *testing.T) {
	body := `{"items":[{"id":1},{"id":2}]}`
	cases := map[string]struct {
		connector, method, step string
		webhook                 connectors.Webhook
		want                    string
	}{
		"no hook": {webhook: connectors.Webhook{Body: json.RawMessage(body)}, want: `{"accepted":true,"content":` + body + `,"fields":{"Id":[1,2]}}`},
		"no body": {want: `{"accepted":true}`},
		"dropped with a reply": {method: "function before_webhook() {\n  method_response = {why: 'closed'}; method_response_headers['X-A'] = 'b';\n  return false;\n}\nfunction after_webhook() { throw new Error('never'); }",
			connector: "function before_webhook() { throw new Error('not asked any more'); }",
			want:      `{"accepted":false,"headers":{"X-A":"b"},"reply":{"why":"closed"}}`},
		"dropped with nothing to say": {step: "function before_webhook() { return false; }", want: `{"accepted":false,"headers":{},"reply":null}`},
		"headers as they are sent": {method: "function before_webhook() { method_response_headers = {a: 1, b: true, c: null, d: ['x', 2, null], e: new Date(0)}; return false; }",
			want: `{"accepted":false,"headers":{"a":"1","b":"true","d":["x","2"],"e":"1970-01-01T00:00:00.000Z"},"reply":null}`},
		"dropped silently":          {method: "function before_webhook() { method_response = 'ok'; }\nfunction after_webhook() { return method_response.items.length > 2; }", webhook: connectors.Webhook{Body: json.RawMessage(body)}, want: `{"accepted":false}`},
		"accepted with a reply":     {method: "function before_webhook() { method_response = '17'; return true; }", webhook: connectors.Webhook{Body: json.RawMessage(body)}, want: `{"accepted":true,"content":` + body + `,"fields":{"Id":[1,2]},"headers":{},"reply":"17"}`},
		"another body":              {method: "function after_webhook() { method_response = {items: [{id: method_response.items.length}]}; }", webhook: connectors.Webhook{Body: json.RawMessage(body)}, want: `{"accepted":true,"content":{"items":[{"id":2}]},"fields":{"Id":[2]}}`},
		"text that is JSON":         {webhook: connectors.Webhook{Body: json.RawMessage(`"{\"a\": 1.10}"`)}, want: `{"accepted":true,"content":{"a":1.10}}`},
		"text that is none":         {webhook: connectors.Webhook{Body: json.RawMessage(`"hello"`)}, want: `{"accepted":true,"content":"hello"}`},
		"a form":                    {webhook: connectors.Webhook{Headers: map[string]json.RawMessage{"content-type": json.RawMessage(`"application/x-www-form-urlencoded"`)}, Body: json.RawMessage(`"a=1&b=x+y"`)}, want: `{"accepted":true,"content":{"a":"1","b":"x y"}}`},
		"text left in it is parsed": {method: "function after_webhook() { method_response = '{\"items\":[{\"id\":7}]}'; }", want: `{"accepted":true,"content":{"items":[{"id":7}]},"fields":{"Id":[7]}}`},
		"no action's events":        {method: "function before_action() { throw 1 }\nfunction after_action() { throw 1 }\nfunction after_action_paging() { throw 1 }\nfunction action_condition() { throw 1 }", want: `{"accepted":true}`},
		"from first to second":      {method: "function before_webhook() { action_data.a = 1; }\nfunction after_webhook() { method_response = action_data; }", want: `{"accepted":true,"content":{"a":1}}`},
		"what they see": {method: "function before_webhook() {\n  action_data.seen = [method_name, method_endpoint, method_request_method, method_request, method_request_parameters.q, method_request_headers['x-SIGNATURE'], typeof method_response, typeof method_response_headers, script_parameters.region, statusCode];\n}\nfunction after_webhook() { method_response = action_data.seen.concat([typeof method_response_headers, method_response.k]); }",
			webhook: connectors.Webhook{URL: "https://hooks.example/1", Method: "put", Headers: map[string]json.RawMessage{"X-Signature": json.RawMessage(`"s"`)}, Query: map[string]json.RawMessage{"q": json.RawMessage(`["1","2"]`)}, Body: json.RawMessage(`{"k":1}`)},
			want:    `{"accepted":true,"content":["received","https://hooks.example/1","PUT",{"k":1},["1","2"],"s","undefined","object","eu",null,"undefined",1]}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, webhookConnector(c.connector, c.method), nil) // its credential has no key, and no session
			got := a.must("received", withScript(c.step), withWebhook(c.webhook))
			if d := cmp.Diff(c.want, answerOf(t, got)); d != "" {
				t.Error(d)
			}
			if n := len(a.requests()); n != 0 || got.StatusCode != 0 || got.Exit != nil {
				t.Errorf("%d requests, answer %+v", n, got)
			}
		})
	}
}

func TestWebhook_errors(t *testing.T) {
	cases := map[string]struct {
		method  string
		change  func(*connectors.Call)
		kind    string
		message string
	}{
		"none came":      {"", func(c *connectors.Call) { c.Webhook = nil }, "input", `the step needs member "webhook"`},
		"a body":         {"", func(c *connectors.Call) { c.Body = json.RawMessage(`{}`) }, "input", "webhook.body"},
		"a mapped one":   {"", withMappings(map[string]string{"body.a": "x"}), "input", "webhook.body"},
		"a throw":        {"function before_webhook() { throw new Error('no'); }", nil, "script", "no"},
		"an exception":   {"function after_webhook() { throw new AuthRefreshException(); }", nil, "script", "cannot be thrown from after_webhook"},
		"no headers":     {"function before_webhook() { method_response_headers = 'x'; return false; }", nil, "script", "that are no object"},
		"a broken line":  {`function before_webhook() { method_response_headers.a = 'x\r\nSet-Cookie: y'; return false; }`, nil, "script", "a line break"},
		"in a list":      {`function before_webhook() { method_response_headers.a = ['x\ny']; return false; }`, nil, "script", "a line break"},
		"a broken name":  {`function before_webhook() { method_response_headers['a: b\r\nc'] = 'x'; return false; }`, nil, "script", "no header name"},
		"an object":      {"function before_webhook() { method_response_headers.a = {b: 1}; return false; }", nil, "script", "text is needed"},
		"to wait":        {"function before_webhook() { throw new RetryLaterException(5, 'later'); }", nil, "rate", "later"},
		"step's grammar": {"", withScript("function x( {"), "script", "syntax error"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, webhookConnector("", c.method), nil)
			change := []func(*connectors.Call){withWebhook(connectors.Webhook{})}
			if c.change != nil {
				change = append(change, c.change)
			}
			e := a.fails("received", change...)
			if e.Kind != c.kind {
				t.Errorf("kind %s", e.Kind)
			}
			contains(t, "message", e.Message, c.message)
		})
	}
	t.Run("for a method that is none", func(t *testing.T) {
		a := newAPI(t, oneMethod, nil)
		if e := a.fails("get", withWebhook(connectors.Webhook{})); e.Kind != "input" {
			t.Errorf("got %+v", e)
		}
	})
}

func TestWebhook_mayAskTheAPI(t *testing.T) {
	a := newAPI(t, webhookConnector("", "function after_webhook() { method_response = http_request({url: method_response.url}).content; }"), answering(200, `{"items":[{"id":3}]}`))
	a.Cred.Secrets.APIKey = credentials.NewSecret("the-key")
	got := a.must("received", withWebhook(connectors.Webhook{Body: json.RawMessage(`{"url":"` + a.URL + `/things"}`)}))
	sameJSON(t, "content", got.Content, `{"items":[{"id":3}]}`)
	if key := a.only().Header.Get("Authorization"); key != "the-key" {
		t.Errorf("sent %q", key)
	}
}

const scriptMethod = `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token}
methods:
  - method: countries
    type: script
    parameters: [{name: n, target: script, optional: true}]
    body: {a: "{{AccountId}}"}
    response: {fields: [{field: "[list].id", system: Id, type: text}]}
    script: |
`

func TestScriptMethod(t *testing.T) {
	cases := map[string]struct{ script, content, fields, exit string }{
		"static data": {"function after_action() { method_response = {list: [{id: 1}]}; }", `{"list":[{"id":1}]}`, `{"Id":["1"]}`, ""},
		"its events": {"var seen = [];\n      function before_action() { method_request.b = 1; action_data.e = ['before', method_request, statusCode, method_response_here()]; }\n      function method_response_here() { return typeof method_response; }\n" +
			"      function after_action() { action_data.e.push('after', method_response, statusCode); }\n      function after_action_paging() { method_response = action_data.e.concat(['paging']); }\n      function action_condition() { return method_response.length === 8; }\n      function after_error() { throw 1; }",
			`["before",{"a":"42","b":1},null,"undefined","after",null,null,"paging"]`, "", "true"},
		"nothing":           {"function after_action() {}", ``, "", ""},
		"text":              {"function after_action() { method_response = 'hello'; }", `"hello"`, "", ""},
		"text that is JSON": {"function after_action() { method_response = '[1.10]'; }", `[1.10]`, "", ""},
		"asks the API":      {"function after_action() { method_response = http_request({url: 'BASE/x'}).content; }", `{"auth":"Bearer the-token-0"}`, "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, scriptMethod+"      "+c.script+"\n", answering(200, `{"auth":"Bearer the-token-0"}`))
			withToken(a.Cred, "the-token-0", "")
			got := a.must("countries")
			exit := ""
			if got.Exit != nil && *got.Exit {
				exit = "true"
			}
			if string(got.Content) != c.content || string(got.Fields) != c.fields || exit != c.exit || got.StatusCode != 0 || !got.Ran {
				t.Errorf("got %s %s %s %+v", got.Content, got.Fields, exit, got)
			}
			seen := a.requests()
			if name != "asks the API" && len(seen) != 0 || len(seen) == 1 && seen[0].Header.Get("Authorization") != "Bearer the-token-0" {
				t.Errorf("sent %+v", seen)
			}
		})
	}
	t.Run("a dead credential", func(t *testing.T) {
		a := newAPI(t, scriptMethod+"      function after_action() { throw new AuthRefreshException(); }\n", nil)
		withToken(a.Cred, "the-token-0", "")
		if e := a.refused("countries"); e.Kind != credentials.OAuth2 || !e.Ran {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		a := newAPI(t, scriptMethod+"      function before_action() { return false; }\n", nil)
		withToken(a.Cred, "the-token-0", "")
		if e := a.fails("countries"); e.Kind != "script" {
			t.Errorf("got %+v", e)
		}
	})
}

// What the caller of a webhook proves itself with is nobody else's to read.
func TestWebhook_theCallersSecretsAreMasked(t *testing.T) {
	a := newAPI(t, webhookConnector("", `function before_webhook() { var h = method_request_headers; console.log(JSON.stringify(h)); throw new Error(h.authorization.slice(7) + ' ' + h.Cookie); }`), nil)
	e := a.fails("received", withWebhook(connectors.Webhook{Headers: map[string]json.RawMessage{
		"Authorization": json.RawMessage(`"Bearer canary-token"`), "cookie": json.RawMessage(`["a=canary-one; b=canary-two"]`), "X-Kept": json.RawMessage(`"kept-value"`)}}))
	seen := e.Message + strings.Join(e.Logs, " ")
	if strings.Contains(seen, "canary") || !strings.Contains(seen, "Bearer [redacted]") || !strings.Contains(seen, "kept-value") {
		t.Errorf("shown: %s", seen)
	}
}
