package connectors

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// resolve finds each parameter's value: fixed, the credential's or partner
// settings', the step's, the default.
func (x *exchange) resolve(ctx context.Context) error {
	x.params, x.step = map[string]any{}, map[string]bool{}
	written := map[string]bool{} // by the connector: only there merge fields mean something
	for i := range len(x.m.Parameters) + len(x.m.Dropped) {
		q, dropped := parameterAt(x.m, i), i >= len(x.m.Parameters)
		if q.Property == "session" && x.m.IsLogin {
			continue // the login goes out without the old session
		}
		var v any
		given := false
		switch raw, fromStep := x.given[q.Name]; {
		case q.Value == definition.Ignored, q.Target == "response_field":
			continue
		case q.HasValue:
			v, given, written[q.Name] = q.Value, true, true
		case q.Property != "":
			v, given = x.c.property(x.d, x.cred, q.Property, q.Name)
		case fromStep && !dropped:
			decoded, err := jsontree.Decode(raw)
			if err != nil {
				return &CallError{Kind: "input", Message: fmt.Sprintf("parameter %q is no JSON value", q.Name)}
			}
			v, given = decoded, decoded != nil
			x.step[q.Name] = true
		}
		if !given && q.HasDef {
			v, given, written[q.Name] = q.Default, true, true
		}
		if !given {
			switch {
			case dropped:
			case q.Property == "session":
				// A merge field counts only where a template names it: look sees that.
				if q.Target != "merge_field" && x.needs(q) {
					return x.noSession(q)
				}
			case x.m.Type == definition.TypeWebhook && !q.ForScripts(): // nothing is sent
			case !q.Optional:
				gap := missing{q, fmt.Sprintf("parameter %q is missing%s", q.Name, choicesOf(q))}
				if q.Property != "" {
					gap.text = fmt.Sprintf("the credential has no property %q", q.Name)
				}
				if q.ForScripts() || !handled(x.scripts("before_action"), "before_action") {
					return gap.error()
				}
				x.missing = append(x.missing, gap)
			}
			continue
		}
		if written[q.Name] {
			x.params[q.Name] = v // a template, fill sets it
		} else if err := x.set(q, v); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(x.given)) {
		if err := x.declares(name); err != nil {
			return err
		}
	}
	return x.fill(ctx, written)
}

// choicesOf tells, in an error, what can be given.
func choicesOf(q *definition.Parameter) string {
	if len(q.Values) == 0 {
		return ""
	}
	raw, _ := jsontree.Marshal(q.Values)
	return ": one of " + clip(string(raw), 200)
}

// missing is a required parameter that has no value.
type missing struct {
	q    *definition.Parameter
	text string
}

func (m missing) error() error { return &CallError{Kind: "input", Message: m.text} }

// supplied is an error if before_action left a required parameter without a value.
func (x *exchange) supplied() error {
	where := map[string]json.RawMessage{"merge_field": x.merge, "query_string": x.query, "http_header": x.headers}
	for _, m := range x.missing {
		v, _ := member(where[m.q.Target], m.q.Wire(), m.q.Target == "http_header")
		if v == nil {
			return m.error()
		}
	}
	return nil
}

// member is a member of a JSON object, its name as it is or in any case.
func member(raw json.RawMessage, name string, anyCase bool) (v any, there bool) {
	decoded, err := jsontree.Decode(raw)
	m, ok := decoded.(*jsontree.Object)
	if err != nil || !ok {
		return nil, false
	}
	for _, k := range m.Keys {
		if k == name || anyCase && strings.EqualFold(k, name) {
			return m.Values[k], true
		}
	}
	return nil, false
}

// refill fills headers and body again where before_action changed merge
// fields: what it did not touch itself, out of the connector's own templates.
func (x *exchange) refill(headers, body, merge json.RawMessage) error {
	if bytes.Equal(x.merge, merge) {
		return nil
	}
	look, err := x.fromMerge()
	if err != nil {
		return err
	}
	if x.call.Body == nil && bytes.Equal(x.body, body) {
		if x.body, err = x.pristineBody(look); err != nil {
			return err
		}
	}
	first, err := x.ownHeaders(x.look)
	if err != nil {
		return err
	}
	again, err := x.ownHeaders(look)
	if err != nil {
		return err
	}
	decoded, _ := jsontree.Decode(x.headers)
	now, ok := decoded.(*jsontree.Object)
	if !ok {
		return nil // setHeaders says so
	}
	for _, hs := range []map[string]string{x.d.Headers, x.m.Headers} {
		for k := range hs {
			was, had := first.Values[k]
			given, sent := member(headers, k, true)
			left, still := member(x.headers, k, true)
			if had != sent || sent != still || had && (was != given || given != left) {
				continue // a parameter's, or a script's
			}
			if v, ok := again.Values[k]; ok {
				now.Set(k, v)
			} else if sent {
				now.Set(k, nil)
			}
		}
	}
	x.headers, err = jsontree.Marshal(now)
	return err
}

