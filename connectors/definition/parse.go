package definition

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
	"golang.org/x/net/http/httpguts"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/strictjson"
)

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// parser reads one file and collects findings.
type fileParser struct {
	file, folder string
	lines        []string
	def          *Connector
	findings     []Finding
	templates    []template             // checked once all names are known
	places       map[*string]*yaml.Node // of texts that are checked at the end
	// knows is told what each mapping and each of a few words may be; nil: nobody asks.
	knows   func(n *yaml.Node, words []string)
	lookups []lookupUse // checked then as well
}

// template is a text that may hold merge fields.
type template struct {
	node   *yaml.Node
	method *Method // nil: of the connector
	where  string  // url body header value
}

func newFileParser(file, folder string) *fileParser {
	return &fileParser{file: file, folder: folder, places: map[*string]*yaml.Node{}, def: &Connector{File: file, Methods: map[string]*Method{}}}
}

// parseFile reads a connector file. The Connector is nil if nothing could be
// read of it.
func parseFile(file, folder string) (*Connector, []Finding) {
	p := newFileParser(file, folder)
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return nil, []Finding{{File: file, Line: 1, Column: 1, Text: "it is not a regular file"}} // to open it might never end
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, []Finding{{File: file, Line: 1, Column: 1, Text: "the file cannot be read"}}
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(raw) > maxFile {
		return nil, []Finding{{File: file, Line: 1, Column: 1, Text: fmt.Sprintf("the file cannot be read, or has more than %d bytes", maxFile)}}
	}
	p.def.Digest, p.def.Source = sha256.Sum256(raw), string(raw)
	if root := p.parse(raw); root != nil && !slices.ContainsFunc(p.findings, func(f Finding) bool { return !f.Hint }) {
		p.deadEnds(root) // what it would say of a file half read might be wrong
	}
	slices.SortStableFunc(p.findings, func(a, b Finding) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		return (a.Line-b.Line)*10_000 + a.Column - b.Column
	})
	p.findings = slices.Compact(p.findings) // a script file that several methods share is read for each
	return p.def, p.findings
}

var yamlLine = regexp.MustCompile(`line (\d+)(?:, column (\d+))?:? ?(.*)`)

// parse reads a file; it returns its mapping, nil if there is none.
func (p *fileParser) parse(raw []byte) *yaml.Node {
	p.lines = strings.Split(string(raw), "\n")
	var doc, second yaml.Node
	docs := yaml.NewDecoder(bytes.NewReader(raw))
	err := docs.Decode(&doc)
	if err == nil {
		if err = docs.Decode(&second); err == nil {
			p.find(&second, "a second document: a connector file has one, so what follows here would be ignored")
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		line, col, text := 1, 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			if m[2] != "" {
				col, _ = strconv.Atoi(m[2])
			}
			text = m[3]
		}
		p.findings = append(p.findings, Finding{File: p.file, Line: line, Column: col, Text: "malformed YAML: " + text})
		return nil
	}
	if len(doc.Content) == 0 {
		p.findings = append(p.findings, Finding{File: p.file, Line: 1, Column: 1, Text: "the file is empty"})
		return nil
	}
	p.tags(doc.Content[0])
	p.connector(doc.Content[0])
	p.finish(doc.Content[0])
	return doc.Content[0]
}

func (p *fileParser) find(n *yaml.Node, format string, args ...any) {
	p.findings = append(p.findings, Finding{File: p.file, Line: n.Line, Column: n.Column, Text: fmt.Sprintf(format, args...)})
}

func (p *fileParser) hint(n *yaml.Node, format string, args ...any) {
	p.find(n, format, args...)
	p.findings[len(p.findings)-1].Hint = true
}

// keys reads a mapping strictly.
type keys map[string]func(*yaml.Node)

