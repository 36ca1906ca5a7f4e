package connectors

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// Trace is told what scripts do in a Caller's calls and refreshes, as it is:
// whoever shows it hides the secrets. Its requests pass by Transport.
type Trace struct {
	// Event is told of each event that ran, when it has ended.
	Event func(TracedEvent)
	// Secret is told of what is secret and not the credential's yet: what a
	// token endpoint or a login answered, the sensitive values of a call.
	Secret func(NamedSecret)
}

// TracedEvent is one event of scripts.
type TracedEvent struct {
	Name    string
	Levels  []hooks.Level // that have a handler of that name, as far as their sources tell, in the order in which they run
	Changes []Change
	Logs    []string
	Result  json.RawMessage
	Err     error // a *hooks.Exception, *hooks.ScriptError, *hooks.LimitError or another
}

// Change is a global that is another value after an event; nil is undefined.
type Change struct {
	Name     string
	Old, New json.RawMessage
}

// NamedSecret is a text that must not be shown, and what it is.
type NamedSecret struct{ Name, Value string }

func (t *Trace) event(ev *hooks.Event, out *hooks.Outcome, err error) {
	if t == nil || err == nil && (out == nil || !out.Ran) {
		return
	}
	told := TracedEvent{Name: ev.Name, Levels: eventLevels(ev), Err: err}
	if out != nil {
		told.Logs, told.Result = out.Logs, out.Result
		for i := range ev.Globals {
			g := &ev.Globals[i]
			value, changed := out.Changed[g.Name]
			if !changed {
				continue
			}
			old := g.JSON
			if g.Make != nil {
				old = g.Make()
			}
			told.Changes = append(told.Changes, Change{g.Name, old, value})
		}
	}
	t.Event(told)
}

// eventLevels are the levels that have a handler of an event, as far as their
// sources tell, in the order in which they run.
func eventLevels(ev *hooks.Event) (levels []hooks.Level) {
	for i := range ev.Scripts {
		in := hooks.Inspect(&ev.Scripts[i])
		if in != nil && slices.ContainsFunc(in.Handlers, func(m hooks.Mention) bool { return m.Name == ev.Name }) {
			levels = append(levels, ev.Scripts[i].Level)
		}
	}
	hooks.SortLevels(ev.Name, levels)
	return levels
}

func (t *Trace) secret(name string, values ...string) {
	for _, v := range values {
		if t != nil && v != "" {
			t.Secret(NamedSecret{name, v})
		}
	}
}

func (t *Trace) secrets(found map[string]string) {
	if t == nil {
		return
	}
	names := make([]string, 0, len(found))
	for k := range found {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		t.secret(k, found[k])
	}
}

// tokens are the secrets of a token endpoint's answer.
func (t *Trace) tokens(answer map[string]json.RawMessage) {
	if t == nil {
		return
	}
	for _, k := range tokenMembers {
		t.secret(k, jsontree.TextIn(answer[k]))
	}
}

var tokenMembers = []string{"access_token", "refresh_token", "id_token"}

// NamedSecrets are Secrets with what each is: the credential's member, or the
// parameter or property of that name.
func (c *Caller) NamedSecrets(d *definition.Connector, cred *credentials.Credential) []NamedSecret {
	names := map[string]string{}
	name := func(n, value string) {
		if _, known := names[value]; !known {
			names[value] = n
		}
	}
	s := &cred.Secrets
	_, clientSecret := c.clientOf(d, cred)
	name("client_secret", clientSecret)
	name("api_key", s.APIKey.Reveal())
	name("password", s.Password.Reveal())
	name("private_key", c.privateKeyOf(d, cred).Reveal())
	if o := s.OAuth1; o != nil {
		name("consumer_secret", o.ConsumerSecret.Reveal())
		name("token", o.Token.Reveal())
		name("token_secret", o.TokenSecret.Reveal())
	}
	if t := s.OAuth2; t != nil {
		name("access_token", t.AccessToken.Reveal())
		name("refresh_token", t.RefreshToken.Reveal())
	}
	for k, v := range s.Session {
		name(k, v)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Fields)) {
		name(k, s.Fields[k].Reveal())
	}
	for _, sealed := range sealedOf(c.cfg.Partner[d.Name]) {
		name(sealed.Name, sealed.Value)
	}
	params := slices.Clone(d.Parameters)
	for _, m := range d.MethodNames {
		params = append(params, d.Methods[m].Parameters...)
	}
	for i := range params {
		q := &params[i]
		v, _ := c.property(d, cred, q.Property, q.Name)
		if text, ok := jsontree.Text(v); ok && (q.Sensitive || q.Property == "session") {
			name(q.Name, text)
		}
		if text, ok := jsontree.Text(q.Value); ok && q.Sensitive {
			name(q.Name, text)
		}
	}
	if s.HasBasic {
		names[s.Username+":"+s.Password.Reveal()] = "" // it holds the password, which has a name
	}
	var all []NamedSecret
	for _, v := range c.Secrets(d, cred) {
		n, known := names[v]
		if !known {
			n = "secret"
		}
		if n != "" && v != "" {
			all = append(all, NamedSecret{n, v})
		}
	}
	return all
}

// sealedOf are the values that were sealed, with their names.
func sealedOf(p definition.PartnerSettings) (all []NamedSecret) {
	for _, member := range p.Sealed {
		if name, ok := strings.CutPrefix(member, definition.PartnerProperty); ok {
			all = append(all, NamedSecret{name, jsontree.TextIn(p.Properties[name])})
		} else if member == "client_id" {
			all = append(all, NamedSecret{member, p.ClientID})
		}
	}
	return all
}

type purposeKey struct{}

// withPurpose notes what a request is for.
func withPurpose(ctx context.Context, purpose string) context.Context {
	return context.WithValue(ctx, purposeKey{}, purpose)
}

// PurposeOf is what a request that passes by Transport is for, in a few words.
func PurposeOf(ctx context.Context) string {
	purpose, _ := ctx.Value(purposeKey{}).(string)
	return purpose
}
