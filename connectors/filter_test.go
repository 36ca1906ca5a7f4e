package connectors_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
)

func filtering(location, answer, more string) func(t *testing.T) *api {
	return func(t *testing.T) *api {
		return newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: list
    endpoint: /things
    parameters:
      - {name: after, target: filter_field, as: "`+location+`", optional: true`+more+`}
    response: {fields: [{field: "[records].id", system: Id}]}
`, answering(200, answer))
	}
}

func TestFilter_onlyWhatIsLater(t *testing.T) {
	for name, c := range map[string]struct{ location, after, answer, want string }{
		"dates, however written": {"[records].at", `"2026-03-05T16:00:00Z"`,
			`{"total":4,"records":[{"id":1,"at":"2026-03-05T15:59:59Z"},{"id":2,"at":"2026-03-05T18:00:01+02:00"},{"id":3,"at":1772726401},{"id":4,"at":"2026-03-05T16:00:00.000Z"}]}`,
			`{"total":4,"records":[{"id":2,"at":"2026-03-05T18:00:01+02:00"},{"id":3,"at":1772726401}]}`},
		"numbers": {"[records].id", `9`, `{"records":[{"id":9},{"id":10},{"id":"11"},{"id":8.5},{"id":9.000000000000000001}]}`, `{"records":[{"id":10},{"id":"11"},{"id":9.000000000000000001}]}`},
		"text":    {"[records].name", `"m"`, `{"records":[{"name":"a"},{"name":"z"},{"name":"m"}]}`, `{"records":[{"name":"z"}]}`},
		"items without it are not": {"[records].at", `"2026-03-05"`, `{"records":[{"id":1},{"id":2,"at":null},3,{"id":4,"at":"2027-01-01"}]}`,
			`{"records":[{"id":4,"at":"2027-01-01"}]}`},
		"empty text is no value": {"[records].at", `"2026-03-05"`, `{"records":[{"id":1,"at":""},{"id":2},{"id":4,"at":"2027-01-01"}]}`,
			`{"records":[{"id":4,"at":"2027-01-01"}]}`},
		"empty text is no number": {"[records].n", `-1`, `{"records":[{"n":""},{"n":null},{"n":0}]}`, `{"records":[{"n":0}]}`},
		"empty text, nothing is asked": {"[records].at", `""`, `{"records":[{"id":1},{"id":2,"at":""},{"id":3,"at":"2026"}]}`,
			`{"records":[{"id":1},{"id":2,"at":""},{"id":3,"at":"2026"}]}`},
		"a root list":          {"[].at", `"2026-03-05"`, `[{"at":"2026-03-04"},{"at":"2026-03-06"}]`, `[{"at":"2026-03-06"}]`},
		"a list in a list":     {"data.[a].[b].meta.n", `1`, `{"data":{"a":[{"b":[{"meta":{"n":1}},{"meta":{"n":2}}]},{"c":3}]}}`, `{"data":{"a":[{"b":[{"meta":{"n":2}}]},{"c":3}]}}`},
		"a list of values":     {"[records]", `1`, `{"records":[1,2,3]}`, `{"records":[2,3]}`},
		"no list there":        {"[records].at", `1`, `{"items":[{"at":1}]}`, `{"items":[{"at":1}]}`},
		"without a value, all": {"[records].at", `null`, `{"records":[{"at":1}]}`, `{"records":[{"at":1}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			answer := filtering(c.location, c.answer, "")(t).must("list", withParameters(`{"after":`+c.after+`}`))
			if d := cmp.Diff(c.want, string(answer.Content)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestFilter_byTheLastSuccessfulRun(t *testing.T) {
	a := filtering("[records].at", `{"records":[{"id":1,"at":"2026-03-05T10:00:00Z"},{"id":2,"at":"2026-03-05T12:00:00Z"}]}`, `, value: "{{LastSuccessfulRunDate}}"`)(t)
	answer := a.must("list", func(c *connectors.Call) { c.LastRun = time.Date(2026, 3, 5, 11, 0, 0, 0, time.UTC) },
		withScript(`function after_action_paging() { method_response.records.push({id: 3, at: '2026-03-06'}, {id: 4, at: '2026-03-04'}); return true; }`))
	sameJSON(t, "fields", answer.Fields, `{"Id":[2,3]}`)
}

// The other targets, and how a method leaves a connector's parameter out.
func TestParameters_targets(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: every, target: query_string, value: always}
  - {name: X-Every, target: http_header, value: always}
  - {name: kind, target: merge_field, value: things}
  - {name: secretly, target: script, value: 7}
  - {name: position, target: index, value: 3}
methods:
  - method: all
    verb: POST
    endpoint: /{{kind}}
    body: {kind: "{{kind}}", position: "{{position}}"}
    script: |
      function after_action() { method_response = script_parameters; }
  - method: none
    verb: POST
    endpoint: /{{kind}}
    parameters:
      - {name: every, value: CYCLR_IGNORE_PARAMETER}
      - {name: X-Every, value: CYCLR_IGNORE_PARAMETER}
      - {name: kind, value: CYCLR_IGNORE_PARAMETER}
      - {name: secretly, value: CYCLR_IGNORE_PARAMETER}
      - {name: position, value: CYCLR_IGNORE_PARAMETER}
    script: |
      function after_action() { method_response = {seen: script_parameters, merge: method_request_mergefields}; }
  - method: chosen
    endpoint: /x
    parameters: [{name: status, target: query_string, values: [open, closed]}]
`, nil)
	answer := a.must("all")
	if r := a.only(); r.URI != "/things?every=always" || r.Header.Get("X-Every") != "always" || r.Body != `{"kind":"things","position":3}` {
		t.Errorf("%s %v %s", r.URI, r.Header, r.Body)
	}
	sameJSON(t, "script_parameters", answer.Content, `{"secretly":7,"position":3}`)
	answer = a.must("none")
	if r := a.only(); r.URI != "/things" || r.Header.Get("X-Every") != "" {
		t.Errorf("%s %v", r.URI, r.Header)
	}
	sameJSON(t, "script_parameters", answer.Content, `{"seen":{},"merge":{}}`)
	if e := a.fails("chosen"); e.Message != `parameter "status" is missing: one of ["open","closed"]` {
		t.Error(e.Message)
	}
}

// XML knows no lists: a single element is one of one item, and filtered like more.
func TestFilter_xml(t *testing.T) {
	for name, c := range map[string]struct{ location, after, answer, want string }{
		"one":                    {"r.[i].@at", `"2026-03-05"`, `<r><i at="2026-03-04"/></r>`, `{"r":{"i":[]}}`},
		"a later one":            {"r.[i].at", `"2026-03-05"`, `<r><i><at>2026-03-06</at></i></r>`, `{"r":{"i":{"at":"2026-03-06"}}}`},
		"one of a list of one":   {"r.[i].[j]", `1`, `<r><i><j>1</j></i></r>`, `{"r":{"i":{"j":[]}}}`},
		"one in each, of a list": {"r.[i].[j]", `1`, `<r><i><j>1</j></i><i><j>2</j></i></r>`, `{"r":{"i":[{"j":[]},{"j":"2"}]}}`},
		"an empty root":          {"r.[i].at", `"2026-03-05"`, `<r/>`, `{"r":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: list, endpoint: /a, data_type: xml, parameters: [{name: after, target: filter_field, as: '"+c.location+"'}]}]\n",
				func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/xml")
					_, _ = w.Write([]byte(c.answer))
				})
			answer := a.must("list", withParameters(`{"after":`+c.after+`}`))
			if d := cmp.Diff(c.want, string(answer.Content)); d != "" {
				t.Error(d)
			}
		})
	}
}