func (p *fileParser) mapping(n *yaml.Node, what string, known keys) map[string]*yaml.Node {
	got := map[string]*yaml.Node{}
	if n.Kind != yaml.MappingNode {
		p.find(n, "%s: a mapping is needed", what)
		return got
	}
	if p.knows != nil {
		p.knows(n, slices.Sorted(maps.Keys(known)))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if _, twice := got[k.Value]; twice {
			p.find(k, "key %q stands here twice", k.Value)
			continue
		}
		got[k.Value] = k
		switch read, ok := known[k.Value]; {
		case v.Kind == yaml.AliasNode:
			p.find(v, "aliases are not allowed")
		case ok:
			read(v)
		default:
			names, place := slices.Sorted(maps.Keys(known)), belongs(k.Value, what)
			if alike(k.Value, strictjson.Nearest(k.Value, names)) {
				place = ""
			}
			p.find(k, "unknown key %q%s", k.Value, cmp.Or(place, strictjson.DidYouMean(k.Value, names)))
		}
	}
	return got
}

func (p *fileParser) text(into *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
			p.find(n, "text is needed here")
			return
		}
		*into = n.Value
		p.places[into] = n
	}
}

// name reads a text that steps, credentials or other keys name: what YAML takes
// for something else looks like another name there.
func (p *fileParser) name(into *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if p.text(into)(n); n.Kind == yaml.ScalarNode && n.ShortTag() != "!!str" && n.ShortTag() != "!!null" {
			p.hint(n, "a name is a text, and YAML reads %s as something else: write it in quotes", n.Value)
		}
	}
}

func (p *fileParser) boolean(into *bool) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.ShortTag() != "!!bool" || n.Decode(into) != nil {
			p.find(n, "true or false is needed here")
		}
	}
}

// enum reads one of the given words.
func (p *fileParser) enum(into *string, words []string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		p.text(into)(n)
		if p.knows != nil && n.Kind == yaml.ScalarNode {
			p.knows(n, words)
		}
		if !slices.Contains(words, *into) {
			p.find(n, "%q is none of %s%s", *into, strings.Join(words, ", "), strictjson.DidYouMean(*into, words))
		}
	}
}

// number reads a whole number.
func (p *fileParser) number(into *int, least, most int) func(*yaml.Node) {
	return func(n *yaml.Node) {
		i, err := strconv.Atoi(n.Value)
		if err != nil || n.Kind != yaml.ScalarNode || i < least || i > most {
			p.find(n, "a whole number of %d to %d is needed, not %q", least, most, n.Value)
			return
		}
		*into = i
	}
}

func (p *fileParser) sequence(n *yaml.Node, each func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		p.find(n, "a list is needed here")
		return
	}
	for _, c := range n.Content {
		each(c)
	}
}

func (p *fileParser) template(into *string, where string, m *Method) func(*yaml.Node) {
	return func(n *yaml.Node) {
		p.text(into)(n)
		p.templates = append(p.templates, template{n, m, where})
	}
}

func (p *fileParser) dataType(into *DataType) func(*yaml.Node) {
	return func(n *yaml.Node) {
		s := ""
		p.enum(&s, dataTypes)(n)
		*into = DataType(s)
	}
}

func (p *fileParser) headers(into *map[string]string, m *Method) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			p.find(n, "headers: a mapping is needed")
			return
		}
		*into = map[string]string{}
		p.unique(n, strings.ToLower)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v := ""
			p.headerName(n.Content[i], n.Content[i].Value)
			p.template(&v, "header", m)(n.Content[i+1])
			(*into)[n.Content[i].Value] = v
		}
	}
}

// unique finds names that a mapping, or one below it, has twice.
func (p *fileParser) unique(n *yaml.Node, as func(string) string) {
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			p.unique(c, as)
			continue
		}
		if seen[as(c.Value)] {
			p.find(c, "key %q stands here twice", c.Value)
		}
		seen[as(c.Value)] = true
	}
}

// free reads a value of any shape.
func (p *fileParser) free(n *yaml.Node) any {
	p.unique(n, func(s string) string { return s })
	v, err := yamlValue(n, 0)
	if err != nil {
		p.find(n, "%v", err)
	}
	return v
}

// headerName checks a token of RFC 9110 section 5.6.2.
func (p *fileParser) headerName(n *yaml.Node, name string) {
	if !httpguts.ValidHeaderFieldName(name) {
		p.find(n, "%q is no header name", name)
	}
}

