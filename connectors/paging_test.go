package connectors_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
)

// records serves the numbers 1 to total as records in pages that body makes.
func records(total, size int, body func(r *http.Request, from, to int) string, from func(r *http.Request) int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		first := from(r)
		writeJSON(w, 200, body(r, first, min(first+size, total)))
	}
}

func items(from, to int) string {
	all := []string{}
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprintf(`{"id":%d}`, i+1))
	}
	return "[" + strings.Join(all, ",") + "]"
}

func query(r *http.Request, name string) int {
	text, _, _ := strings.Cut(r.URL.Query().Get(name), ",")
	n, _ := strconv.Atoi(text)
	return n
}

const pagedHead = "connector: acme\nbase_url: BASE/v1\nauth: {type: none}\n"

// TestPaging_kinds goes through each way in which an API leads from page to
// page: the URLs that it saw, and what the call came to.
func TestPaging_kinds(t *testing.T) {
	for name, c := range map[string]struct {
		file   string
		answer http.HandlerFunc
		seen   []string
		want   string // content
		fields string
	}{
		"page number, a short page ends": {
			file: pagedHead + `paging: {page_size: 2}
methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters:
      - {name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}
      - {name: per_page, target: query_string, value: CYCLR_PAGE_SIZE}
    response: {fields: [{field: "[records].id", system: Id, type: integer}]}
`,
			answer: records(5, 2, func(r *http.Request, from, to int) string {
				return fmt.Sprintf(`{"page":%d,"records":%s,"total":5}`, query(r, "page"), items(from, to))
			}, func(r *http.Request) int { return (query(r, "page") - 1) * 2 }),
			seen:   []string{"/v1/things?page=1&per_page=2", "/v1/things?page=2&per_page=2", "/v1/things?page=3&per_page=2"},
			want:   `{"page":3,"records":[{"id":1},{"id":2},{"id":3},{"id":4},{"id":5}],"total":5}`,
			fields: `{"Id":[1,2,3,4,5]}`,
		},
		"page number, an empty page ends": {
			file: pagedHead + `paging: {page_size: 2, inbound: true}
methods:
  - method: list
    endpoint: /things
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`,
			answer: records(4, 2, func(_ *http.Request, from, to int) string { return items(from, max(from, to)) },
				func(r *http.Request) int { return (query(r, "page") - 1) * 2 }),
			seen: []string{"/v1/things?page=1", "/v1/things?page=2", "/v1/things?page=3"},
			want: `[{"id":1},{"id":2},{"id":3},{"id":4}]`,
		},
		"only an empty page ends": {
			file: pagedHead + `paging: {page_size: 3, inbound: true, end: empty_page}
methods:
  - method: list
    endpoint: "/things?page={{CYCLR_PAGE_NUMBER}}"
`,
			answer: records(3, 2, func(_ *http.Request, from, to int) string { return items(from, max(from, to)) },
				func(r *http.Request) int { return (query(r, "page") - 1) * 2 }),
			seen: []string{"/v1/things?page=1", "/v1/things?page=2", "/v1/things?page=3"},
			want: `[{"id":1},{"id":2},{"id":3}]`,
		},
		"offset, in a header, and the number of the last page": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true, page_size: 2, last_page: meta.pages}
    parameters: [{name: X-Offset, target: http_header, value: "{{CYCLR_PAGE_OFFSET}}"}]
`,
			answer: records(4, 2, func(_ *http.Request, from, to int) string {
				return fmt.Sprintf(`{"meta":{"pages":"2","tags":[]},"rows":%s}`, items(from, to))
			}, func(r *http.Request) int { n, _ := strconv.Atoi(r.Header.Get("X-Offset")); return n }),
			seen: []string{"/v1/things", "/v1/things"},
			want: `{"meta":{"pages":"2","tags":[]},"rows":[{"id":1},{"id":2},{"id":3},{"id":4}]}`,
		},
		"page number in the body, and more": {
			file: pagedHead + `methods:
  - method: list
    verb: POST
    endpoint: /search
    paging: {inbound: true, more: paging.has_more, list: "data.[rows]"}
    body: {page: "{{CYCLR_PAGE_NUMBER}}"}
`,
			answer: func(w http.ResponseWriter, r *http.Request) {
				var body struct{ Page int }
				raw, _ := io.ReadAll(r.Body)
				_ = json.Unmarshal(raw, &body)
				writeJSON(w, 200, fmt.Sprintf(`{"data":{"rows":%s,"none":[]},"paging":{"has_more":%v}}`, items(body.Page-1, body.Page), body.Page < 3))
			},
			seen: []string{"/v1/search", "/v1/search", "/v1/search"},
			want: `{"data":{"rows":[{"id":1},{"id":2},{"id":3}],"none":[]},"paging":{"has_more":false}}`,
		},
		"next URL, relative, complete in itself": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /query
    paging: {inbound: true}
    parameters:
      - {name: q, target: query_string}
      - {name: nextRecordsUrl, target: response_field, value: "{{CYCLR_PAGE_NEXT_URL}}"}
    response: {fields: [{field: "[records].id", system: Id}]}
`,
			answer: records(3, 2, func(_ *http.Request, from, to int) string {
				if to == 3 {
					return fmt.Sprintf(`{"done":true,"records":%s}`, items(from, to))
				}
				return fmt.Sprintf(`{"done":false,"records":%s,"nextRecordsUrl":"/v1/query/01g-2000?a=%%7B{{q}}"}`, items(from, to))
			}, func(r *http.Request) int {
				if strings.Contains(r.URL.Path, "01g-2000") {
					return 2
				}
				return 0
			}),
			seen:   []string{"/v1/query?q=x", "/v1/query/01g-2000?a=%7B%7B%7Bq%7D%7D"},
			want:   `{"done":true,"records":[{"id":1},{"id":2},{"id":3}]}`,
			fields: `{"Id":[1,2,3]}`,
		},
		"token, left out at first": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters:
      - {name: after, target: query_string, value: "{{CYCLR_PAGE_TOKEN}}"}
      - {name: next, target: response_field, as: paging.next.after, value: "{{CYCLR_PAGE_TOKEN}}"}
