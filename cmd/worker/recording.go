package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/tools/txtar"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/jobs"
)

// recording is a try as a txtar file that people can read, write and share:
// what was called, each request and its answer, and what came of it. Secrets
// stand in it as placeholders. All but the answers may be left out.
type recording struct {
	try        string // a recordedTry as JSON
	credential string // as `credential put` reads it
	partner    string // one connector's partner settings
	script     string // the step's
	exchanges  []recordedExchange
	want       string // an outcome as JSON
}

type recordedTry struct {
	Connector  string                     `json:"connector"`
	Method     string                     `json:"method"`
	Parameters map[string]json.RawMessage `json:"parameters,omitempty"`
	Body       json.RawMessage            `json:"body,omitempty"`
	Webhook    *jobs.Webhook              `json:"webhook,omitempty"`
	Cycle      *jobs.Cycle                `json:"cycle,omitempty"`
	InUse      []string                   `json:"fields_in_use,omitempty"`
	NoRefresh  string                     `json:"no_refresh,omitempty"` // why a dead credential was not renewed
}

// recordedExchange is a request and its answer, each a message as HTTP/1.1
// writes it (RFC 9112 section 2).
type recordedExchange struct {
	number            int
	request, response string
}

// outcome is the result of a try, as far as it does not depend on when it was.
type outcome struct {
	Status          jobs.Status         `json:"status"`
	Exit            *bool               `json:"exit,omitempty"`
	StatusCode      int                 `json:"status_code,omitempty"`
	Content         json.RawMessage     `json:"content,omitempty"`
	ContentEncoding string              `json:"content_encoding,omitempty"`
	Fields          json.RawMessage     `json:"fields,omitempty"`
	Pages           int                 `json:"pages,omitempty"`
	Webhook         *jobs.WebhookResult `json:"webhook,omitempty"`
	Attempts        int                 `json:"attempts"`
	Refreshes       int                 `json:"refreshes"`
	Error           *jobs.ResultError   `json:"error,omitempty"`
}

var exchangeName = regexp.MustCompile(`^([1-9][0-9]*)\.(request|response)$`)

// readRecording reads a recording strictly.
func readRecording(file string) (*recording, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", file)
	}
	r := &recording{}
	exchanges := map[int]*recordedExchange{}
	sections := map[string]*string{"try": &r.try, "credential": &r.credential, "partner": &r.partner, "script.js": &r.script, "want": &r.want}
	seen := map[string]bool{}
	for _, f := range txtar.Parse(raw).Files {
		if seen[f.Name] {
			return nil, fmt.Errorf("%s: section %q stands there twice", file, f.Name)
		}
		seen[f.Name] = true
		m := exchangeName.FindStringSubmatch(f.Name)
		into := sections[f.Name]
		switch {
		case m != nil:
			n, _ := strconv.Atoi(m[1])
			e := exchanges[n]
			if e == nil {
				e = &recordedExchange{number: n}
				exchanges[n] = e
			}
			if text := strings.TrimSuffix(string(f.Data), "\n"); m[2] == "request" {
				e.request = text
			} else {
				e.response = text
			}
		case into != nil:
			*into = string(f.Data)
		default:
			return nil, fmt.Errorf("%s: unknown section %q: there are try, credential, partner, script.js, 1.request, 1.response, … and want", file, f.Name)
		}
	}
	for i, n := range slices.Sorted(maps.Keys(exchanges)) {
		e := exchanges[n]
		if n != i+1 {
			return nil, fmt.Errorf("%s: section %d.request or %d.response is missing: exchanges are numbered from 1", file, i+1, i+1)
		}
		if e.response == "" {
			return nil, fmt.Errorf("%s: section %d.response is missing", file, n)
		}
		r.exchanges = append(r.exchanges, *e)
	}
	return r, nil
}

// write writes the recording, only for its owner to read: what a hand has to
// look over before it is shared.
func (r *recording) write(file string) error {
	ar := &txtar.Archive{Comment: []byte("Recorded by worker try. Secrets are placeholders; look through it before you share it.\n")}
	add := func(name, text string) {
		if text != "" {
			ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(text + "\n")})
		}
	}
	add("try", r.try)
	add("credential", r.credential)
	add("partner", r.partner)
	add("script.js", strings.TrimSuffix(r.script, "\n"))
	for _, e := range r.exchanges {
		add(fmt.Sprintf("%d.request", e.number), e.request)
		add(fmt.Sprintf("%d.response", e.number), e.response)
	}
	add("want", r.want)
	return writeAtomically(file, txtar.Format(ar))
}

// unrecorded are headers that say nothing a replay could compare: the lengths
// and dates of one day, and how the connection went.
var unrecorded = []string{"Content-Length", "Date", "Connection", "Keep-Alive", "Transfer-Encoding", "Age", "User-Agent"}

// record writes an exchange as messages, its secrets hidden.
func (e *exchange) record(number int, names *secretNames) recordedExchange {
	r, hide := recordedExchange{number: number}, names.hide
	ofBody := hide
	if strings.HasPrefix(e.header.Get("Content-Type"), formType) {
		ofBody = names.hideForm
	}
	header, body := steady(e.header, string(e.body))
	r.request = e.method + " " + names.hideForm(e.url) + "\n" + message(header, []byte(plainLines(header, body)), hide, ofBody)
	if e.fault != nil {
		r.response = "no answer: " + hide(faultText(e.fault))
		return r
	}
	r.response = "HTTP/1.1 " + hide(e.status) + "\n" + message(e.resHeader, e.resBody, hide, hide)
	return r
}