func (p *fileParser) connector(n *yaml.Node) {
	d := p.def
	d.line, d.column = n.Line, n.Column
	d.DataType, d.Auth.Type = JSON, "none"
	var script *hooks.Script
	got := p.mapping(n, "a connector file", keys{
		"connector": func(n *yaml.Node) {
			d.line, d.column = n.Line, n.Column
			if p.text(&d.Name)(n); !namePattern.MatchString(d.Name) {
				p.find(n, "connector: a name like acme-crm is needed (a-z, 0-9, -, beginning with a letter)")
			}
		},
		"title":        p.text(&d.Title),
		"base_url":     p.template(&d.BaseURL, "url", nil),
		"data_type":    p.dataType(&d.DataType),
		"content_type": p.text(&d.ContentType),
		"headers":      p.headers(&d.Headers, nil),
		"ignore_auth":  p.boolean(&d.IgnoreAuth),
		"auth":         p.auth(&d.Auth),
		"post_install": func(n *yaml.Node) {
			p.mapping(n, "post_install", keys{"property_lookup_method": p.text(&d.LoginMethod), "test_auth_method": p.text(&d.TestMethod),
				"logout_method": p.text(&d.LogoutMethod)})
		},
		"parameters":      func(n *yaml.Node) { d.Parameters = p.parameters(n, nil) },
		"rate_limits":     p.rateLimits(&d.RateLimits),
		"max_concurrent":  p.number(&d.MaxConcurrent, 1, maxConcurrent),
		"paging":          func(n *yaml.Node) { p.paging(n, &d.Paging) },
		"authentications": p.authentications,
		"triggers":        p.triggers,
		"script":          func(n *yaml.Node) { script = p.inline(n, hooks.LevelConnector, script) },
		"script_file":     func(n *yaml.Node) { script = p.external(n, hooks.LevelConnector, script) },
		"methods":         func(*yaml.Node) {},
	})
	d.Script = script
	if k := got["authentications"]; k != nil && got["auth"] != nil {
		p.find(k, "auth and authentications exclude each other: name each way to authenticate in authentications")
	}
	for _, k := range []string{"connector", "base_url", "methods"} {
		if got[k] == nil && n.Kind == yaml.MappingNode {
			p.find(n, "key %q is missing", k)
		}
	}
	if k := got["base_url"]; k != nil && d.BaseURL == "" {
		p.find(k, "base_url: an absolute http or https URL is needed")
	}
	// Methods come last: they add to what stands above, wherever it stands.
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == "methods" {
				if p.sequence(n.Content[i+1], p.method); len(n.Content[i+1].Content) == 0 && n.Content[i+1].Kind == yaml.SequenceNode {
					p.find(n.Content[i], "methods: there is none")
				}
			}
		}
	}
}

func (p *fileParser) auth(a *Auth) func(*yaml.Node) {
	return func(n *yaml.Node) { p.readAuth(n, a) }
}