`,
			answer: records(3, 1, func(_ *http.Request, from, to int) string {
				if to == 3 {
					return fmt.Sprintf(`{"results":%s}`, items(from, to))
				}
				return fmt.Sprintf(`{"results":%s,"paging":{"next":{"after":%d}}}`, items(from, to), to)
			}, func(r *http.Request) int { return query(r, "after") }),
			seen: []string{"/v1/things", "/v1/things?after=1", "/v1/things?after=2"},
			want: `{"results":[{"id":1},{"id":2},{"id":3}]}`,
		},
		"two tokens, one of them the last item's, and more": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true, more: has_more}
    parameters:
      - {name: starting_after, target: query_string, value: CYCLR_PAGE_TOKEN_AFTER}
      - {name: X-Snapshot, target: http_header, value: "{{CYCLR_PAGE_TOKEN_SNAP}}"}
      - {name: last, target: response_field, as: "[data].id", value: CYCLR_PAGE_TOKEN_AFTER}
      - {name: snap, target: response_field, header: X-Snapshot-Id, value: CYCLR_PAGE_TOKEN_SNAP}
`,
			answer: func(w http.ResponseWriter, r *http.Request) {
				from := query(r, "starting_after")
				if from > 0 && r.Header.Get("X-Snapshot") != "s1" {
					writeJSON(w, 400, `{}`)
					return
				}
				w.Header().Set("X-Snapshot-Id", "s1")
				writeJSON(w, 200, fmt.Sprintf(`{"data":%s,"has_more":%v}`, items(from, from+2), from < 2))
			},
			seen: []string{"/v1/things", "/v1/things?starting_after=2"},
			want: `{"data":[{"id":1},{"id":2},{"id":3},{"id":4}],"has_more":false}`,
		},
		"Link header": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters:
      - {name: limit, target: query_string, value: 2}
      - {name: link, target: response_field, header: Link, value: "{{CYCLR_PAGE_NEXT_URL}}"}