// set notes a parameter's value, as its type.
func (x *exchange) set(q *definition.Parameter, v any) error {
	if q.Type != "" {
		var ok bool
		if v, ok = jsontree.Coerce(v, q.Type); !ok {
			return &CallError{Kind: "input", Message: fmt.Sprintf("parameter %q must be of type %s", q.Name, q.Type)}
		}
	}
	x.params[q.Name] = v
	if q.Sensitive && q.Property == "" { // a property's is masked with the credential
		for _, text := range leaves(v) {
			if !slices.Contains(x.found, text) {
				x.found, x.masks = append(x.found, text), nil
			}
		}
		x.c.cfg.Trace.secret(q.Name, leaves(v)...)
	}
	return nil
}

// leaves are the texts and numbers of a value.
func leaves(v any) (all []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			all = append(all, leaves(e)...)
		}
	case *jsontree.Object:
		for _, e := range v.Values {
			all = append(all, leaves(e)...)
		}
	default:
		if text, ok := jsontree.Text(v); ok {
			all = append(all, text)
		}
	}
	return all
}

// fill replaces the merge fields of parameters that the connector wrote. One
// may be built from others; one built from what has no value is left out, and
// one built from a step's is as foreign as the step's.
func (x *exchange) fill(ctx context.Context, written map[string]bool) error {
	begun := map[string]bool{}
	var fill func(q *definition.Parameter) error
	fill = func(q *definition.Parameter) error {
		v, ok := x.params[q.Name]
		if !ok || !written[q.Name] {
			return nil
		}
		if begun[q.Name] {
			return &mergefields.Error{Text: fmt.Sprintf("parameter %q is built from itself", q.Name)}
		}
		begun[q.Name] = true
		var inner error
		look := func(name string) (any, bool, bool) {
			if other := x.parameter(name); other != nil && inner == nil {
				inner = fill(other)
			}
			value, known, foreign := x.look(name)
			if foreign {
				x.step[q.Name] = true
			}
			return value, known, foreign
		}
		if in, ok := v.(*inline.Script); ok && slices.ContainsFunc(stepGlobals, func(g string) bool { return strings.Contains(in.Source, g) }) {
			x.step[q.Name] = true
		}
		v, ok, err := x.expand(ctx, v, look)
		if inner != nil || err != nil {
			return errors.Join(inner, err)
		}
		delete(written, q.Name)
		if !ok {
			delete(x.params, q.Name)
			return nil
		}
		return x.set(q, v)
	}
	for i := range len(x.m.Parameters) + len(x.m.Dropped) {
		wanted := x.wanted
		if err := fill(parameterAt(x.m, i)); err != nil {
			return err
		}
		if i >= len(x.m.Parameters) {
			x.wanted = wanted // it is not sent
		}
	}
	return nil
}

// expand fills a parameter's value: a template, or inline script.
func (x *exchange) expand(ctx context.Context, v any, look mergefields.Lookup) (any, bool, error) {
	in, ok := v.(*inline.Script)
	if !ok {
		return mergefields.Tree(v, look)
	}
	if v, ok := x.values[in]; ok { // the next page's is the same
		return v, v != nil, nil
	}
	v, ok, err := x.evaluate(ctx, in, look)
	if !ok || err != nil {
		v = nil
	}
	if err == nil && x.paged() && len(in.Fields) == 0 {
		if x.values == nil {
			x.values = map[*inline.Script]any{}
		}
		x.values[in] = v
	}
	return v, v != nil, err
}

// stepGlobals are what inline script sees that the step supplied.
var stepGlobals = []string{"cycle_id", "cycle_step_id", "transaction_id", "method_response_fields_in_use"}