func (p *fileParser) readAuth(n *yaml.Node, a *Auth) {
	var in, style string
	got := p.mapping(n, "auth", keys{
		"type":          p.enum(&a.Type, []string{"none", "api_key", "basic", "oauth1", "oauth2", AuthFields}),
		"grant":         p.enum(&a.Grant, []string{"authorization_code", "client_credentials", "password", JWTBearer}),
		"authorize_url": p.template(&a.AuthorizeURL, "url", nil),
		"token_url":     p.template(&a.TokenURL, "url", nil),
		"scopes": func(n *yaml.Node) {
			p.sequence(n, func(n *yaml.Node) { s := ""; p.text(&s)(n); a.Scopes = append(a.Scopes, s) })
		},
		"auth_style": p.enum(&style, []string{"auto", "header", "params", PrivateKeyJWT}),
		"issuer":     p.template(&a.Issuer, "value", nil),
		"subject":    p.template(&a.Subject, "value", nil),
		"audience":   p.template(&a.Audience, "value", nil),
		"key_id":     p.template(&a.KeyID, "value", nil),
		"claims":     func(n *yaml.Node) { p.claims(n, a) },
		"signature":  p.enum(&a.Signature, OAuth1Signatures),
		"refresh_on": func(n *yaml.Node) {
			p.sequence(n, func(n *yaml.Node) {
				code, err := strconv.Atoi(n.Value)
				if err != nil || code < 300 || code > 599 {
					p.find(n, "refresh_on: an HTTP status of 300 to 599 is needed, not %q", n.Value)
				}
				a.RefreshOn = append(a.RefreshOn, code)
			})
		},
		"hosts": func(n *yaml.Node) {
			p.sequence(n, func(n *yaml.Node) {
				s := ""
				if p.text(&s)(n); strings.ContainsAny(s, "/ @") {
					p.find(n, "hosts: a host name is needed, not %q", s)
				}
				a.Hosts = append(a.Hosts, strings.ToLower(s))
			})
		},
		"in":     p.enum(&in, []string{"header", "query", "body"}),
		"name":   p.text(&a.Name),
		"prefix": p.text(&a.Prefix),
		"fields": func(n *yaml.Node) { p.authFields(n, a) },
	})
	a.In, a.AuthStyle = in, style
	of := func(key string, types ...string) {
		if k := got[key]; k != nil && !slices.Contains(types, a.Type) {
			p.find(k, "%s has no meaning for auth type %s", key, a.Type)
		}
	}
	for _, k := range []string{"grant", "authorize_url", "token_url", "scopes", "auth_style", "issuer", "subject", "audience", "key_id", "claims"} {
		of(k, "oauth2")
	}
	of("signature", "oauth1")
	if a.Type == "oauth1" && a.Signature == "" {
		a.Signature = OAuth1Signatures[0]
	}
	for _, k := range []string{"in", "name", "prefix"} {
		of(k, "api_key")
	}
	of("fields", AuthFields)
	if a.Type == AuthFields && len(a.Fields) == 0 {
		p.find(n, "auth: key \"fields\" is missing, or has no field")
	}
	if got["type"] == nil {
		p.find(n, "auth: key \"type\" is missing")
	}
	if t := a.TokenURL; t != "" && !strings.HasPrefix(t, "{{") {
		p.checkURL(p.places[&a.TokenURL], "auth.token_url", t)
	}
	if a.Type == "oauth2" {
		if a.TokenURL == "" {
			p.find(n, "auth: key \"token_url\" is missing")
		}
		if a.Grant == "" {
			a.Grant = "authorization_code"
		}
		if a.AuthStyle == "" {
			a.AuthStyle = "auto"
		}
		for _, k := range []string{"issuer", "subject", "claims"} {
			if got[k] != nil && a.Grant != JWTBearer {
				p.find(got[k], "%s has no meaning for the grant %s: it is of the assertion that %s sends", k, a.Grant, JWTBearer)
			}
		}
		for _, k := range []string{"audience", "key_id"} {
			if got[k] != nil && a.Grant != JWTBearer && a.AuthStyle != PrivateKeyJWT {
				p.find(got[k], "%s has no meaning without grant %s or auth_style %s: nothing is signed", k, JWTBearer, PrivateKeyJWT)
			}
		}
	}
	if a.Type == "api_key" {
		if a.In == "" {
			a.In = "header"
		}
		if a.In == "body" && a.Name == "" {
			p.find(n, "auth: key \"name\" is missing: which member of the body is the key?")
		}
		if a.Name == "" {
			a.Name = "Authorization"
		} else if a.In == "header" {
			p.headerName(got["name"], a.Name)
		}
	}
}

// claims reads what else an assertion says (RFC 7519 section 4.3).
func (p *fileParser) claims(n *yaml.Node, a *Auth) {
	if n.Kind != yaml.MappingNode {
		p.find(n, "claims: a mapping is needed")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch k := n.Content[i]; k.Value {
		case "iss", "sub", "aud":
			p.find(k, "claim %q has a key of its own: auth.%s", k.Value, map[string]string{"iss": "issuer", "sub": "subject", "aud": "audience"}[k.Value])
		case "iat", "exp", "jti":
			p.find(k, "claim %q is made anew for each assertion", k.Value)
		}
	}
	a.Claims, _ = p.free(n).(*jsontree.Object)
	p.templatesIn(n, nil, "value")
}

var fieldTypes = []string{"text", "integer", "float", "decimal", "boolean", "datetime", "file", "undefined"}