`,
			answer: func(w http.ResponseWriter, r *http.Request) {
				from := query(r, "since")
				w.Header().Add("Link", `</v1/things?since=0>; rel="prev first"; title="a, b; rel=next"`)
				if from < 2 {
					w.Header().Add("link", fmt.Sprintf(`<https://elsewhere.example/>; rel=self, <http://%s/v1/things?limit=2&since=%d,x>; REL="last next"`, r.Host, from+2))
				}
				writeJSON(w, 200, items(from, from+2))
			},
			seen: []string{"/v1/things?limit=2", "/v1/things?limit=2&since=2,x"},
			want: `[{"id":1},{"id":2},{"id":3},{"id":4}]`,
		},
		"by script alone": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    script: |
      function before_action() { method_request_parameters.from = action_data.n || 0; }
      function after_action() { action_data.n = (action_data.n || 0) + method_response.length; }
      function after_action_paging() { method_response = {all: method_response, n: action_data.n}; }
`,
			answer: records(3, 2, func(_ *http.Request, from, to int) string { return items(from, to) }, func(r *http.Request) int { return query(r, "from") }),
			seen:   []string{"/v1/things?from=0", "/v1/things?from=2", "/v1/things?from=3"},
			want:   `{"all":[{"id":1},{"id":2},{"id":3}],"n":3}`,
		},
		"a filter in after_action does not end it": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true, page_size: 2}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    script: |
      function after_action() { method_response = method_response.filter(function (r) { return r.id > 2; }); }
`,
			answer: records(5, 2, func(_ *http.Request, from, to int) string { return items(from, to) }, func(r *http.Request) int { return (query(r, "page") - 1) * 2 }),
			seen:   []string{"/v1/things?page=1", "/v1/things?page=2", "/v1/things?page=3"},
			want:   `[{"id":3},{"id":4},{"id":5}]`,
		},
		"nothing turns the page": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
