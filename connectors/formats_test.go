package connectors_test

import (
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

const dated = `
connector: acme
base_url: BASE
headers: {X-On: "{{on format=dd.MM.yyyy}}"}
parameters:
  - {name: on, target: merge_field, optional: true}
methods:
  - method: add
    verb: POST
    endpoint: /days/{{day format=yyyy-MM-dd}}
    parameters:
      - {name: day, target: merge_field, default: 1764064800}
      - {name: since, target: query_string, value: "{{day format=yyyyMMdd}}"}
      - {name: hour, target: query_string, optional: true, value: "='{{on format=HH}}' + ':00'"}
    body: {at: "{{on format=yyyy-MM-ddTHH:mm:ss.fffZ}}", text: "on {{on format='the' d MMMM}}"}
`

func TestMergeFields_formats(t *testing.T) {
	for name, c := range map[string]struct{ on, header, uri, body string }{
		"RFC 3339":                {`"2026-03-05T18:07:09.045+02:00"`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.045Z","text":"on the 5 March"}`},
		"a day":                   {`"2026-03-05"`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=00%3A00", `{"at":"2026-03-05T00:00:00.000Z","text":"on the 5 March"}`},
		"as toString writes it":   {`"Thu Mar 05 2026 18:07:09 GMT+0200 (Eastern European Standard Time)"`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.000Z","text":"on the 5 March"}`},
		"as toUTCString":          {`"Thu, 05 Mar 2026 16:07:09 GMT"`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.000Z","text":"on the 5 March"}`},
		"seconds":                 {`1772726829`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.000Z","text":"on the 5 March"}`},
		"seconds and a fraction":  {`1772726829.045`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.045Z","text":"on the 5 March"}`},
		"milliseconds":            {`1772726829045`, "05.03.2026", "/days/2025-11-25?since=20251125&hour=16%3A00", `{"at":"2026-03-05T16:07:09.045Z","text":"on the 5 March"}`},
		"nothing, which is known": {`null`, "", "/days/2025-11-25?since=20251125", `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, dated, nil)
			a.must("add", withParameters(`{"on":`+c.on+`}`))
			got := a.only()
			if got.Header.Get("X-On") != c.header || got.URI != c.uri || got.Body != c.body {
				t.Errorf("got  %q %s %s\nwant %q %s %s", got.Header.Get("X-On"), got.URI, got.Body, c.header, c.uri, c.body)
			}
		})
	}
}

func TestMergeFields_whatIsNoDate(t *testing.T) {
	a := newAPI(t, dated, nil)
	for value, want := range map[string]string{
		`{"on":"soon"}`:         `{{on format=HH}}: the value of "on" is no date`,
		`{"on":"20260305"}`:     `{{on format=HH}}: the value of "on" is no date`,
		`{"on":true}`:           `{{on format=HH}}: the value of "on" is no date`,
		`{"on":["2026-03-05"]}`: `{{on format=HH}}: the value of "on" is no date`,
		`{"day":"monday"}`:      `{{day format=yyyyMMdd}}: the value of "day" is no date`,
		`{"day":1e300}`:         `{{day format=yyyyMMdd}}: the value of "day" is no date`,
	} {
		if e := a.fails("add", withParameters(value)); e.Kind != "input" || e.Message != want {
			t.Errorf("%s: %s %s", value, e.Kind, e.Message)
		}
	}
	if n := len(a.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestMappings_formats(t *testing.T) {
	a := newAPI(t, mappedMethod, nil)
	a.Cred.Secrets.APIKey, a.Cred.Secrets.Properties = credentials.NewSecret("the-api-key"), properties(`{"domain":"eu"}`)
	a.must("add", withParameters(`{"name":"2026-03-05T16:07:09Z"}`), withMappings(map[string]string{"body.day": "{{name format=yyyy-MM-dd}}", "parameters.since": "='{{name format=HH}}h'"}))
	if got := a.only(); got.URI != "/things?since=16h&fixed=1" || got.Body != `{"own":"2026-03-05T16:07:09Z","day":"2026-03-05"}` {
		t.Errorf("%s %s", got.URI, got.Body)
	}
	for mapping, want := range map[string]string{
		"{{price format=yyyy}}":  `{{price format=yyyy}}: the value of "price" is no date`,
		"{{prices format=yyyy}}": `mapping "body.day": unknown merge field {{prices}}; did you mean "price"?`,
	} {
		e := a.fails("add", withParameters(`{"name":"x","price":"cheap"}`), withMappings(map[string]string{"body.day": mapping}))
		if e.Kind != "input" || e.Message != want {
			t.Errorf("%s: %s %s", mapping, e.Kind, e.Message)
		}
	}
	if err := definition.CheckMapping("body.day", "{{name format=}}"); err == nil {
		t.Error("a format that says nothing is taken")
	}
}

// A script may write a merge field with a format into the endpoint.
func TestMergeFields_formatInAScriptsEndpoint(t *testing.T) {
	a := newAPI(t, dated, nil)
	a.must("add", withScript(`function before_action() { method_endpoint = method_endpoint.replace('/days/', '/of/{{on format=yyyy}}/'); }`), withParameters(`{"on":"2024-01-02"}`))
	if got := a.only().URI; got != "/of/2024/2025-11-25?since=20251125&hour=00%3A00" {
		t.Error(got)
	}
}
