package connectors_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stepworker/stepworker/connectors"
)

var lastRun = time.Date(2026, 11, 25, 10, 0, 0, 500, time.UTC)

func withCycle(c *connectors.Call) {
	c.LastRun = lastRun
	c.Cycle = connectors.Cycle{CycleID: "cy", CycleStepID: "st", TransactionID: "tx", Variables: map[string]json.RawMessage{"k": json.RawMessage(`1`)}}
}

func TestCall_systemMergeFields(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
headers: {X-Account: "{{AccountId}}/{{AccountExternalId}}"}
parameters:
  - {name: since, target: query_string, value: "{{LastSuccessfulRunDate format=yyyyMMdd}}"}
methods:
  - method: get
    verb: POST
    endpoint: "/{{CycleId}}/{{CycleStepId}}/{{TransactionId}}/{{LastSuccessfulRunDate format=yyyy-MM-ddTHH:mm:ssZ}}"
    body: {since: "{{LastSuccessfulRunDate}}", hook: "{{Cyclr_Webhook_Url}}", id: "{{Cyclr_Webhook_Id}}", of: "{{CyclrObjectName}}"}
`
	a := newAPI(t, file, nil)
	a.must("get", withCycle, withParameters(`{"Cyclr_Webhook_Url":"https://hooks.example/1","Cyclr_Webhook_Id":17,"CyclrObjectName":"{{AccountId}}"}`))
	got := a.only()
	if want := "/cy/st/tx/2026-11-25T10:00:00Z?since=20261125"; got.URI != want {
		t.Errorf("got %s, want %s", got.URI, want)
	}
	if got.Header.Get("X-Account") != "42/cust-42" {
		t.Errorf("got %s", got.Header.Get("X-Account"))
	}
	sameJSON(t, "body", json.RawMessage(got.Body), `{"since":"2026-11-25T10:00:00Z","hook":"https://hooks.example/1","id":17,"of":"{{AccountId}}"}`)

	t.Run("without a value they leave out what holds them", func(t *testing.T) {
		a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods:\n  - method: get\n    verb: POST\n    endpoint: /a\n    body: {at: '{{LastSuccessfulRunDate}}', cycle: '{{CycleId}}', hook: '{{Cyclr_Webhook_Url}}'}\n", nil)
		a.must("get")
		sameJSON(t, "body", json.RawMessage(a.only().Body), `{"at":"1970-01-01T00:00:00Z"}`)
	})
	t.Run("a step's never stands in a host", func(t *testing.T) {
		a := newAPI(t, "connector: acme\nbase_url: 'https://{{CycleId}}.acme.example'\nmethods: [{method: get, endpoint: /a}]\n", nil)
		if e := a.fails("get", withCycle); e.Kind != "input" {
			t.Errorf("got %+v", e)
		}
	})
}

func TestCall_webhookIDIsForScriptsAndNotSent(t *testing.T) {
	const script = "    script: |\n      function before_action() { action_data.id = method_request_parameters.Cyclr_Webhook_Id; }\n      function after_action() { method_response = action_data; }\n"
	for name, c := range map[string]struct{ parameters, uri string }{
		"not declared": {"", "/things"},
		"declared":     {"    parameters: [{name: Cyclr_Webhook_Id, target: query_string}]\n", "/things?Cyclr_Webhook_Id=w1"},
		"as another":   {"    parameters: [{name: id, target: query_string, value: '{{Cyclr_Webhook_Id}}'}]\n", "/things?id=w1"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, oneMethod+c.parameters+script, nil)
			got := a.must("get", withParameters(`{"Cyclr_Webhook_Id":"w1"}`))
			sameJSON(t, "seen", got.Content, `{"id":"w1"}`)
			if uri := a.only().URI; uri != c.uri {
				t.Errorf("sent %s", uri)
			}
		})
	}
}

func TestCall_generalGlobals(t *testing.T) {
	const fields = "    response: {fields: [{field: '[a].id', system: Id}, {field: b}, {header: X-C, system: C}]}\n"
	const script = `    script: |
      function after_action() {
        method_response = {all: method_response_fields, used: method_response_fields_in_use, at: ` + "`since ${last_successful_run_date}`" + `, where: script_execution_context};
      }
`
	a := newAPI(t, oneMethod+fields+script, nil)
	got := a.must("get", withCycle, func(c *connectors.Call) { c.FieldsInUse, c.Context = []string{"b", "gone"}, "CONNECTOR_TESTING" })
	sameJSON(t, "given", got.Content, `{"all":["[a].id","b"],"used":["b","gone"],"at":"since 2026-11-25T10:00:00Z","where":"CONNECTOR_TESTING"}`)
	got = a.must("get")
	sameJSON(t, "not given", got.Content, `{"all":["[a].id","b"],"used":[],"at":"since 1970-01-01T00:00:00Z","where":"RUNNING_TRANSACTION"}`)
}

func TestCall_nextRunDate(t *testing.T) {
	for name, c := range map[string]struct{ value, want, wrong string }{
		"not set":          {"undefined", "", ""},
		"null":             {"null", "", ""},
		"text":             {"'2026-11-25T10:00:00+01:00'", "2026-11-25T09:00:00Z", ""},
		"a Date":           {"new Date(Date.UTC(2026, 10, 25))", "2026-11-25T00:00:00Z", ""},
		"no date":          {"'soon'", "", `left a next_last_successful_run_date that is no date: "soon"`},
		"an invalid Date":  {"new Date('soon')", "", ""}, // JSON writes it as null
		"begins undefined": {"typeof next_last_successful_run_date === 'undefined' ? '2026-01-01' : 'x'", "2026-01-01T00:00:00Z", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, oneMethod+fmt.Sprintf("    script: |\n      function after_action_paging() { next_last_successful_run_date = %s; }\n", c.value), nil)
			if c.wrong != "" {
				e := a.fails("get")
				if e.Kind != "script" {
					t.Errorf("kind %s", e.Kind)
				}
				contains(t, "message", e.Message, c.wrong)
				return
			}
			got := ""
			if at := a.must("get").NextRun; !at.IsZero() {
				got = at.Format(time.RFC3339)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