`,
			answer: answering(200, items(0, 2)),
			seen:   []string{"/v1/things"},
			want:   items(0, 2),
		},
		"max_pages": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true, max_pages: 2}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`,
			answer: records(9, 1, func(_ *http.Request, from, to int) string { return items(from, to) }, func(r *http.Request) int { return query(r, "page") - 1 }),
			seen:   []string{"/v1/things?page=1", "/v1/things?page=2"},
			want:   `[{"id":1},{"id":2}]`,
		},
		"one thing with a list, by the connector's paging": {
			file: pagedHead + `paging: {inbound: true}
parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
methods:
  - method: get
    endpoint: /things/1
`,
			answer: answering(200, `{"id":1,"tags":["a","b"]}`),
			seen:   []string{"/v1/things/1?page=1", "/v1/things/1?page=2"},
			want:   `{"id":1,"tags":["a","b"]}`,
		},
		"one thing with a list, and fields that say so": {
			file: pagedHead + `paging: {inbound: true}
parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
methods:
  - method: get
    endpoint: /things/1
    response: {fields: [{field: id, system: Id}]}
`,
			answer: answering(200, `{"id":1,"tags":["a","b"]}`),
			seen:   []string{"/v1/things/1?page=1"},
			want:   `{"id":1,"tags":["a","b"]}`,
			fields: `{"Id":1}`,
		},
		"an error beyond the end that after_error takes as the end": {
			file: pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    script: |
      function after_error() { if (method_error.statusCode == 404) { method_error.isSuccess = true; method_error.content = '[]'; } }
`,
			answer: func(w http.ResponseWriter, r *http.Request) {
				if query(r, "page") > 2 {
					writeJSON(w, 404, `{"error":"no such page"}`)
					return
				}
				writeJSON(w, 200, items(query(r, "page")-1, query(r, "page")))
			},
			seen: []string{"/v1/things?page=1", "/v1/things?page=2", "/v1/things?page=3"},
			want: `[{"id":1},{"id":2}]`,
		},
		"outbound": {
			file: pagedHead + `methods:
  - method: put_all
    verb: POST
    endpoint: /batch
    idempotency_header: Idempotency-Key
    paging: {outbound: true, outbound_page_size: 2, outbound_location: "data.[rows]"}
    body: {kind: x, data: {rows: [1, 2, 3, 4, 5]}}
    script: |
      function after_action_paging() { method_response.seen = true; }
`,
			answer: func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				writeJSON(w, 200, fmt.Sprintf(`{"sent":[{"key":%q,"body":%s}]}`, r.Header.Get("Idempotency-Key"), raw))
			},
			seen: []string{"/v1/batch", "/v1/batch", "/v1/batch"},
			want: `{"sent":[{"key":"e1","body":{"kind":"x","data":{"rows":[1,2]}}},{"key":"e1~2","body":{"kind":"x","data":{"rows":[3,4]}}},` +
				`{"key":"e1~3","body":{"kind":"x","data":{"rows":[5]}}}],"seen":true}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, c.file, c.answer)
			method := a.Def.MethodNames[0]
			got := a.must(method, func(call *connectors.Call) {
				if strings.Contains(c.file, "name: q,") {
					call.Parameters = map[string]json.RawMessage{"q": json.RawMessage(`"x"`)}
				}
			})
			var seen []string
			for _, r := range a.seen {
				seen = append(seen, r.URI)
			}
			if diff := cmp.Diff(c.seen, seen); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			if string(got.Content) != c.want || string(got.Fields) != c.fields || got.Pages != len(c.seen) {
				t.Errorf("got %s, fields %s, pages %d; want %s, fields %s", got.Content, got.Fields, got.Pages, c.want, c.fields)
			}
		})
	}
}

// TestPaging_astray are answers that lead nowhere good.
func TestPaging_astray(t *testing.T) {
	const file = pagedHead + `methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters: [{name: next, target: response_field, value: "{{CYCLR_PAGE_NEXT_URL}}"}]
`
	for name, c := range map[string]struct{ next, kind, text string }{
		"another host":         {`https://evil.example/things`, "input", `the URL leads to host "evil.example", which is neither the connector's nor in auth.hosts`},
		"the page itself":      {`/v1/things`, "http", "after page 1 the API names that page as the next once more"},
		"no URL":               {`http://[::1`, "http", "what should be the next page's URL is none"},
		"another scheme":       {`file:///etc/passwd`, "http", "what should be the next page's URL is none"},
		"a name in its host":   {`http://u:p@HOST/x`, "http", "what should be the next page's URL is none"},
		"a secret by its name": {`/v1/{{client_secret}}`, "http", "the API answered 404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.RequestURI, "client_secret") {
					writeJSON(w, 404, `{}`)
					return
				}
				raw, _ := json.Marshal(map[string]any{"next": strings.ReplaceAll(c.next, "HOST", r.Host)})
				writeJSON(w, 200, string(raw))
			})
			_, err := a.call("list")
			var ce *connectors.CallError
			if !errors.As(err, &ce) || ce.Kind != c.kind || ce.Message != c.text {
				t.Errorf("got %v, want %s: %s", describe(err), c.kind, c.text)
			}
		})
	}
}

// TestPaging_anAPIThatTurnsNoPage answers the same whatever it is asked for:
// nothing of what is missing is left out in silence.
func TestPaging_anAPIThatTurnsNoPage(t *testing.T) {
	for name, body := range map[string]string{"a list": items(0, 2), "a list within": `{"records":` + items(0, 2) + `}`} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, pagedHead+`methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`, answering(200, body))
			_, err := a.call("list")
			var ce *connectors.CallError
			if !errors.As(err, &ce) || ce.Kind != "http" || ce.Message != "page 2 is the same as page 1: the API does not look at what should turn the page" {
				t.Error(describe(err))
			}
		})
	}
}

