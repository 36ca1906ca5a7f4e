package main

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"sync"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

// minSecret is the length of the shortest secret that is masked: of a shorter
// one every other text would be full.
const minSecret = 6

// masker hides the secrets of credentials in what the dashboard shows.
type masker struct {
	store   *credentials.Store
	catalog *definition.Catalog
	caller  *connectors.Caller

	mu   sync.Mutex
	byID map[string]versioned // a redactor is dear to make, and pages are looked at again and again
}

type versioned struct {
	version   int64
	sensitive []definition.Parameter // of its connector
	secrets   []string
	redactor  *credentials.Redactor
}

const maskersMax = 1000

// of returns what hides the secrets of each of the credentials, in one round
// trip. Of one that is gone or cannot be opened the connector is not known: what
// any connector marks as sensitive is hidden then.
func (m *masker) of(ctx context.Context, ids []string) map[string]versioned {
	opened, err := m.store.GetMany(ctx, ids)
	if err != nil {
		opened = nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]versioned, len(opened))
	for id, c := range opened {
		v, ok := m.byID[id]
		if !ok || v.version != c.Version {
			v = versioned{version: c.Version, secrets: c.SecretValues()}
			if d, ok := m.catalog.Get(c.Connector); ok {
				v.sensitive, v.secrets = sensitive(d), m.caller.Secrets(d, c)
			}
			v.redactor = credentials.NewRedactor(v.secrets, minSecret)
			if len(m.byID) >= maskersMax {
				clear(m.byID)
			}
			m.byID[id] = v
		}
		out[id] = v
	}
	var unknown versioned
	for _, name := range m.catalog.Names() {
		d, _ := m.catalog.Get(name)
		unknown.sensitive = append(unknown.sensitive, sensitive(d)...)
	}
	unknown.redactor = credentials.NewRedactor(nil, minSecret)
	for _, id := range ids {
		if _, ok := out[id]; !ok {
			out[id] = unknown
		}
	}
	return out
}

// sensitive are the parameters that a connector marks so, its methods' too.
func sensitive(d *definition.Connector) []definition.Parameter {
	var marked []definition.Parameter
	add := func(all []definition.Parameter) {
		for _, q := range all {
			if q.Sensitive {
				marked = append(marked, q)
			}
		}
	}
	add(d.Parameters)
	for _, meth := range d.Methods {
		add(meth.Parameters)
	}
	return marked
}

// texts are a value's as they may stand in another text: those of a list or an
// object each by itself.
func texts(v any) (all []string) {
	switch v := v.(type) {
	case string:
		return []string{v}
	case json.Number:
		return []string{v.String()}
	case []any:
		for _, e := range v {
			all = append(all, texts(e)...)
		}
	case map[string]any:
		for _, e := range v {
			all = append(all, texts(e)...)
		}
	}
	return all
}

var secretName = regexp.MustCompile(`(?i)(password|passwd|secret|token|api_?key|authorization|credential$|session|cookie|private)`)

// mask makes JSON readable and hides members whose names say that they are
// secret: whatever their values are, texts or lists.
func mask(raw []byte) string {
	if len(raw) == 0 {
		return ""
	}
	v, err := decode(raw)
	if err != nil {
		return "[not JSON]"
	}
	return readable(maskValue(v))
}

func decode(raw []byte) (any, error) {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	err := dec.Decode(&v)
	return v, err
}

func readable(v any) string {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // it was decoded from JSON
	return strings.TrimSpace(out.String())
}

const redacted = "[redacted]"

func maskValue(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, m := range x {
			if m != nil && secretName.MatchString(k) && !credentials.IsSealed(m) { // that is opened first: it may stand elsewhere, too
				x[k] = redacted
			} else {
				x[k] = maskValue(m)
			}
		}
	case []any:
		for i := range x {
			x[i] = maskValue(x[i])
		}
	}
	return v
}

// redactText masks the secrets in a text that is JSON: in each text of it by
// itself, as one may be JSON in its turn, with escapes of its own.
func redactText(r *credentials.Redactor, text string) string {
	v, err := decode([]byte(text))
	if err != nil {
		return r.String(text)
	}
	return readable(redactValue(r, v))
}

func redactValue(r *credentials.Redactor, v any) any {
	switch x := v.(type) {
	case string:
		return r.String(x)
	case json.Number:
		if n := x.String(); r.String(n) != n {
			return redacted
		}
	case map[string]any:
		if credentials.IsSealed(x) {
			return redacted
		}
		for k, m := range x {
			if hidden := r.String(k); hidden != k {
				delete(x, k)
				k = hidden
			}
			x[k] = redactValue(r, m)
		}
	case []any:
		for i := range x {
			x[i] = redactValue(r, x[i])
		}
	}
	return v
}
