package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"
)

// TestCheck_paging is what a connector's author is told of paging.
func TestCheck_paging(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
paging: {inbound: yes, page_size: many}
methods:
  - method: one
    endpoint: /a
    paging: {inbound: true, outbound: true, max_pages: 0, list: "[a].b", more: "a..b", end: never}
    parameters:
      - {name: next, target: response_field, value: "{{CYCLR_PAGE_TOKENS}}"}
      - {name: o, target: query_string, value: CYCLR_PAGE_OFSET}
      - {name: h, target: query_string, header: Link, value: 1}
      - {name: u, target: query_string, value: "{{CYCLR_PAGE_NEXT_URL}}"}
  - method: two
    verb: POST
    endpoint: /b
    paging: {outbound: true}
  - method: three
    endpoint: /c
    paging: {inbound: true}
    parameters: [{name: o, target: query_string, value: "{{CYCLR_PAGE_OFFSET}}"}, {name: n, target: query_string, value: "x-{{CYCLR_PAGE_SIZE}}"}]
`)
	want := []string{
		"3:19: true or false is needed here",
		`3:35: a whole number of 1 to 1000000 is needed, not "many"`,
		"7:29: paging: a method's pages are either inbound or outbound",
		`7:56: a whole number of 1 to 10000 is needed, not "0"`,
		`7:65: location "[a].b": a list is needed, such as data.[records], and no other before it`,
		`7:80: location "a..b": an empty name`,
		`7:93: "never" is none of short_page, empty_page`,
		`9:9: parameter "next": a response_field reads what leads to the next page, so its value is {{CYCLR_PAGE_NEXT_URL}} or {{CYCLR_PAGE_TOKEN}}`,
		`9:53: {{CYCLR_PAGE_TOKENS}} is no page variable here; did you mean "CYCLR_PAGE_TOKEN"?`,
		`10:9: "CYCLR_PAGE_OFSET" is no page variable; did you mean "CYCLR_PAGE_OFFSET"?`,
		`11:9: parameter "h": header has a meaning for target response_field alone`,
		`12:9: parameter "u": {{CYCLR_PAGE_NEXT_URL}} is the value of a response_field parameter alone: the next request goes there as it is`,
		`16:13: paging: key "outbound_page_size" is missing: how many items does a request take?`,
		"20:57: {{CYCLR_PAGE_OFFSET}} needs paging.page_size: how many items does a page have?",
		"20:122: {{CYCLR_PAGE_SIZE}} needs paging.page_size: how many items does a page have?",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}