// kept is connectors.Pages in memory.
type kept struct {
	mark  json.RawMessage
	pages []json.RawMessage
	data  json.RawMessage
	asked int // for all
}

func (k *kept) Load(context.Context) (json.RawMessage, error) { return k.mark, nil }

func (k *kept) All(context.Context, int, int64) ([]json.RawMessage, error) {
	k.asked++
	return k.pages, nil
}

func (k *kept) Keep(_ context.Context, mark json.RawMessage, n int, page, data json.RawMessage) error {
	k.mark, k.pages, k.data = mark, append(k.pages[:n-1:n-1], page), data
	return nil
}

func (k *kept) Leaving() bool { return false }

// TestPaging_goesOnWhereItEnded has every third request refused, by each way in
// which a call can end in its middle; every page is answered once.
func TestPaging_goesOnWhereItEnded(t *testing.T) {
	const file = pagedHead + `post_install: {property_lookup_method: login}
methods:
  - {method: login, endpoint: /login}
  - method: list
    endpoint: /things
    paging: {inbound: true, page_size: 1}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    script: |
      function before_action() { action_data.begun = (action_data.begun || 0) + 1; }
      function after_error() { if (method_error.statusCode == 401) { throw new AuthSessionException(); } }
      function after_action() { action_data.sum = (action_data.sum || 0) + (method_response.length ? method_response[0].id : 0); }
      function after_action_paging() { method_response = {n: method_response.length, sum: action_data.sum}; }
`
	for name, status := range map[string]int{"auth exception": 401, "rate": 429, "server error": 500} {
		t.Run(name, func(t *testing.T) {
			asked, answered := 0, []string{}
			a := newAPI(t, file, func(w http.ResponseWriter, r *http.Request) {
				if asked++; asked%3 == 0 {
					writeJSON(w, status, `{}`)
					return
				}
				n := query(r, "page")
				answered = append(answered, strconv.Itoa(n))
				writeJSON(w, 200, items(n-1, min(n, 5)))
			})
			k := &kept{}
			attempts, last := 0, ""
			for {
				if attempts++; attempts > 20 {
					t.Fatal("it does not end: " + last)
				}
				got, err := a.call("list", func(c *connectors.Call) { c.Pages, c.ActionData = k, k.data })
				if err == nil {
					if string(got.Content) != `{"n":5,"sum":15}` || got.Pages != 6 {
						t.Errorf("got %s in %d pages", got.Content, got.Pages)
					}
					break
				}
				last = describe(err)
			}
			if diff := cmp.Diff([]string{"1", "2", "3", "4", "5", "6"}, answered); diff != "" {
				t.Errorf("answered pages (-want +got):\n%s", diff)
			}
			if attempts < 3 {
				t.Errorf("only %d attempts", attempts)
			}
		})
	}
}