// parameterAt is a method's i-th parameter; those that it leaves out come last.
func parameterAt(m *definition.Method, i int) *definition.Parameter {
	if i < len(m.Parameters) {
		return &m.Parameters[i]
	}
	return &m.Dropped[i-len(m.Parameters)]
}

func (x *exchange) parameter(name string) *definition.Parameter {
	for i := range len(x.m.Parameters) + len(x.m.Dropped) {
		if q := parameterAt(x.m, i); q.Name == name || q.Wire() == name {
			return q
		}
	}
	return nil
}

// needs says that a request waits for a session property: a login itself does
// not, and without a login method only what is required is missed.
func (x *exchange) needs(q *definition.Parameter) bool {
	return !x.m.IsLogin && x.m.Type != definition.TypeWebhook && (x.d.LoginMethod != "" || !q.Optional)
}

func (x *exchange) noSession(q *definition.Parameter) error {
	e := &AuthError{Kind: credentials.Session, Version: x.cred.Version, Unsent: true, Text: fmt.Sprintf("there is no session yet: %q has no value", q.Name)}
	if x.d.LoginMethod == "" {
		e.NoRenewal, e.Missing = true, "post_install.property_lookup_method"
	}
	return e
}

// property finds the value that an installation supplies, or the login found.
func (c *Caller) property(d *definition.Connector, cred *credentials.Credential, kind, name string) (any, bool) {
	s := &cred.Secrets
	decode := func(raw json.RawMessage) (any, bool) {
		v, err := jsontree.Decode(raw)
		return v, err == nil && v != nil
	}
	switch kind {
	case "partner":
		if raw, ok := c.cfg.Partner[d.Name].Properties[name]; ok {
			return decode(raw)
		}
		return nil, false
	case "session":
		if v, ok := s.Session[name]; ok && v != "" {
			return v, true
		}
	}
	if raw, ok := s.Properties[name]; ok {
		return decode(raw)
	}
	if kind == "account" && s.HasBasic {
		switch name {
		case "username":
			return s.Username, true
		case "password":
			return s.Password.Reveal(), true
		}
	}
	return nil, false
}

// look resolves merge fields from parameters, the credential and the system.
func (x *exchange) look(name string) (v any, known, foreign bool) {
	if v, known, foreign := x.pageField(name); known {
		return v, known, foreign
	}
	if q := x.parameter(name); q != nil {
		v, ok := x.params[q.Name]
		if !ok && q.Property == "session" && x.wanted == nil && x.needs(q) {
			x.wanted = q
		}
		return v, true, x.step[q.Name]
	}
	if x.m.IsLogin && slices.Contains(x.d.SessionNames, name) {
		return nil, true, false
	}
	if v, known, foreign := x.system(name); known {
		return v, true, foreign
	}
	return x.c.systemField(x.d, x.cred, name)
}

// systemField is what no parameter declares: the credential's secrets, and its
// other properties.
func (c *Caller) systemField(d *definition.Connector, cred *credentials.Credential, name string) (v any, known, foreign bool) {
	s := &cred.Secrets
	text := ""
	known = slices.Contains(mergefields.OfCredential, name) || slices.Contains(mergefields.OfAccount, name)
	switch name {
	case "AccountId":
		text = cred.AccountID
	case "AccountExternalId":
		text = cred.ExternalAccountID
	case "username", "Cyclr_Auth_Username":
		text = s.Username
	case "password", "Cyclr_Auth_Password":
		text = s.Password.Reveal()
	case "api_key", "Cyclr_Auth_ApiKey":
		text = s.APIKey.Reveal()
	case "client_id":
		text, _ = c.clientOf(d, cred)
	case "client_secret":
		_, text = c.clientOf(d, cred)
	case "access_token":
		if s.OAuth2 != nil {
			text = s.OAuth2.AccessToken.Reveal()
		}
	}
	if text == "" && slices.ContainsFunc(d.Auth.Fields, func(f definition.AuthField) bool { return f.Name == name }) {
		text, known = s.Fields[name].Reveal(), true
	}
	if text != "" {
		return text, true, false
	}
	if v, ok := c.property(d, cred, "", name); ok {
		return v, true, false
	}
	return nil, known, false
}

// Account properties that are a client of the account's own.
const (
	clientIDProperty     = "ClientId"
	clientSecretProperty = "ClientSecret"
)

