package connectors

import "testing"

func TestPathTemplate(t *testing.T) {
	for name, c := range map[string]struct{ base, endpoint, want string }{
		"below base_url":         {"https://{{domain}}.acme.example/api/v2", "/contacts/{{id}}", "/api/v2/contacts/{{id}}"},
		"without a slash":        {"https://acme.example/api/", "contacts", "/api/contacts"},
		"none":                   {"https://acme.example/soap", "", "/soap"},
		"at the root":            {"https://acme.example", "/", "/"},
		"a query":                {"https://acme.example", "/contacts?key=hunter22&q={{q}}", "/contacts"},
		"a query alone":          {"https://acme.example/odata", "?key=hunter22", "/odata"},
		"a query of base_url":    {"https://acme.example/api?key=hunter22", "/contacts", "/api/contacts"},
		"a fragment":             {"https://acme.example", "/contacts#hunter22", "/contacts"},
		"absolute":               {"https://acme.example", "https://user:hunter22@files.example/{{id}}?x=y", "/{{id}}"},
		"a field that is a base": {"{{base}}", "/contacts", "{{base}}/contacts"},
		"a token endpoint":       {"", "{{base}}/oauth/token?key=hunter22", "{{base}}/oauth/token"},
		"one with a host":        {"", "https://acme.example/oauth/token", "/oauth/token"},
		"inline script":          {"https://acme.example", "='/x?' + '{{key}}'", ""},
		"a question in a field":  {"https://acme.example", "/{{a?b}}/c?d", "/{{a?b}}/c"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := pathTemplate(c.base, c.endpoint); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