// TestPaging_pagesOfSizeAreNotInHand: pages that are kept elsewhere stay in
// memory only while they are small; how they are put together is the same.
func TestPaging_pagesOfSizeAreNotInHand(t *testing.T) {
	for name, c := range map[string]struct{ text, asked int }{"small": {10, 0}, "large": {400_000, 1}} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, pagedHead+`methods:
  - method: list
    endpoint: /things
    paging: {inbound: true, page_size: 1}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`, func(w http.ResponseWriter, r *http.Request) {
				n := query(r, "page")
				more := ""
				if n <= 5 {
					more = fmt.Sprintf(`{"id":%d,"text":%q}`, n, strings.Repeat("x", c.text))
				}
				writeJSON(w, 200, fmt.Sprintf(`{"before":%d,"things":[%s],"after":%d}`, n, more, n))
			})
			k := &kept{}
			got, err := a.call("list", func(call *connectors.Call) { call.Pages = k })
			if err != nil {
				t.Fatal(describe(err))
			}
			var answer struct {
				Before, After int
				Things        []struct {
					ID   int
					Text string
				}
			}
			if err := json.Unmarshal(got.Content, &answer); err != nil {
				t.Fatal(err)
			}
			ids := []int{}
			for _, thing := range answer.Things {
				ids = append(ids, thing.ID)
			}
			if !slices.Equal(ids, []int{1, 2, 3, 4, 5}) || answer.Before != 6 || answer.After != 6 || len(answer.Things[4].Text) != c.text {
				t.Errorf("got things %v between %d and %d", ids, answer.Before, answer.After)
			}
			if k.asked != c.asked {
				t.Errorf("what was kept was asked for %d times, want %d", k.asked, c.asked)
			}
		})
	}
}