// clientOf is the client id and secret: the credential's, be they among its
// properties, else the partner's.
func (c *Caller) clientOf(d *definition.Connector, cred *credentials.Credential) (id, secret string) {
	p := c.cfg.Partner[d.Name]
	own := func(name string) string {
		v, _ := c.property(d, cred, "account", name)
		text, _ := jsontree.Text(v)
		return text
	}
	id = cmp.Or(cred.Secrets.ClientID, own(clientIDProperty), p.ClientID)
	secret = cmp.Or(cred.Secrets.ClientSecret.Reveal(), own(clientSecretProperty), p.ClientSecret)
	return id, secret
}

// fromMerge looks in method_request_mergefields as scripts left them, then as look does.
func (x *exchange) fromMerge() (mergefields.Lookup, error) {
	var now map[string]json.RawMessage
	if len(x.merge) > 0 && json.Unmarshal(x.merge, &now) != nil {
		return nil, &CallError{Kind: "script", Message: "before_action left method_request_mergefields that are no object"}
	}
	before := x.mergeFields()
	return func(name string) (any, bool, bool) {
		raw, ok := now[name]
		if !ok {
			return x.look(name)
		}
		v, err := jsontree.Decode(raw)
		if err != nil {
			return nil, true, true
		}
		if old, ok := before.Values[name]; ok {
			a, _ := jsontree.Marshal(old)
			b, _ := jsontree.Marshal(v)
			if bytes.Equal(a, b) {
				return x.look(name)
			}
		}
		return v, true, true // a script's: as foreign as a step's
	}, nil
}

func (x *exchange) mergeFields() *jsontree.Object {
	m := &jsontree.Object{Values: map[string]any{}}
	for i := range x.m.Parameters {
		if q := &x.m.Parameters[i]; q.Target == "merge_field" {
			if v, ok := x.params[q.Name]; ok {
				m.Set(q.Wire(), v)
			}
		}
	}
	return m
}

// prepare makes what before_action sees, from the pristine input.
func (x *exchange) prepare() error {
	if x.m.Type == definition.TypeAction {
		x.template = joinURL(x.d.BaseURL, x.m.Endpoint, x.look)
		home, err := x.originOf(x.template)
		if err != nil {
			if len(x.missing) > 0 { // which no script can put into a host
				return x.missing[0].error()
			}
			return err
		}
		x.homes = []string{home}
		if x.book.Next != "" { // it is the API's, so it is data: it names no merge field
			x.template = x.book.Next
		}
		x.endpoint = x.template
	}
	wanted := x.wanted
	if base, err := x.originOf(x.d.BaseURL); err == nil {
		x.homes = append(x.homes, base)
	}
	x.wanted = wanted // the base is not what is sent
	session := &jsontree.Object{Values: map[string]any{}}
	for _, name := range x.d.SessionNames {
		if v, ok := x.c.property(x.d, x.cred, "session", name); ok && !x.m.IsLogin {
			session.Set(name, v)
		}
	}
	query, script := &jsontree.Object{}, &jsontree.Object{}
	headers, err := x.ownHeaders(x.look)
	if err != nil {
		return err
	}
	for i := range x.m.Parameters {
		q := &x.m.Parameters[i]
		v, ok := x.params[q.Name]
		if !ok {
			continue
		}
		switch q.Target {
		case "http_header":
			headers.Set(q.Wire(), v)
		case "query_string":
			if x.book.Next == "" { // it is complete
				query.Set(q.Wire(), v)
			}
		case "script", "index":
			script.Set(q.Wire(), v)
		}
	}
	if v, known, _ := x.system(mergefields.WebhookID); known && v != nil && !x.queries(mergefields.WebhookID) {
		query.Set(mergefields.WebhookID, v) // for scripts: request leaves it out
	}
	if x.body, err = x.pristineBody(x.look); err != nil {
		return err
	}
	for into, m := range map[*json.RawMessage]*jsontree.Object{&x.headers: headers, &x.query: query, &x.scriptPar: script, &x.merge: x.mergeFields(), &x.session: session} {
		if *into, err = jsontree.Marshal(m); err != nil {
			return err
		}
	}
	if x.m.Type == definition.TypeWebhook {
		return x.inbound()
	}
	return nil
}

// queries says that a parameter of the method makes a query parameter of that
// name.
func (x *exchange) queries(name string) bool {
	return slices.ContainsFunc(x.m.Parameters, func(q definition.Parameter) bool { return q.Target == "query_string" && q.Wire() == name })
}