func (p *fileParser) parameters(n *yaml.Node, m *Method) []Parameter {
	var all []Parameter
	p.sequence(n, func(n *yaml.Node) {
		q := Parameter{}
		var valueNode *yaml.Node
		value := func(into *any, has *bool) func(*yaml.Node) {
			return func(n *yaml.Node) {
				v := p.free(n)
				if s, ok := v.(string); ok && strings.HasPrefix(s, "=") {
					v = p.inlineValue(n, s, m)
				}
				p.templatesIn(n, m, "value")
				*into, *has, valueNode = v, true, n
			}
		}
		k := keys{
			"name":      p.name(&q.Name),
			"target":    p.enum(&q.Target, []string{"http_header", "merge_field", "query_string", FilterField, "response_field", "script", "index"}),
			"as":        p.text(&q.As),
			"header":    p.text(&q.Header),
			"value":     value(&q.Value, &q.HasValue),
			"default":   value(&q.Default, &q.HasDef),
			"type":      p.enum(&q.Type, fieldTypes),
			"optional":  p.boolean(&q.Optional),
			"sensitive": p.boolean(&q.Sensitive),
			"property":  p.enum(&q.Property, []string{"account", "partner", "session"}),
		}
		maps.Copy(k, p.about(&q.About))
		got := p.mapping(n, "a parameter", k)
		if q.Target == FilterField {
			p.filterLocation(n, &q)
		}
		if q.Name == "" {
			p.find(n, "a parameter needs a name")
		}
		leftOut := q.Value == Ignored
		if q.Target == "" && !leftOut && n.Kind == yaml.MappingNode && got["target"] == nil {
			p.find(n, "parameter %q: key \"target\" is missing", q.Name)
		}
		p.pageVariable(n, &q)
		if q.Target == "http_header" && q.Name != "" {
			p.headerName(n, q.Wire())
		}
		if q.Property != "" && q.HasValue && !leftOut {
			p.find(valueNode, "parameter %q: a property's value comes from the credential, so it cannot have a fixed one", q.Name)
		}
		if q.Property == "session" && q.HasDef {
			p.find(valueNode, "parameter %q: a session property comes from the login method, so it has no default", q.Name)
		}
		for _, other := range all {
			if other.Name == q.Name {
				p.find(n, "parameter %q is declared twice", q.Name)
			}
		}
		all = append(all, q)
	})
	return all
}

// Wire is a parameter's name on the wire.
func (q *Parameter) Wire() string {
	if q.As != "" {
		return q.As
	}
	return q.Name
}

func (p *fileParser) method(n *yaml.Node) {
	m := &Method{Type: TypeAction, Verb: "GET", Retry: "safe", IgnoreAuth: p.def.IgnoreAuth, Paging: p.def.Paging}
	var script *hooks.Script
	var own []Parameter
	var nameNode *yaml.Node
	kind := string(TypeAction)
	got := p.mapping(n, "a method", keys{
		"method":       func(n *yaml.Node) { nameNode = n; p.name(&m.Name)(n) },
		"type":         p.enum(&kind, []string{string(TypeAction), string(TypeScript), string(TypeWebhook)}),
		"verb":         p.enum(&m.Verb, []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}),
		"endpoint":     p.template(&m.Endpoint, "url", m),
		"data_type":    p.dataType(&m.DataType),
		"content_type": p.text(&m.ContentType),
		"headers":      p.headers(&m.Headers, m),
		"ignore_auth":  p.boolean(&m.IgnoreAuth),
		"timeout": func(n *yaml.Node) {
			d, err := time.ParseDuration(n.Value)
			if err != nil || d <= 0 {
				p.find(n, "timeout: a duration such as 30s or 2m is needed, not %q", n.Value)
			}
			m.Timeout = d
		},
		"body": func(n *yaml.Node) {
			m.Body, m.HasBody = p.free(n), true
			p.templatesIn(n, m, "body")
		},
		"parameters":         func(n *yaml.Node) { own = p.parameters(n, m) },
		"response":           func(n *yaml.Node) { p.response(n, m) },
		"rate_limits":        p.rateLimits(&m.RateLimits),
		"retry":              p.enum(&m.Retry, []string{"safe", "always", "never"}),
		"idempotency_header": func(n *yaml.Node) { p.text(&m.Idempotency)(n); p.headerName(n, m.Idempotency) },
		"script":             func(n *yaml.Node) { script = p.inline(n, hooks.LevelMethod, script) },
		"script_file":        func(n *yaml.Node) { script = p.external(n, hooks.LevelMethod, script) },
		"paging":             func(n *yaml.Node) { p.methodPaging(n, m) },
		"xml_root":           p.text(&m.XMLRoot),
		"request":            func(n *yaml.Node) { p.request(n, m) },
	})
	m.Script = script
	p.limitsOf(m)
	if m.Name == "" {
		p.find(n, "a method needs a name: key \"method\"")
		return
	}
	m.Type = MethodType(kind)
	if got["endpoint"] == nil && m.Type == TypeAction {
		p.find(n, "method %q: key \"endpoint\" is missing", m.Name)
	}
	for _, k := range meaningless[m.Type] {
		if got[k] != nil {
			p.find(got[k], "%s has no meaning for a method of type %s", k, m.Type)
		}
	}
	if m.DataType == "" {
		m.DataType = p.def.DataType
	}
	if m.ResponseDT == "" {
		if m.ResponseDT = m.DataType; m.DataType == File || m.DataType == MultipartRelated { // which no answer is
			m.ResponseDT = JSON
		}
	}
	if k := got["xml_root"]; k != nil && m.DataType != XML {
		p.find(k, "xml_root has no meaning for data type %s", m.DataType)
	} else if k != nil && !hooks.XMLName(m.XMLRoot) {
		p.find(k, "xml_root: %q is no name of an element", m.XMLRoot)
	}
	if m.Type == TypeWebhook {
		m.Fields = append(m.Fields, webhookFields(m.Request)...)
	}
	if m.ContentType == "" {
		m.ContentType = p.def.ContentType
	}
	m.Parameters = merged(p.def.Parameters, own)
	for _, q := range p.def.Parameters {
		if !slices.ContainsFunc(m.Parameters, func(kept Parameter) bool { return kept.Name == q.Name }) {
			m.Dropped = append(m.Dropped, q)
		}
	}
	if _, twice := p.def.Methods[m.Name]; twice {
		p.find(nameNode, "method %q is declared twice", m.Name)
		return
	}
	p.def.Methods[m.Name] = m
	p.def.MethodNames = append(p.def.MethodNames, m.Name)
}