// base64Body marks a body that is no text (RFC 2045 section 6.1).
const base64Body = "Content-Transfer-Encoding"

const formType = "application/x-www-form-urlencoded"

func message(h http.Header, body []byte, hide, ofBody func(string) string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[k] {
			shown := hide(v)
			if slices.Contains(unrecorded, k) || k == "Authorization" && (!strings.Contains(shown, "{{") || strings.Contains(shown, "oauth_signature=")) {
				continue // a signature, or perhaps one: of this one request
			}
			fmt.Fprintf(&b, "%s: %s\n", k, shown)
		}
	}
	text := ofBody(string(body))
	if !utf8.ValidString(text) || strings.Contains("\n"+text, "\n-- ") || strings.Contains(text, "\r") {
		fmt.Fprintf(&b, "%s: base64\n", base64Body)
		text = base64.StdEncoding.EncodeToString([]byte(text))
	}
	return b.String() + "\n" + text
}

var headerLine = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*)$")

// parseMessage reads what follows a message's first line. A body is told from
// headers by the blank line before it, or by its looks.
func parseMessage(text string) (h http.Header, body string, hasBody bool, err error) {
	h = http.Header{}
	for text != "" {
		line, rest, more := strings.Cut(text, "\n")
		m := headerLine.FindStringSubmatch(strings.TrimSuffix(line, "\r"))
		if m == nil {
			if strings.TrimSpace(line) == "" {
				text, hasBody = rest, more
			} else {
				hasBody = true
			}
			break
		}
		h.Add(m[1], m[2])
		text = rest
	}
	if h.Get(base64Body) == "base64" {
		h.Del(base64Body)
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil {
			return nil, "", false, fmt.Errorf("its body is not base64, as %s says", base64Body)
		}
		text = string(raw)
	}
	return h, text, hasBody, nil
}

// asPut is a credential as `put` reads it.
func asPut(c *credentials.Credential) map[string]any {
	s := &c.Secrets
	in := map[string]any{"credential_id": c.ID, "connector": c.Connector}
	for name, value := range map[string]string{"account_id": c.AccountID, "external_account_id": c.ExternalAccountID, "authentication": c.Authentication,
		"client_id": s.ClientID, "client_secret": s.ClientSecret.Reveal(), "api_key": s.APIKey.Reveal(), "private_key": s.PrivateKey.Reveal()} {
		if value != "" {
			in[name] = value
		}
	}
	if s.HasBasic {
		in["basic"] = map[string]string{"username": s.Username, "password": s.Password.Reveal()}
	}
	if len(s.Fields) > 0 {
		fields := map[string]string{}
		for k, v := range s.Fields {
			fields[k] = v.Reveal()
		}
		in["fields"] = fields
	}
	if o := s.OAuth1; o != nil {
		in["oauth1"] = map[string]string{"consumer_key": o.ConsumerKey, "consumer_secret": o.ConsumerSecret.Reveal(),
			"token": o.Token.Reveal(), "token_secret": o.TokenSecret.Reveal(), "realm": o.Realm}
	}
	if t := s.OAuth2; t != nil {
		in["oauth2"] = map[string]string{"access_token": t.AccessToken.Reveal(), "refresh_token": t.RefreshToken.Reveal()}
	}
	properties := map[string]any{}
	for k, v := range s.Properties {
		properties[k] = v
	}
	for k, v := range s.Session {
		properties[k] = v
	}
	if len(properties) > 0 {
		in["properties"] = properties
	}
	return in
}

// partnerJSON is one connector's partner settings; nil if there are none.
func partnerJSON(p definition.PartnerSettings) json.RawMessage {
	if p.ClientID == "" && p.ClientSecret == "" && p.PrivateKey.Empty() && len(p.Properties) == 0 {
		return nil
	}
	return compact(map[string]any{"client_id": p.ClientID, "client_secret": p.ClientSecret, "private_key": p.PrivateKey.Reveal(), "properties": p.Properties})
}

// wordOf are members that say nothing by themselves: session.id, token.value.
var wordOf = regexp.MustCompile(`(?i)^(id|key|value|hash|code|#text)$`)

// likelySecrets are what an answer holds that looks secret and that nobody has
// named: cookies, and members of JSON or XML whose names say so.
func (e *exchange) likelySecrets() (all []connectors.NamedSecret) {
	for _, line := range e.resHeader.Values("Set-Cookie") {
		pair, _, _ := strings.Cut(line, ";")
		if k, v, ok := strings.Cut(pair, "="); ok {
			all = append(all, connectors.NamedSecret{Name: "cookie." + strings.TrimSpace(k), Value: strings.TrimSpace(v)})
		}
	}
	var look func(name string, v any)
	look = func(name string, v any) {
		switch x := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(x)) {
				if of := name + "." + k; wordOf.MatchString(k) && secretName.MatchString(name) {
					look(of, x[k])
				} else {
					look(k, x[k])
				}
			}
		case []any:
			for _, e := range x {
				look(name, e)
			}
		case string:
			_, isTime := credentials.ParseExpiry(x)
			if len(x) >= 8 && secretName.MatchString(name) && !isTime && !strings.Contains(x, "://") && !strings.Contains(x, " ") {
				all = append(all, connectors.NamedSecret{Name: name, Value: x})
			}
		}
	}
	raw := e.resBody
	if text, binary := connectors.DecodeText(raw, e.resHeader.Get("Content-Type")); !binary {
		if of, err := hooks.XMLToJSON(text); err == nil {
			raw = of
		}
	}
	if v, err := decode(raw); err == nil {
		look("", v)
	}
	return all
}