// ownHeaders are the connector's and the method's, filled.
func (x *exchange) ownHeaders(look mergefields.Lookup) (*jsontree.Object, error) {
	headers := &jsontree.Object{}
	for _, hs := range []map[string]string{x.d.Headers, x.m.Headers} {
		for _, k := range slices.Sorted(maps.Keys(hs)) {
			v, ok, err := mergefields.Text(hs[k], look)
			if err != nil {
				return nil, err
			}
			if ok {
				headers.Set(k, v)
			}
		}
	}
	return headers, nil
}

// ownBody is the method's, filled; nil without.
func (x *exchange) ownBody(look mergefields.Lookup) (json.RawMessage, error) {
	if !x.m.HasBody {
		return nil, nil
	}
	tree, ok, err := mergefields.Tree(x.m.Body, look)
	if err != nil || !ok {
		return nil, err
	}
	return jsontree.Marshal(tree)
}

// originOf is the scheme and host of a template, as connector, credential and
// partner settings fill it.
func (x *exchange) originOf(template string) (string, error) {
	raw, err := mergefields.URL(template, func(name string) (any, bool, bool) {
		v, known, foreign := x.look(name)
		if foreign || known && v == nil { // only scheme and host count here
			return "2000-01-01", known, foreign // that fits everywhere, as a date too
		}
		return v, known, foreign
	})
	if err != nil {
		return "", err
	}
	return origin(raw)
}

// joinURL puts one slash between base and endpoint; an absolute endpoint
// stands alone. One that begins with a merge field is absolute if the field's
// value is, and no step's.
func joinURL(base, endpoint string, look mergefields.Lookup) string {
	begin := endpoint
	if parts, err := mergefields.Split(endpoint); err == nil && len(parts) > 0 && parts[0].Name != "" {
		v, _, foreign := look(parts[0].Name)
		if begin, _ = jsontree.Text(v); foreign {
			begin = ""
		}
	}
	if strings.HasPrefix(begin, "http://") || strings.HasPrefix(begin, "https://") || base == "" {
		return endpoint
	}
	if endpoint == "" {
		return base
	}
	if strings.HasPrefix(endpoint, "?") {
		return strings.TrimRight(base, "/") + endpoint
	}
	return strings.TrimRight(base, "/") + "/" + strings.TrimLeft(endpoint, "/")
}

func origin(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return "", &CallError{Kind: "input", Message: "the method's URL is not an absolute http or https URL"}
	}
	return originOf(u), nil
}

// originOf is scheme, host and port, the scheme's own port left out.
func originOf(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + host
}

// mayReceive says whether a URL may receive the connector's authentication:
// the connector's own hosts, and those of auth.hosts unless that would take
// it from https to http.
func (x *exchange) mayReceive(u *url.URL) bool {
	at := originOf(u)
	if slices.Contains(x.homes, at) || x.target != "" && at == x.target {
		return true
	}
	for _, home := range x.homes {
		if strings.HasPrefix(home, "https:") && !strings.HasPrefix(at, "https:") {
			return false
		}
	}
	return slices.Contains(x.d.Auth.Hosts, strings.ToLower(u.Host)) || slices.Contains(x.d.Auth.Hosts, strings.ToLower(u.Hostname()))
}

// urlParts cuts the URL's template. What a script left of it at its beginning
// and end is the connector's own. What it wrote between may hold what a step
// or an API brought: there no text can name a secret, only merge-field
// parameters that are not sensitive count.
func (x *exchange) urlParts() ([]mergefields.Part, error) {
	if x.book.Next != "" {
		return []mergefields.Part{{Text: x.endpoint}}, nil
	}
	if x.endpoint == x.template {
		return mergefields.Split(x.template)
	}
	head, tail := unchanged(x.template, x.endpoint)
	first, err := mergefields.Split(x.template[:head])
	if err != nil {
		return nil, err
	}
	last, err := mergefields.Split(x.template[len(x.template)-tail:])
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	var written map[string]json.RawMessage
	_ = json.Unmarshal(x.merge, &written) // fromMerge has read it
	for name := range written {
		named[name] = true
	}
	for i := range x.m.Parameters {
		if q := &x.m.Parameters[i]; q.Target == "merge_field" {
			named[q.Name], named[q.Wire()] = true, true
		}
	}
	for i := range x.m.Parameters {
		if q := &x.m.Parameters[i]; q.Property == "session" || q.Sensitive {
			delete(named, q.Name)
			delete(named, q.Wire())
		}
	}
	for _, name := range mergefields.OfCredential {
		delete(named, name)
	}
	middle := mergefields.SplitNamed(x.endpoint[head:len(x.endpoint)-tail], named)
	return slices.Concat(first, middle, last), nil
}

