package definition_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"
)

func TestCheck_authentications(t *testing.T) {
	methods := "\nmethods: [{method: m, endpoint: /x}, {method: text, verb: POST, endpoint: /x, data_type: plain_text}]\n"
	for name, c := range map[string]struct{ file, want string }{
		"beside auth":        {"auth: {type: none}\nauthentications: [{name: a, auth: {type: none}}]", "auth and authentications exclude each other"},
		"two defaults":       {"authentications: [{name: a, default: true, auth: {type: none}}, {name: b, default: true, auth: {type: none}}]", `authentication "b" is a default too: "a" is it already`},
		"one name twice":     {"authentications: [{name: a, auth: {type: none}}, {name: a, auth: {type: none}}]", `authentication "a" is declared twice`},
		"without a name":     {"authentications: [{auth: {type: none}}]", "an authentication needs a name"},
		"without auth":       {"authentications: [{name: a}]", `authentication "a": key "auth" is missing`},
		"none":               {"authentications: []", "authentications: there is none"},
		"a URL of the other": {"authentications: [{name: a, auth: {type: none}}, {name: b, auth: {type: oauth2, token_url: /token}}]", "auth.token_url: an absolute http or https URL is needed"},
		"a field of the other, for text": {"authentications: [{name: a, auth: {type: none}}, {name: b, auth: {type: auth_fields, fields: [{name: k}]}}]",
			`method "text": auth type auth_fields, of authentication "b", puts fields into bodies, and one of data_type plain_text has no place for them: a call with such a credential fails; ignore_auth: true sends it without (hint)`},
		"a key of the other, for text": {"authentications: [{name: a, auth: {type: none}}, {name: b, auth: {type: api_key, in: body, name: k}}]",
			`method "text": auth type api_key, of authentication "b", puts a key into bodies, and one of data_type plain_text has no place for it: a call with such a credential fails; ignore_auth: true sends it without (hint)`},
		"fields for text":       {"auth: {type: auth_fields, fields: [{name: k}]}", `method "text": auth type auth_fields puts fields into bodies, and one of data_type plain_text has no place for them: a call fails; ignore_auth: true sends it without (hint)`},
		"a key for text":        {"auth: {type: api_key, in: body, name: k}", `method "text": auth type api_key puts a key into bodies, and one of data_type plain_text has no place for it: a call fails; ignore_auth: true sends it without (hint)`},
		"a field within one":    {"auth: {type: auth_fields, fields: [{name: k, key: a}, {name: l, key: a.b}]}", `auth fields "k" and "l" cannot both stand in a body: "a.b" is within "a"`},
		"a field within, first": {"auth: {type: auth_fields, fields: [{name: k, key: a.b.c}, {name: l, key: a.b}]}", `auth fields "k" and "l" cannot both stand in a body: "a.b.c" is within "a.b"`},
		"a field in a list":     {"auth: {type: auth_fields, fields: [{name: k, key: \"[a].b\"}]}", `auth field "k": key "[a].b" leads through a list`},
		"a field twice":         {"auth: {type: auth_fields, fields: [{name: k}, {name: k}]}", `auth field "k" is declared twice`},
		"a file among fields":   {"auth: {type: auth_fields, fields: [{name: k, type: file}]}", `"file" is none of text, integer`},
		"fields of another":     {"auth: {type: basic, fields: [{name: k}]}", "fields has no meaning for auth type basic"},
		"a field, almost named": {"headers: {X: \"{{tennant}}\"}\nauth: {type: auth_fields, fields: [{name: tenant}]}", `unknown merge field {{tennant}}; did you mean "tenant"?`},
	} {
		t.Run(name, func(t *testing.T) {
			found := definitiontest.Check(t, "connector: acme\nbase_url: https://acme.example\n"+c.file+methods)
			if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, c.want) }) {
				t.Errorf("got %q\nwant %s", found, c.want)
			}
		})
	}
}