// meaningless are the keys that only a request that is sent has a use for. An
// endpoint is no mistake at a webhook: it may be there for people.
var meaningless = map[MethodType][]string{
	TypeScript:  {"endpoint", "verb", "headers", "content_type", "timeout", "retry", "idempotency_header"},
	TypeWebhook: {"verb", "headers", "content_type", "timeout", "retry", "idempotency_header", "body", "rate_limits"},
}

// Ignored is the value by which a method leaves a connector's parameter out.
const Ignored = "CYCLR_IGNORE_PARAMETER"

// merged lays a method's parameters over the connector's, by name.
func merged(connector, method []Parameter) []Parameter {
	var all []Parameter
	for _, c := range connector {
		for _, q := range method {
			if q.Name == c.Name {
				goto overridden
			}
		}
		all = append(all, c)
	overridden:
	}
	return slices.DeleteFunc(append(all, method...), func(q Parameter) bool { return q.Value == Ignored })
}

func (p *fileParser) response(n *yaml.Node, m *Method) {
	p.mapping(n, "response", keys{
		"data_type": func(n *yaml.Node) {
			if p.dataType(&m.ResponseDT)(n); m.ResponseDT == File || m.ResponseDT == MultipartRelated {
				p.find(n, "response.data_type: %s is of requests; an answer that is a file is a simple_file", m.ResponseDT)
			}
		},
		"fields": func(n *yaml.Node) {
			seen := map[string]bool{}
			p.sequence(n, func(n *yaml.Node) {
				f := ResponseField{}
				got := p.mapping(n, "a response field", keys{
					"field": p.text(&f.Field), "header": p.text(&f.Header), "cookie": p.text(&f.Cookie), "system": p.text(&f.System),
					"type": p.enum(&f.Type, fieldTypes), "format": p.text(&f.Format), "title": p.text(&f.Title), "optional": p.boolean(&f.Optional),
					"description": p.text(&f.Description),
					"default":     func(n *yaml.Node) { f.Default, f.HasDef = p.free(n), true },
				})
				count := 0
				for _, k := range []string{"field", "header", "cookie"} {
					if got[k] != nil {
						count++
					}
				}
				if count != 1 {
					p.find(n, "a response field has one of field, header and cookie")
				}
				if f.System == "" {
					f.System = f.Field
				}
				f.Steps = p.location(n, f.Field, seen)
				p.dateFormat(got["format"], f.Type, f.Format)
				m.Fields = append(m.Fields, f)
			})
		},
	})
}