// unchanged is how much of a template stands at the beginning and at the end
// of what became of it, whole merge fields only.
func unchanged(template, now string) (head, tail int) {
	for head < len(template) && head < len(now) && template[head] == now[head] {
		head++
	}
	if open := strings.LastIndex(template[:head], "{{"); open >= 0 && !strings.Contains(template[open:head], "}}") {
		head = open
	}
	rest, left := template[head:], now[head:]
	for tail < len(rest) && tail < len(left) && rest[len(rest)-1-tail] == left[len(left)-1-tail] {
		tail++
	}
	end := rest[len(rest)-tail:]
	if closed := strings.Index(end, "}}"); closed >= 0 && !strings.Contains(end[:closed], "{{") {
		tail -= closed + 2
	}
	return head, tail
}

// request builds the HTTP request from what before_action left.
func (x *exchange) request(ctx context.Context) (*http.Request, error) {
	look, err := x.fromMerge()
	if err != nil {
		return nil, err
	}
	parts, err := x.urlParts()
	if err != nil {
		return nil, err
	}
	raw, err := mergefields.FillURL(parts, look)
	if err != nil {
		return nil, err
	}
	target, err := origin(raw)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, &CallError{Kind: "input", Message: "the method's URL cannot be read"}
	}
	if !x.mayReceive(u) {
		return nil, &CallError{Kind: "input", Message: fmt.Sprintf("the URL leads to host %q, which is neither the connector's nor in auth.hosts", u.Host)}
	}
	x.target, x.endpoint = target, raw // which the later events see
	query, err := formPairs(x.query)
	if err != nil {
		return nil, &CallError{Kind: "script", Message: "before_action left method_request_parameters that are no object"}
	}
	if !x.queries(mergefields.WebhookID) {
		query = slices.DeleteFunc(query, func(p [2]string) bool { return p[0] == mergefields.WebhookID })
	}
	if len(query) > 0 {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += query.encode()
	}
	header := http.Header{}
	if err := setHeaders(header, x.headers); err != nil {
		return nil, err
	}
	x.sentURL = u.String()
	body, contentType, err := x.authenticatedBody(header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	x.timeout = x.c.cfg.CallTimeout
	if x.m.Timeout > 0 {
		x.timeout = x.m.Timeout
	}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(withPurpose(ctx, "method "+x.m.Name), x.m.Verb, u.String(), reader)
	if err != nil {
		return nil, &CallError{Kind: "input", Message: "the request cannot be built"}
	}
	req.Header = header
	if body != nil && contentType != "" {
		header.Set("Content-Type", contentType)
	}
	if accept := accepts(x.m); header.Get("Accept") == "" && accept != "" {
		header.Set("Accept", accept)
	}
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", "stepworker")
	}
	if x.m.Idempotency != "" && x.call.ExecutionID != "" && header.Get(x.m.Idempotency) == "" {
		header.Set(x.m.Idempotency, x.idempotencyKey())
	}
	if host := header.Get("Host"); host != "" {
		return nil, &CallError{Kind: "input", Message: "a Host header cannot be set: the URL says the host"}
	}
	if !x.m.IgnoreAuth {
		if err := x.c.authenticate(x.d, x.cred, req); err != nil {
			return nil, err
		}
	}
	return req, nil
}

// idempotencyKey names the request to an API that ignores a repeated one: the
// execution, and the page if it is not the first. No execution id holds a tilde,
// so that it is no other execution's.
func (x *exchange) idempotencyKey() string {
	if x.book.Page > 1 {
		return fmt.Sprintf("%s~%d", x.call.ExecutionID, x.book.Page)
	}
	return x.call.ExecutionID
}

