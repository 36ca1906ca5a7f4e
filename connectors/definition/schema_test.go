package definition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

// compiled is the schema, which must be one itself.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("connector.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("connector.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plainJSON is a YAML document as an editor's schema sees it.
func plainJSON(t *testing.T, raw []byte) any {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal(raw, &n); err != nil {
		t.Fatal(err)
	}
	v, err := yamlValue(n.Content[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jsontree.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// validFiles are the connector files of this repository in which there is
// nothing to find.
func validFiles(t *testing.T) (all []string) {
	t.Helper()
	for _, pattern := range []string{"../../deploy/connectors/*.yaml", "../../cmd/worker/testdata/recordings/*.yaml", "testdata/valid/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: nothing found, %v", pattern, err)
		}
		all = append(all, found...)
	}
	return all
}

func TestSchema_validFiles(t *testing.T) {
	s := compiled(t)
	for _, file := range validFiles(t) {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(plainJSON(t, raw)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// What the schema refuses Check refuses too.
func TestSchema_mistakes(t *testing.T) {
	s := compiled(t)
	const head = "connector: acme\nbase_url: https://acme.example\n"
	const method = "methods: [{method: m, endpoint: /a}]\n"
	cases := map[string]string{
		"a misspelt key":                head + "tilte: Acme\n" + method,
		"a key of another mapping":      head + "endpoint: /a\n" + method,
		"no methods":                    head,
		"an empty list of methods":      head + "methods: []\n",
		"a name with capitals":          "connector: Acme\nbase_url: https://acme.example\n" + method,
		"a wrong word":                  head + "data_type: jsn\n" + method,
		"no endpoint":                   head + "methods: [{method: m}]\n",
		"no endpoint of an action":      head + "methods: [{method: m, type: action}]\n",
		"an endpoint of a script":       head + "methods: [{method: m, type: script, endpoint: /a}]\n",
		"a body of a webhook":           head + "methods: [{method: m, type: webhook, body: {a: 1}}]\n",
		"a method without a name":       head + "methods: [{endpoint: /a}]\n",
		"auth without a type":           head + "auth: {name: X-Key}\n" + method,
		"oauth2 without token_url":      head + "auth: {type: oauth2}\n" + method,
		"token_url of a key":            head + "auth: {type: api_key, token_url: https://acme.example/token}\n" + method,
		"a signature of oauth2":         head + "auth: {type: oauth2, token_url: https://acme.example/token, signature: HMAC-SHA1}\n" + method,
		"a key in the body, no name":    head + "auth: {type: api_key, in: body}\n" + method,
		"an issuer without assertion":   head + "auth: {type: oauth2, token_url: https://acme.example/token, issuer: me}\n" + method,
		"an audience without assertion": head + "auth: {type: oauth2, token_url: https://acme.example/token, audience: me}\n" + method,
		"auth_fields without fields":    head + "auth: {type: auth_fields}\n" + method,
		"a claim with a key of its own": head + "auth: {type: oauth2, token_url: https://acme.example/token, grant: jwt_bearer, claims: {sub: me}}\n" + method,
		"a parameter without a target":  head + "parameters: [{name: p}]\n" + method,
		"a target that is none":         head + "parameters: [{name: p, target: header}]\n" + method,
		"a default of a session's":      head + "parameters: [{name: p, target: http_header, property: session, default: 1}]\n" + method,
		"a value of a property":         head + "parameters: [{name: p, target: http_header, property: account, value: 1}]\n" + method,
		"a limit without per":           head + "rate_limits: [{requests: 1}]\n" + method,
		"a duration without unit":       head + "methods: [{method: m, endpoint: /a, timeout: 30}]\n",
		"a header with a blank":         head + "headers: {'X A': 1}\n" + method,
		"a field of two places":         head + "methods: [{method: m, endpoint: /a, response: {fields: [{field: a, header: B}]}}]\n",
		"a status that is none":         head + "auth: {type: none, refresh_on: [99]}\n" + method,
		"true as text":                  head + "ignore_auth: 'true'\n" + method,
		"auth beside alternatives":      head + "auth: {type: none}\nauthentications: [{name: a, auth: {type: none}}]\n" + method,
		"a format of no date":           head + "methods: [{method: m, endpoint: /a, response: {fields: [{field: a, system: A, type: text, format: yyyy}]}}]\n",
		"a format without a type":       head + "methods: [{method: m, endpoint: /a, request: {fields: [{field: a, format: yyyy}]}}]\n",
		"an xml_root of JSON":           head + "methods: [{method: m, endpoint: /a, data_type: json, xml_root: A}]\n",
		"an answer's header in a query": head + "parameters: [{name: p, target: query_string, header: Link}]\n" + method,
		"both kinds of script":          head + "script: ''\nscript_file: a.js\n" + method,
	}
	for name, file := range cases {
		t.Run(name, func(t *testing.T) {
			if s.Validate(plainJSON(t, []byte(file))) == nil {
				t.Error("the schema takes it")
			}
			p := newFileParser("acme.yaml", ".")
			p.parse([]byte(file))
			if !slices.ContainsFunc(p.findings, func(f Finding) bool { return !f.Hint }) {
				t.Error("the parser takes it")
			}
		})
	}
}

// Of two keys that exclude each other the editor marks one, not the whole file.
func TestSchema_marksWhatIsTooMuch(t *testing.T) {
	s := compiled(t)
	const head = "connector: acme\nbase_url: https://acme.example\n"
	for file, want := range map[string]string{
		head + "script: ''\nscript_file: a.js\nmethods: [{method: m, endpoint: /a}]\n":                                        "at '/script_file'",
		head + "methods: [{method: m, endpoint: /a, script: '', script_file: a.js}]\n":                                        "at '/methods/0/script_file'",
		head + "auth: {type: none}\nauthentications: [{name: a, auth: {type: none}}]\nmethods: [{method: m, endpoint: /a}]\n": "at '/authentications'",
	} {
		if err := s.Validate(plainJSON(t, []byte(file))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", file, err, want)
		}
	}
}

// TestSchema_isTheParsers asks the parser for each mapping's keys and each
// word's choices, from the whole file downwards, and compares them with the
// schema's. A key stands in a document that leads to it and nothing else.
func TestSchema_isTheParsers(t *testing.T) {
	var root map[string]any
	if err := json.Unmarshal([]byte(Schema()), &root); err != nil {
		t.Fatal(err)
	}
	var differ []string
	var visit func(path []string, wrap func(string) string, node map[string]any)
	visit = func(path []string, wrap func(string) string, node map[string]any) {
		at := strings.Join(path, "/")
		node = resolve(root, node)
		words := known(wrap(`{}`))
		own, _ := node["properties"].(map[string]any)
		if words != nil {
			for _, k := range words {
				if own[k] == nil {
					differ = append(differ, fmt.Sprintf("%s: key %s is the parser's alone", at, k))
				}
			}
			for k, v := range own {
				if !slices.Contains(words, k) {
					differ = append(differ, fmt.Sprintf("%s: key %s is the schema's alone", at, k))
					continue
				}
				visit(append(slices.Clone(path), k), func(s string) string { return wrap("{" + k + ": " + s + "}") }, v.(map[string]any))
			}
			return
		}
		if own != nil {
			differ = append(differ, at+": is a mapping in the schema alone")
		}
		if items, ok := node["items"].(map[string]any); ok {
			visit(append(slices.Clone(path), "[]"), func(s string) string { return wrap("[" + s + "]") }, items)
		} else if known(wrap(`[{}]`)) != nil {
			differ = append(differ, at+": is a list of mappings in the parser alone")
		}
		var listed []string
		for _, w := range list(node["enum"]) {
			listed = append(listed, fmt.Sprint(w))
		}
		choices := known(wrap(`no-such-word`))
		slices.Sort(listed)
		choices = slices.Sorted(slices.Values(choices))
		if node["items"] == nil && !slices.Equal(listed, choices) {
			differ = append(differ, fmt.Sprintf("%s: the schema's words are %v, the parser's %v", at, listed, choices))
		}
	}
	visit([]string{""}, func(s string) string { return s }, root)
	slices.Sort(differ)
	for _, d := range slices.Compact(differ) {
		t.Error(d)
	}
}

// known are the keys or words that the parser knows at the deepest place of a
// document; nil if it reads none there.
func known(doc string) []string {
	var n yaml.Node
	if yaml.Unmarshal([]byte(doc), &n) != nil {
		return nil
	}
	deepest := n.Content[0]
	for len(deepest.Content) > 0 {
		deepest = deepest.Content[len(deepest.Content)-1]
	}
	var words []string
	p := newFileParser("acme.yaml", ".")
	p.knows = func(n *yaml.Node, known []string) {
		if n.Line == deepest.Line && n.Column == deepest.Column && n.Kind == deepest.Kind {
			words = known
		}
	}
	p.parse([]byte(doc))
	return words
}

// resolve follows references, and takes what is said of all into one.
func resolve(root, node map[string]any) map[string]any {
	out := map[string]any{}
	for _, part := range list(node["allOf"]) {
		for k, v := range resolve(root, part.(map[string]any)) {
			if k == "properties" || k == "items" || k == "enum" {
				out[k] = v
			}
		}
	}
	for k, v := range node {
		out[k] = v
	}
	if to, ok := node["$ref"].(string); ok {
		return resolve(root, root["definitions"].(map[string]any)[strings.TrimPrefix(to, "#/definitions/")].(map[string]any))
	}
	return out
}

func list(v any) []any { l, _ := v.([]any); return l }

// Each key is explained, and so is each mapping, by the name findings give it.
func TestSchema_explainsEachKey(t *testing.T) {
	var root map[string]any
	if err := json.Unmarshal([]byte(Schema()), &root); err != nil {
		t.Fatal(err)
	}
	mappings := map[string]any{"": root}
	for name, d := range root["definitions"].(map[string]any) {
		mappings[name] = d
	}
	for name, m := range mappings {
		m := m.(map[string]any)
		own, ok := m["properties"].(map[string]any)
		if !ok {
			continue
		}
		if m["title"] == nil || m["additionalProperties"] != false {
			t.Errorf("%s: a mapping has a title, and no keys but its own", name)
		}
		for k, v := range own {
			if resolve(root, v.(map[string]any))["description"] == nil {
				t.Errorf("%s.%s: nothing is said of it", name, k)
			}
		}
	}
}