// inline reads a script that stands in the file, and where it stands.
func (p *fileParser) inline(n *yaml.Node, level hooks.Level, other *hooks.Script) *hooks.Script {
	if other != nil {
		p.find(n, "script and script_file exclude each other")
	}
	if n.Kind != yaml.ScalarNode {
		p.find(n, "script: JavaScript is needed")
		return nil
	}
	s := &hooks.Script{Level: level, File: p.file, Source: n.Value, Line: n.Line, Column: n.Column}
	switch {
	case n.Style&yaml.FoldedStyle != 0:
		p.find(n, "script: a folded block (>) joins lines, so places in errors would be wrong; use |")
		return nil
	case n.Style&yaml.LiteralStyle != 0:
		s.Line, s.Column, s.Indent = n.Line+1, 0, blockIndent(p.lines, n)
	default:
		s.Place = scalarPlaces(p.lines, n)
		if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			s.Column++
		}
	}
	p.scriptFindings(s)
	return s
}

// inlineValue reads a parameter's value that is JavaScript.
func (p *fileParser) inlineValue(n *yaml.Node, text string, m *Method) any {
	level := hooks.LevelMethod
	if m == nil {
		level = hooks.LevelConnector
	}
	in, err := inline.New(level, p.file, text, p.textPlaces(n))
	if err != nil {
		if _, split := mergefields.Split(text); split == nil { // else checkTemplate says so
			p.find(n, "%v", err)
		}
		return text
	}
	s := in.Hook()
	for _, f := range hooks.CheckSource(&s) {
		p.findings = append(p.findings, Finding{File: p.file, Line: f.Line, Column: f.Column, Text: f.Text})
	}
	if seen := hooks.Inspect(&s); seen != nil {
		p.findings = append(p.findings, inlineCalls(seen)...)
	}
	return in
}

// textPlaces says where a scalar's characters stand in the file.
func (p *fileParser) textPlaces(n *yaml.Node) func(line, column int) (int, int) {
	begin := func(int, int) (int, int) { return n.Line, n.Column }
	switch {
	case n.Style&yaml.LiteralStyle != 0:
		indent := blockIndent(p.lines, n)
		return func(line, column int) (int, int) { return n.Line + line, column + indent }
	case n.Style&yaml.FoldedStyle != 0: // it joins lines
		return begin
	}
	if places := scalarPlaces(p.lines, n); places != nil {
		return places
	}
	return begin
}

// external reads a script file, which must lie in the connectors folder.
func (p *fileParser) external(n *yaml.Node, level hooks.Level, other *hooks.Script) *hooks.Script {
	if other != nil {
		p.find(n, "script and script_file exclude each other")
	}
	name := ""
	if p.text(&name)(n); name == "" {
		return nil
	}
	path := filepath.Join(filepath.Dir(p.file), name)
	real, err := filepath.EvalSymlinks(path)
	root, err2 := filepath.EvalSymlinks(p.folder)
	if err != nil || err2 != nil {
		p.find(n, "script_file: %s cannot be read", name)
		return nil
	}
	rel, err := filepath.Rel(root, real)
	if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) || filepath.IsAbs(name) {
		p.find(n, "script_file: %s lies outside of the connectors folder", name)
		return nil
	}
	info, err := os.Stat(real)
	if err != nil || !info.Mode().IsRegular() || info.Size() > hooks.MaxSource {
		p.find(n, "script_file: %s is not a file of at most %d bytes", name, hooks.MaxSource)
		return nil
	}
	raw, err := os.ReadFile(real)
	if err != nil {
		p.find(n, "script_file: %s cannot be read", name)
		return nil
	}
	s := &hooks.Script{Level: level, File: path, Source: string(raw), Line: 1, Column: 1}
	p.scriptFindings(s)
	return s
}

// templatesIn notes every text of a tree.
func (p *fileParser) templatesIn(n *yaml.Node, m *Method, where string) {
	if n.Kind == yaml.ScalarNode {
		p.templates = append(p.templates, template{n, m, where})
	}
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			p.templatesIn(c, m, where)
		}
	}
}