// authenticate adds the connector's authentication, unless a script set it.
func (c *Caller) authenticate(d *definition.Connector, cred *credentials.Credential, req *http.Request) error {
	s := &cred.Secrets
	switch d.Auth.Type {
	case "api_key":
		if s.APIKey.Empty() {
			return lacks(d, "api_key")
		}
		switch {
		case d.Auth.In == "body": // keyInBody
		case d.Auth.In == "query":
			q := pairs{{d.Auth.Name, d.Auth.Prefix + s.APIKey.Reveal()}}.encode()
			if req.URL.RawQuery != "" {
				q = req.URL.RawQuery + "&" + q
			}
			req.URL.RawQuery = q
		case !has(req.Header, d.Auth.Name):
			return setHeader(req.Header, d.Auth.Name, d.Auth.Prefix+s.APIKey.Reveal())
		}
	case "basic":
		if !s.HasBasic {
			return lacks(d, "basic user name and password")
		}
		if !has(req.Header, "Authorization") {
			req.SetBasicAuth(s.Username, s.Password.Reveal())
		}
	case "oauth1":
		if has(req.Header, "Authorization") {
			return nil
		}
		signer, err := c.signerOf(d, cred)
		if err != nil {
			return err
		}
		return signer.attach(req)
	case "oauth2":
		if s.OAuth2 == nil || s.OAuth2.AccessToken.Empty() {
			return &AuthError{Kind: credentials.OAuth2, Version: cred.Version, Unsent: true, Text: "there is no token yet"}
		}
		if !has(req.Header, "Authorization") {
			return setHeader(req.Header, "Authorization", "Bearer "+s.OAuth2.AccessToken.Reveal())
		}
	}
	return nil
}

func lacks(d *definition.Connector, what string) error {
	return &CallError{Kind: "input", Message: fmt.Sprintf("the credential has no %s, which auth type %s needs", what, d.Auth.Type)}
}

// has says that a header is there, empty or not.
func has(h http.Header, name string) bool { return len(h.Values(name)) > 0 }

func setHeader(h http.Header, name, value string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return &CallError{Kind: "input", Message: fmt.Sprintf("%q is no header name", clip(name, 60))}
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		return &CallError{Kind: "input", Message: fmt.Sprintf("header %q: a line break, or another control character, cannot stand in a header", clip(name, 60))}
	}
	h.Set(name, value)
	return nil
}

func setHeaders(h http.Header, raw json.RawMessage) error {
	v, err := jsontree.Decode(raw)
	m, ok := v.(*jsontree.Object)
	if err != nil || !ok {
		return &CallError{Kind: "script", Message: "before_action left method_request_headers that are no object"}
	}
	for _, k := range m.Keys {
		list, ok := m.Values[k].([]any)
		if !ok {
			list = []any{m.Values[k]}
		}
		for i, item := range list {
			text, ok := jsontree.Text(item)
			if !ok {
				continue
			}
			if i == 0 {
				if err := setHeader(h, k, text); err != nil {
					return err
				}
			} else if err := setHeader(http.Header{}, k, text); err != nil {
				return err
			} else {
				h.Add(k, text)
			}
		}
	}
	return nil
}

// pairs are a form's or query's names and values, in order.
type pairs [][2]string

func (p pairs) encode() string {
	var b strings.Builder
	for i, kv := range p {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(mergefields.Escape(kv[0]) + "=" + mergefields.Escape(kv[1]))
	}
	return b.String()
}

// formPairs: a list of scalars repeats its name, anything deeper is its JSON
// text, null is left out, "" is sent empty.
func formPairs(raw json.RawMessage) (pairs, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	v, err := jsontree.Decode(raw)
	if err != nil {
		return nil, err
	}
	m, ok := v.(*jsontree.Object)
	if !ok {
		return nil, fmt.Errorf("an object is needed")
	}
	var out pairs
	for _, k := range m.Keys {
		switch value := m.Values[k].(type) {
		case nil:
		case []any:
			flat := true
			for _, e := range value {
				switch e.(type) {
				case []any, *jsontree.Object:
					flat = false
				}
			}
			if !flat {
				text, _ := jsontree.Text(value)
				out = append(out, [2]string{k, text})
				continue
			}
			for _, e := range value {
				if text, ok := jsontree.Text(e); ok {
					out = append(out, [2]string{k, text})
				}
			}
		default:
			text, _ := jsontree.Text(value)
			out = append(out, [2]string{k, text})
		}
	}
	return out, nil
}

