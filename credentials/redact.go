package credentials

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// Redactor masks secrets in text: plain, URL-encoded (either case, either
// space), JSON-escaped, and base64, also inside a longer encoded text.
type Redactor struct{ r *strings.Replacer }

// NewRedactor masks every secret of at least min bytes.
func NewRedactor(secrets []string, min int) *Redactor {
	forms := map[string]bool{}
	for _, s := range secrets {
		if len(s) < min || s == "" {
			continue
		}
		for _, f := range encodings(s) {
			if len(f) >= min {
				forms[f] = true
			}
		}
	}
	if len(forms) == 0 {
		return &Redactor{}
	}
	all := make([]string, 0, len(forms))
	for f := range forms {
		all = append(all, f)
	}
	// The longest first, so that no part of one is left beside a mask.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(all))
	for _, f := range all {
		pairs = append(pairs, f, redacted)
	}
	return &Redactor{strings.NewReplacer(pairs...)}
}

func encodings(s string) []string {
	q, p := url.QueryEscape(s), url.PathEscape(s)
	js, _ := json.Marshal(s)
	escaped := string(js[1 : len(js)-1])
	var plainJSON bytes.Buffer
	enc := json.NewEncoder(&plainJSON)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)
	unescaped := strings.TrimSuffix(plainJSON.String(), "\n")
	forms := []string{s, q, p, strings.ReplaceAll(q, "+", "%20"), lowerHex(q), lowerHex(p), lowerHex(strings.ReplaceAll(q, "+", "%20")),
		escaped, unescaped[1 : len(unescaped)-1], strings.ReplaceAll(escaped, "/", `\/`)}
	// Inside a longer text the secret begins at any of three places of a
	// base64 group; the characters at its ends depend on its neighbours.
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			whole := e.EncodeToString(append(make([]byte, shift), s...))
			from := (shift*8 + 5) / 6
			to := (shift + len(s)) * 8 / 6
			forms = append(forms, whole[from:to])
		}
	}
	return forms
}

func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// String masks text.
func (r *Redactor) String(s string) string {
	if r == nil || r.r == nil {
		return s
	}
	return r.r.Replace(s)
}

// JSON masks a JSON value. What is masked stands inside strings, so the value
// stays JSON.
func (r *Redactor) JSON(raw json.RawMessage) json.RawMessage {
	if r == nil || r.r == nil || len(raw) == 0 {
		return raw
	}
	masked := json.RawMessage(r.r.Replace(string(raw)))
	if !json.Valid(masked) { // a number was a secret
		quoted, _ := json.Marshal(redacted)
		return quoted
	}
	return masked
}
