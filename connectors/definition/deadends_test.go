package definition

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// deadEndsIn are the dead ends in a file, whatever else is to find there.
func deadEndsIn(t *testing.T, file string) (all []string) {
	t.Helper()
	p := newFileParser("acme.yaml", ".")
	root := p.parse([]byte(file))
	if root == nil {
		t.Fatal("no mapping")
	}
	p.findings = nil
	p.deadEnds(root)
	sortFindings(p.findings)
	for _, f := range p.findings {
		text := fmt.Sprintf("%d:%d: %s", f.Line, f.Column, f.Text)
		if !f.Hint {
			text += " (error)"
		}
		all = append(all, text)
	}
	return all
}

func TestDeadEnds(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\n"
	const method = "methods: [{method: m, endpoint: /a}]\n"
	const login = "post_install: {property_lookup_method: login}\nparameters: [{name: sid, target: http_header, property: session}]\nauth: {type: none, refresh_on: [401]}\n"
	const logged = "methods: [{method: login, verb: POST, endpoint: /login, response: {fields: [{field: id, system: SID}]}}]\n"
	cases := map[string]struct {
		file string
		want []string
	}{
		"a host of steps": {"connector: a\nbase_url: https://{{domain}}.acme.example\nparameters: [{name: domain, target: merge_field}]\n" + method,
			[]string{"2:11: base_url: {{domain}} is a parameter that steps supply, and a step cannot choose the host: give it a value, or property: account or partner"}},
		"a host of steps, method by method": {"connector: a\nbase_url: https://{{d}}.acme.example\nmethods: [{method: m, endpoint: /a, parameters: [{name: d, target: merge_field}]}]\n",
			[]string{"2:11: base_url: {{d}} is a parameter that steps supply, and a step cannot choose the host: give it a value, or property: account or partner"}},
		"a host of one method": {"connector: a\nbase_url: https://{{d}}.acme.example\nmethods: [{method: m, endpoint: /a, parameters: [{name: d, target: merge_field, value: x}]}, {method: n, endpoint: /a, parameters: [{name: d, target: merge_field}]}]\n", nil},
		"a host of steps in an endpoint": {head + "methods: [{method: m, endpoint: 'https://{{d}}.acme.example/', parameters: [{name: d, target: merge_field}]}]\n",
			[]string{"3:33: endpoint: {{d}} is a parameter that steps supply, and a step cannot choose the host: give it a value, or property: account or partner"}},
		"a path of steps": {"connector: a\nbase_url: https://acme.example/{{v}}\nparameters: [{name: v, target: merge_field}]\n" + method, nil},
		"a token_url of methods": {head + "auth: {type: oauth2, token_url: 'https://{{d}}.acme.example/token'}\nmethods: [{method: m, endpoint: '/{{d}}', parameters: [{name: d, target: merge_field, property: account}]}]\n",
			[]string{"3:33: auth.token_url: {{d}} is a parameter of methods, which a token request has none of: declare it at connector level"}},
		"a token_url of steps": {head + "auth: {type: oauth2, token_url: 'https://acme.example/{{d}}'}\nparameters: [{name: d, target: merge_field}]\n" + method,
			[]string{`3:33: auth.token_url: parameter "d" has neither a value nor a property, and no step is there to supply it: give it property: account or partner`}},
		"a token_url of inline script": {head + "auth: {type: oauth2, token_url: 'https://acme.example/{{d}}'}\nparameters: [{name: d, target: merge_field, value: =1 + 1}]\n" + method,
			[]string{`3:33: auth.token_url: parameter "d" is inline script, which has no value here (error)`}},
		"a circle": {head + "parameters:\n  - {name: a, target: query_string, value: '{{b}}'}\n  - {name: b, target: query_string, value: 'x{{a}}'}\n" + method,
			[]string{`4:44: parameter "a" is built from itself, so it never has a value (error)`, `5:44: parameter "b" is built from itself, so it never has a value (error)`}},
		"a merge field that nothing uses": {head + "parameters: [{name: old, target: merge_field, optional: true}]\n" + method,
			[]string{`3:14: nothing uses parameter "old": no template has {{old}}, and no script names it`}},
		"parameters of one header": {head + "parameters: [{name: a, target: http_header, as: X-A}, {name: b, target: http_header, as: x-a}]\nmethods: [{method: m, endpoint: /a, parameters: [{name: c, target: http_header, as: X-A}]}]\n",
			[]string{`4:50: parameters "b" and "c" both become the header "X-A": the later one wins`}},
		"a query parameter of the endpoint": {head + "methods: [{method: m, endpoint: '/a?x={{x}}', parameters: [{name: x, target: query_string}]}]\n",
			[]string{`3:60: the endpoint of method "m" has query parameter "x" already, so it is sent twice`}},
		"values of another type": {head + "parameters: [{name: n, target: query_string, type: integer, value: many}]\nmethods: [{method: m, verb: POST, endpoint: /a, parameters: [{name: b, target: query_string, type: boolean, default: maybe}, {name: c, target: query_string, type: integer, value: '{{n}}'}, {name: d, target: query_string, type: integer, value: =1}, {name: e, target: query_string, type: integer, value: '5'}], request: {fields: [{field: f, type: decimal, default: x}]}}]\n",
			[]string{
				"3:68: what stands here is not of type integer, so a call that uses it fails",
				"4:118: what stands here is not of type boolean, so a call that uses it fails",
				"4:364: what stands here is not of type decimal, so a call that uses it fails",
			}},
		"parameters to be left out": {head + "parameters: [{name: page, target: query_string, value: '1'}, {name: x, target: query_string, value: CYCLR_IGNORE_PARAMETER}]\nmethods: [{method: m, endpoint: /a, parameters: [{name: pages, target: query_string, value: CYCLR_IGNORE_PARAMETER}]}, {method: n, endpoint: /a, parameters: [{name: page, value: CYCLR_IGNORE_PARAMETER}]}]\n",
			[]string{
				"3:101: CYCLR_IGNORE_PARAMETER leaves a connector's parameter out of one method, and this is the connector's own",
				`4:93: the connector has no parameter "pages" that could be left out; did you mean "page"?`,
			}},
		"headers of two lines": {head + "headers:\n  X-A: |\n    a\nmethods: [{method: m, endpoint: /a, headers: {X-B: \"b\\r\\n\"}}]\n",
			[]string{"4:8: a line break cannot stand in a header, so each call fails", "6:52: a line break cannot stand in a header, so each call fails"}},
		"bodies of no form": {head + "methods:\n  - {method: m, verb: POST, endpoint: /a, data_type: form, body: [1]}\n  - {method: n, verb: POST, endpoint: /a, data_type: xml, body: {a: 1, b: 2}}\n  - {method: o, verb: POST, endpoint: /a, data_type: plain_text, body: {a: 1}}\n  - {method: p, verb: POST, endpoint: /a, data_type: file, body: '{{q}}', parameters: [{name: q, target: merge_field}]}\n  - {method: r, verb: POST, endpoint: /a, data_type: xml, xml_root: R, body: {a: 1, b: 2}}\n",
			[]string{
				"4:66: a body of data_type form is an object, whose members are its parts",
				"5:65: a document has one root element, and this body has 2 members: say xml_root",
				"6:72: a body of data_type plain_text is text",
			}},
		"locations": {head + "methods:\n  - method: m\n    endpoint: /a\n    response:\n      fields:\n        - {field: '[list]x'}\n        - {field: '[list.x'}\n        - {field: 'a. b'}\n        - {field: '\\[list]x\\.a'}\n        - {header: X A, system: h}\n        - {cookie: 'a b', system: c}\n",
			[]string{
				`8:19: field "[list]x": a dot is missing after the list: it is written [list].x`,
				`9:19: field "[list.x": a bracket has no partner; a list is written [list].x, and a name with a bracket in it stands in backslashes`,
				`10:19: field "a. b": a blank beside a name is part of it; leave it out, or put backslashes around the name`,
				`12:20: no answer has a header "X A": it is no such name`, `13:20: no answer has a cookie "a b": it is no such name`,
			}},
		"locations that contradict each other": {head + "methods:\n  - method: m\n    endpoint: /a\n    response:\n      fields:\n        - {field: 'records.id', system: A}\n        - {field: '[records].id', system: B}\n        - {field: total, system: C, type: integer}\n        - {field: 'total.[x].y', system: D}\n        - {field: '[].id', system: E}\n        - {field: name, system: A}\n        - {field: list, system: F}\n        - {field: 'list.[].a', system: G}\n        - {field: '[list].b', system: H}\n",
			[]string{
				`9:19: field "[records].id": what it takes for a list is one object, by field "records.id" at line 8: only one of them can match`,
				`11:19: field "total.[x].y": of integer is what has this below it, by field "total" at line 10: only one of them can match`,
				`12:19: field "[].id": the answer is no list, by field "records.id" at line 8: only one of them can match`,
				`13:33: two response fields are called "A": the later one wins`,
			}},
		"a member of a file": {head + "methods: [{method: m, endpoint: /a, response: {data_type: simple_file, fields: [{field: id}]}}]\n",
			[]string{`3:89: field "id": an answer of response.data_type simple_file is a file, which has no members`}},
		"a login that fills nothing": {head + login + "methods: [{method: login, endpoint: /login}]\n",
			[]string{`3:40: login method "login" fills none of the session properties ("sid"): a response field of that system name fills one, or session_properties.NAME in a hook`}},
		"a login that is done in a hook":          {head + login + "methods: [{method: login, endpoint: /login, script: 'function after_action() { session_properties[\"s\" + \"id\"] = 1; }'}]\n", nil},
		"a login whose words are in other letter": {head + login + logged, nil},
		"a login without session properties": {head + "post_install: {property_lookup_method: login}\nmethods: [{method: login, endpoint: /login}]\n",
			[]string{`3:40: login method "login" fills nothing: no parameter has property: session`}},
		"a login that fills one of two": {head + "parameters: [{name: a, target: http_header, property: session}, {name: b, target: http_header, property: session}]\npost_install: {property_lookup_method: login}\nauth: {type: none, refresh_on: [401]}\nmethods: [{method: login, endpoint: /login, response: {fields: [{field: a}]}}]\n",
			[]string{`4:40: login method "login" does not fill session property "b", and without it each login fails: a response field of that system name fills one, or session_properties.NAME in a hook`}},
		"a login that is its own test": {head + "post_install: {property_lookup_method: login, test_auth_method: login}\nparameters: [{name: sid, target: http_header, property: session}]\nauth: {type: none, refresh_on: [401]}\n" + logged,
			[]string{"3:65: post_install.test_auth_method is the login method, which goes out without the session: it proves nothing about it"}},
		"a login that needs a step": {head + login + "methods: [{method: login, endpoint: '/{{site}}', parameters: [{name: site, target: merge_field}], response: {fields: [{field: sid}]}}]\n",
			[]string{`6:63: method "login" needs parameter "site", and as post_install.property_lookup_method no step is there to supply it: give it a value or a property, or make it optional`}},
		"a login that uses its session": {head + login + "methods: [{method: login, endpoint: '/{{sid}}', body: {old: '{{sid}}'}, response: {fields: [{field: sid}]}}]\n",
			[]string{`6:37: login method "login" goes out without the old session, so {{sid}} has no value here, and the URL needs it (error)`, `6:61: login method "login" goes out without the old session, so {{sid}} has no value here`}},
		"a login at the host that it finds": {"connector: a\nbase_url: '{{sid}}'\n" + login + "methods: [{method: login, endpoint: /login, response: {fields: [{field: sid}]}}]\n",
			[]string{`2:11: base_url needs {{sid}}, which login method "login" is to find out, and the login itself goes there: give it an absolute endpoint (error)`}},
		"a session that is never lost": {head + "post_install: {property_lookup_method: login}\nparameters: [{name: sid, target: http_header, property: session}]\n" + logged,
			[]string{"3:40: nothing says that a session is lost, so none is ever renewed: no auth.refresh_on, no AuthSessionException in a hook, no session_expires"}},
		"statuses without a refresh": {head + "auth: {type: basic, refresh_on: [401]}\n" + method,
			[]string{"3:33: auth.refresh_on: nothing can be renewed here, with neither auth type oauth2 nor a login method; name a test_auth_method (post_install), which then tells a dead credential"}},
		"a login exception of oauth2": {head + "auth: {type: oauth2, token_url: 'https://acme.example/t'}\nscript: function after_error() { throw new AuthSessionException() }\n" + method,
			[]string{"4:44: AuthSessionException asks for a login, and there is no login method (post_install.property_lookup_method): a new token is asked for by AuthRefreshException"}},
		"a token exception of a session": {head + login + "script: function after_error() { throw new AuthRefreshException() }\n" + logged,
			[]string{"6:44: AuthRefreshException asks for a new token, and auth type is not oauth2: a login is asked for by AuthSessionException"}},
		"an exception of nothing": {head + "script: function after_error() { throw new AuthRefreshException() }\n" + method,
			[]string{"3:44: AuthRefreshException finds nothing that could be renewed, with neither auth type oauth2 nor a login method: name a test_auth_method (post_install), which then tells a dead credential"}},
		"pages that are all the same": {head + "paging: {inbound: true}\n" + method,
			[]string{`3:19: every page of method "m" would be the same request: no parameter has {{CYCLR_PAGE_NUMBER}}, {{CYCLR_PAGE_OFFSET}}, a token or the next URL, and no script pages`}},
		"pages by number, bare": {head + "paging: {inbound: true}\nparameters: [{name: page, target: query_string, type: integer, value: CYCLR_PAGE_NUMBER}]\n" + method, nil},
		"pages by number":       {head + "paging: {inbound: true}\nparameters: [{name: page, target: query_string, value: '{{CYCLR_PAGE_NUMBER}}'}]\n" + method, nil},
		"a page of a method without pages": {head + "methods: [{method: m, endpoint: /a, parameters: [{name: page, target: query_string, value: '{{CYCLR_PAGE_NUMBER}}'}]}]\n",
			[]string{`3:92: method "m" is not paged, so {{CYCLR_PAGE_NUMBER}} means nothing here: paging: {inbound: true} is missing`}},
		"a token that is not sent": {head + "paging: {inbound: true}\nparameters: [{name: next, target: response_field, value: CYCLR_PAGE_TOKEN}]\n" + method,
			[]string{`4:58: method "m" sends CYCLR_PAGE_TOKEN nowhere, so each page would be the first: a parameter with value: "{{CYCLR_PAGE_TOKEN}}" sends it`}},
		"a token that is not read": {head + "paging: {inbound: true}\nparameters: [{name: after, target: query_string, value: '{{CYCLR_PAGE_TOKEN_AFTER}}'}]\n" + method,
			[]string{`4:57: method "m" reads CYCLR_PAGE_TOKEN_AFTER nowhere: a parameter of target response_field says where in the answer it is`}},
		"tokens": {head + "paging: {inbound: true}\nparameters: [{name: next, target: response_field, value: '{{CYCLR_PAGE_TOKEN}}'}, {name: after, target: query_string, value: '{{CYCLR_PAGE_TOKEN}}'}]\n" + method, nil},
		"outbound pages of nothing": {head + "paging: {outbound: true}\n" + method,
			[]string{`3:20: outbound paging of method "m" needs outbound_location: where in the body is the list that is cut?`}},
		"request fields of text": {head + "methods: [{method: m, verb: POST, endpoint: /a, data_type: plain_text, request: {fields: [{field: a, default: 1}, {field: b.c}]}}]\n",
			[]string{`3:91: field "a": a body of data_type plain_text is text, which has no members`, `3:115: field "b.c": a body of data_type plain_text is text, which has no members`}},
		"request fields of a webhook and of JSON": {head + "methods:\n  - {method: w, type: webhook, data_type: plain_text, request: {fields: [{field: a}]}}\n  - {method: m, verb: POST, endpoint: /a, request: {fields: [{field: a}]}}\n", nil},
		"a POST that only reads":                  {head + "methods: [{method: search, verb: POST, endpoint: /a, retry: always}]\n", nil},
		"a PATCH that may be made twice":          {head + "methods: [{method: m, verb: PATCH, endpoint: /a, retry: always, body: {name: x}}]\n", nil},
		"a long call": {head + "methods: [{method: m, endpoint: /a, timeout: 10m}]\n",
			[]string{"3:46: timeout: an attempt of a step has 5m0s unless the step says otherwise, so a call is cut off before"}},
		"members": {head + "parameters: [{name: region, target: script, value: eu}, {name: id, target: merge_field}]\nscript: |\n  function before_action() {\n    console.log(script_parameters.regoin, script_parameters.region, method_request_mergefields.hasOwnProperty('x'), method_request_mergefields.ids);\n    session_properties.tokn = 1;\n  }\nmethods: [{method: m, endpoint: '/{{id}}'}]\n",
			[]string{
				`6:35: script_parameters.regoin is never there: no parameter of target script has that name; did you mean "region"?`,
				`6:144: method_request_mergefields.ids is never there: no parameter of target merge_field has that name; did you mean "id"?`,
				`7:24: session_properties.tokn: no parameter with property: session has that name, so nothing uses it`,
			}},
		"members by other ways": {head + "script: |\n  function before_action() {\n    method_request_mergefields.a = 1;\n    return method_request_mergefields.a && script_parameters['x'] && script_parameters.y;\n  }\n" + method, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, deadEndsIn(t, c.file)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDeadEnds_noneInValidFiles(t *testing.T) {
	for _, file := range validFiles(t) {
		if raw, err := os.ReadFile(file); err != nil {
			t.Error(err)
		} else if found := deadEndsIn(t, string(raw)); found != nil {
			t.Errorf("%s: %q", file, found)
		}
		if found, err := Check([]string{file}); err != nil || found != nil {
			t.Errorf("%v, %v", found, err)
		}
	}
}

// A key that stands in the wrong place is told the right one.
func TestCheck_misplacedKeys(t *testing.T) {
	p := newFileParser("acme.yaml", ".")
	p.parse([]byte("connector: acme\nbase_url: https://acme.example\nendpoint: /a\ntoken_url: https://acme.example/token\nnonsense: 1\nmethods: [{method: m, endpoint: /a, requests: 1}]\n"))
	var got []string
	for _, f := range p.findings {
		got = append(got, f.Text)
	}
	want := []string{`unknown key "endpoint": it is a key of a method`, `unknown key "token_url": it is a key of auth`, `unknown key "nonsense"`, `unknown key "requests"; did you mean "request"?`}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