// globals are what an event's scripts see.
func (x *exchange) globals(event string) []hooks.Global {
	g := make([]hooks.Global, 0, 28)
	add := func(name string, raw json.RawMessage, write bool) {
		g = append(g, hooks.Global{Name: name, JSON: raw, Write: write})
	}
	lazy := func(name string, write bool, value func() json.RawMessage) {
		g = append(g, hooks.Global{Name: name, Make: value, Write: write})
	}
	text := func(name, value string, write bool) {
		lazy(name, write, func() json.RawMessage { return jsontree.Quote(value) })
	}
	before := event == "before_action"
	after := event == "after_action" || event == "after_action_paging" || event == "action_condition"
	body := x.body
	if body == nil {
		body = json.RawMessage("null")
	}
	add("method_request", body, before)
	g = append(g, hooks.Global{Name: "method_request_headers", JSON: x.headers, Write: before, Headers: true})
	add("method_request_parameters", x.query, before)
	add("method_request_mergefields", x.merge, true)
	text("method_endpoint", x.endpoint, before)
	text("method_name", x.m.Name, false)
	add("action_data", x.actionData, true)
	// A session is never taken from a step.
	g = append(g, hooks.Global{Name: "session_properties", JSON: x.session, Write: true, NotStep: true})
	add("script_parameters", x.scriptPar, false)
	lazy("method_auth_value", false, func() json.RawMessage { return x.c.authValue(x.d, x.cred) })
	if after {
		content := x.content
		if content == nil {
			content = json.RawMessage(`""`)
		}
		add("method_response", content, event != "action_condition")
		g = append(g, hooks.Global{Name: "method_response_headers", Headers: true, Make: func() json.RawMessage { return headersJSON(x.resHead) }})
		text("reasonPhrase", x.reason, false)
	}
	if event == "after_error" {
		g = append(g, hooks.Global{Name: "method_error", JSON: x.methodError, Write: true, HeadersIn: "headers"})
	}
	status := json.RawMessage("null")
	if x.status != 0 {
		status = strconv.AppendInt(nil, int64(x.status), 10)
	}
	add("statusCode", status, false)
	lazy("cycle_variables", false, func() json.RawMessage {
		variables := x.call.Cycle.Variables
		if raw, err := jsontree.Marshal(variables); err == nil && variables != nil {
			return raw
		}
		return json.RawMessage(`{}`)
	})
	g = append(g, x.placeGlobals()...)
	if x.m.Type == definition.TypeWebhook {
		g = append(g, x.webhookGlobals(event)...)
	}
	if event == "after_action_paging" {
		add("next_last_successful_run_date", nil, true)
	}
	return g
}

// placeGlobals say where in the world a script runs.
func (x *exchange) placeGlobals() []hooks.Global {
	cy := &x.call.Cycle
	g := []hooks.Global{{Name: "method_response_fields", Make: x.responseFields}, {Name: "method_response_fields_in_use", Make: x.fieldsInUse}}
	for _, t := range [][2]string{
		{"cycle_id", cy.CycleID}, {"cycle_step_id", cy.CycleStepID}, {"transaction_id", cy.TransactionID},
		{"cyclr_account_id", x.cred.AccountID}, {"external_account_id", x.cred.ExternalAccountID},
		{"script_execution_context", x.context()}, {"last_successful_run_date", dates.Text(x.lastRun())},
	} {
		g = append(g, hooks.Global{Name: t[0], Make: func() json.RawMessage { return jsontree.Quote(t[1]) }})
	}
	return g
}

// executionContext is script_execution_context where a step runs.
const executionContext = "RUNNING_TRANSACTION"

// authValue is method_auth_value: the key, the Basic text, the access token, of
// OAuth 1.0a the token; of auth_fields the fields as JSON text.
func (c *Caller) authValue(d *definition.Connector, cred *credentials.Credential) json.RawMessage {
	s := &cred.Secrets
	switch {
	case d.Auth.Type == "api_key":
		return jsontree.Quote(s.APIKey.Reveal())
	case d.Auth.Type == "basic":
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(s.Username, s.Password.Reveal())
		return jsontree.Quote(strings.TrimPrefix(r.Header.Get("Authorization"), "Basic "))
	case d.Auth.Type == definition.AuthFields:
		return fieldsValue(d, cred)
	case d.Auth.Type == "oauth1" && s.OAuth1 != nil:
		return jsontree.Quote(s.OAuth1.Token.Reveal())
	case d.Auth.Type == "oauth2" && s.OAuth2 != nil:
		return jsontree.Quote(s.OAuth2.AccessToken.Reveal())
	}
	return json.RawMessage("null")
}