// finish checks what needs the whole file.
func (p *fileParser) finish(n *yaml.Node) {
	d := p.def
	for _, q := range d.Parameters {
		if q.Property == "session" {
			d.SessionNames = append(d.SessionNames, q.Name)
		}
	}
	for _, name := range d.MethodNames {
		for _, q := range d.Methods[name].Parameters {
			if q.Property == "session" && !slices.Contains(d.SessionNames, q.Name) {
				d.SessionNames = append(d.SessionNames, q.Name)
			}
		}
	}
	for key, named := range map[string]*string{"property_lookup_method": &d.LoginMethod, "test_auth_method": &d.TestMethod, "logout_method": &d.LogoutMethod} {
		name := *named
		if m, ok := d.Methods[name]; name != "" && !ok {
			p.find(p.places[named], "post_install.%s names method %q, which does not exist%s", key, name, strictjson.DidYouMean(name, d.MethodNames))
		} else if ok && m.Type == TypeWebhook {
			p.find(p.places[named], "post_install.%s names method %q, which is a webhook", key, name)
		} else if ok && key == "property_lookup_method" {
			m.IsLogin = true
		} else if ok && key == "logout_method" && (name == d.LoginMethod || name == d.TestMethod) {
			p.find(p.places[named], "post_install.logout_method names method %q, which is the login or the test method", name)
		}
	}
	if d.LogoutMethod != "" && d.LoginMethod == "" {
		p.find(p.places[&d.LogoutMethod], "post_install.logout_method: there is no login method (post_install.property_lookup_method) whose session it could end")
	}
	if d.LoginMethod == "" && len(d.SessionNames) > 0 && !fillsSession(d) {
		p.hint(n, "session property %q: there is no login method to fill it (post_install.property_lookup_method)", d.SessionNames[0])
	}
	p.acrossLevels()
	for _, t := range p.templates {
		p.checkTemplate(t)
	}
	if base := d.BaseURL; base != "" && !strings.HasPrefix(base, "{{") {
		p.checkURL(p.places[&d.BaseURL], "base_url", base)
	}
	p.checkTriggers()
	p.alternatives()
}

// fillsSession says that hooks may find the session, in a refusal perhaps.
func fillsSession(d *Connector) bool {
	names := func(s *hooks.Script) bool { return s != nil && strings.Contains(s.Source, "session_properties") }
	return names(d.Script) || slices.ContainsFunc(d.MethodNames, func(m string) bool { return names(d.Methods[m].Script) })
}

func (p *fileParser) checkURL(n *yaml.Node, what, text string) {
	u, err := url.Parse(mergefields.Replace(text, "1"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		p.find(n, "%s: an absolute http or https URL is needed, without user or password", what)
	}
}

func (p *fileParser) checkTemplate(t template) {
	rest := t.node.Value
	fields, err := mergefields.Split(rest)
	if err != nil {
		p.find(t.node, "%v", err)
		return
	}
	params := p.def.Parameters
	if t.method != nil {
		params = slices.Concat(t.method.Parameters, t.method.Dropped)
	} else {
		for _, m := range p.def.Methods {
			params = append(slices.Clone(params), m.Parameters...)
		}
	}
	known := slices.Concat(mergefields.OfCredential, mergefields.OfAccount, mergefields.OfCall, mergefields.Supplied, p.def.authFieldNames())
	for _, q := range params {
		known = append(known, q.Name, q.Wire())
	}
	for _, f := range fields {
		if f.Name == "" {
			continue
		}
		if f.Name == PageNextURL && t.where == "value" || isPageField(f.Name) {
			p.needsPageSize(t, f.Name)
			continue
		}
		if strings.HasPrefix(f.Name, pagePrefix) {
			p.find(t.node, "{{%s}} is no page variable here%s", f.Name, strictjson.DidYouMean(f.Name, pageVariables))
			continue
		}
		if slices.Contains(known, f.Name) {
			continue
		}
		if near := strictjson.DidYouMean(f.Name, known); near != "" {
			p.find(t.node, "unknown merge field {{%s}}%s", f.Name, near)
		} else {
			p.hint(t.node, "no parameter declares merge field {{%s}}: each credential must have a property of that name", f.Name)
		}
	}
}