// TestPaging_onePagePutOff: what a script puts off after the only answer is in
// asks for that answer no second time, whatever it is.
func TestPaging_onePagePutOff(t *testing.T) {
	const script = `    script: |
      function before_action() { action_data.begun = (action_data.begun || 0) + 1; }
      function after_action() { action_data.seen = true; }
      function EVENT() {
        action_data.looks = (action_data.looks || 0) + 1;
        if (action_data.looks < 3) { throw new RetryLaterException(2, 'not yet'); }
        if (!action_data.seen || action_data.begun !== 1 || statusCode !== STATUS || method_response_headers['x-mark'] !== 'm') { throw 'it was called again'; }
        DO
      }
`
	const paged = "    paging: {inbound: true, page_size: 10}\n    parameters: [{name: page, target: query_string, value: CYCLR_PAGE_NUMBER}]\n"
	for name, c := range map[string]struct {
		method, event, do string
		status            int
		contentType, body string
		want, fields      string
	}{
		"a short page":         {method: paged, event: "after_action_paging", do: "method_response.push({id: 9})", contentType: "application/json", body: `[{"id":1}]`, want: `[{"id":1},{"id":9}]`},
		"action_condition":     {method: paged, event: "action_condition", do: "return true", contentType: "application/json", body: `[{"id":1}]`, want: `[{"id":1}]`},
		"without paging":       {event: "after_action_paging", do: "method_response.n = 2", contentType: "application/json", body: `{"id":1}`, want: `{"id":1,"n":2}`},
		"binary":               {event: "after_action_paging", contentType: "image/png", body: "\x89PNG\xff", want: `"iVBOR/8=" base64`},
		"binary, paged":        {method: paged, event: "after_action_paging", contentType: "image/png", body: "\x89PNG\xff", want: `"iVBOR/8=" base64`},
		"empty":                {event: "after_action_paging", status: 204, do: "if (method_response !== '') { throw 'not empty'; }", want: ``},
		"empty, paged":         {method: paged, event: "after_action_paging", status: 204, do: "if (method_response !== '') { throw 'not empty'; }", want: ``},
		"XML, a list of one":   {method: "    response: {fields: [{field: \"r.[i].n\", system: N}]}\n", event: "after_action_paging", contentType: "application/xml", body: `<r><i><n>1</n></i></r>`, want: `{"r":{"i":{"n":"1"}}}`, fields: `{"N":["1"]}`},
		"JSON that is no JSON": {event: "after_action_paging", do: "if (typeof method_response !== 'string') { throw 'parsed'; }", contentType: "text/plain", body: `{"id":1}`, want: `{"id":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			if c.status == 0 {
				c.status = 200
			}
			asked := 0
			file := pagedHead + "methods:\n  - method: list\n    endpoint: /things\n" + c.method +
				strings.NewReplacer("EVENT", c.event, "STATUS", strconv.Itoa(c.status), "DO", c.do).Replace(script)
			a := newAPI(t, file, func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("X-Mark", "m")
				w.Header().Set("Content-Type", c.contentType)
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			})
			k := &kept{}
			var data json.RawMessage
			for range 2 {
				_, err := a.call("list", func(call *connectors.Call) { call.Pages, call.ActionData = k, data })
				var ce *connectors.CallError
				if !errors.As(err, &ce) || !ce.Defer || ce.RetryAfter != 2*time.Second || ce.Message != "not yet" {
					t.Fatal(describe(err))
				}
				data = ce.ActionData
			}
			got, err := a.call("list", func(call *connectors.Call) { call.Pages, call.ActionData = k, data })
			if err != nil {
				t.Fatal(describe(err))
			}
			if text := strings.TrimSpace(string(got.Content) + " " + got.ContentEncoding); text != c.want || got.StatusCode != c.status || got.Pages != 1 {
				t.Errorf("got %s, status code %d, %d pages", text, got.StatusCode, got.Pages)
			}
			if string(got.Fields) != c.fields {
				t.Errorf("fields are %s, want %s", got.Fields, c.fields)
			}
			if asked != 1 || len(k.pages) != 1 {
				t.Errorf("asked %d times, %d pages are kept", asked, len(k.pages))
			}
		})
	}
}

// A list that is not where outbound_location says is not sent whole.
func TestPaging_outboundListElsewhere(t *testing.T) {
	a := newAPI(t, pagedHead+`methods:
  - method: put_all
    verb: POST
    endpoint: /batch
    paging: {outbound: true, outbound_page_size: 2, outbound_location: "data.[rows]"}
`, func(w http.ResponseWriter, r *http.Request) { writeJSON(w, 200, `{}`) })
	for body, sent := range map[string]int{`[1,2,3]`: 0, `{"rows":[1,2,3]}`: 0, `{"rows":[1,2]}`: 1, `{"kind":"x"}`: 1, `{"data":{"rows":[1,2,3]},"tags":[1,2,3]}`: 2} {
		_, err := a.call("put_all", func(call *connectors.Call) { call.Body = json.RawMessage(body) })
		if n := len(a.requests()); n != sent {
			t.Errorf("%s: %d requests, want %d", body, n, sent)
		}
		var ce *connectors.CallError
		if sent == 0 && (!errors.As(err, &ce) || ce.Kind != "input" || !strings.Contains(ce.Message, `no list at paging.outbound_location, "data.[rows]"; that of 3 items`)) {
			t.Errorf("%s: %s", body, describe(err))
		} else if sent > 0 && err != nil {
			t.Errorf("%s: %s", body, describe(err))
		}
	}
}

// TestPaging_yields: an attempt whose time is nearly over leaves the rest to
// the next.
func TestPaging_yields(t *testing.T) {
	a := newAPI(t, pagedHead+`methods:
  - method: list
    endpoint: /things
    paging: {inbound: true}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`, func(w http.ResponseWriter, r *http.Request) { writeJSON(w, 200, items(0, max(0, 3-query(r, "page")))) })
	k := &kept{}
	m, _ := a.Def.Method("list")
	texts := []string{}
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // less than a call may take
		got, err := a.Caller.Call(ctx, &connectors.Call{Definition: a.Def, Method: m, Credential: a.Cred, Pages: k})
		cancel()
		if err == nil {
			if string(got.Content) != `[{"id":1},{"id":2},{"id":1}]` {
				t.Errorf("got %s", got.Content)
			}
			break
		}
		var ce *connectors.CallError
		if !errors.As(err, &ce) || !ce.Defer {
			t.Fatal(describe(err))
		}
		texts = append(texts, ce.Message)
	}
	want := []string{"the time of this attempt is nearly over; the next goes on with page 2", "the time of this attempt is nearly over; the next goes on with page 3"}
	if !slices.Equal(texts, want) {
		t.Errorf("got %q", texts)
	}
}
