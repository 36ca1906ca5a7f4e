package connectors

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"

	"github.com/stepworker/stepworker/hooks"
)

// send makes the request and reads its answer. A fault is a request that got
// none; an answer over the cap is told by tooLarge.
func (x *exchange) send(req *http.Request) *fault {
	x.ran = true
	res, f := x.c.send(req, x.m.mayRepeat())
	if f != nil {
		return f
	}
	defer res.Body.Close()
	x.status, x.resHead = res.StatusCode, res.Header
	x.reason = strings.TrimSpace(strings.TrimPrefix(res.Status, fmt.Sprint(res.StatusCode)))
	if x.reason == "" {
		x.reason = http.StatusText(res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, x.c.cfg.MaxResponse+1))
	switch {
	case int64(len(body)) > x.c.cfg.MaxResponse:
		x.tooLarge = true
		body = body[:0]
	case err != nil:
		x.status = 0
		return describeFault(req.URL.Host, true, err)
	}
	x.resBody = body
	x.content, x.binary = parseBody(body, res.Header.Get("Content-Type"), x.m.ResponseDT)
	return nil
}

// parseBody turns an answer into what hooks see: by its own Content-Type, else
// by the method's data type. What does not parse is text, never a failure.
func parseBody(body []byte, contentType string, dt DataType) (json.RawMessage, bool) {
	if len(body) == 0 {
		return json.RawMessage(`""`), false
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	media, params, err := mime.ParseMediaType(contentType)
	asJSON := dt == JSON
	if err == nil && media != "" {
		asJSON = media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
	}
	if name := params["charset"]; name != "" && (asJSON || strings.HasPrefix(media, "text/") || strings.HasSuffix(media, "xml")) {
		if cs, err := htmlindex.Get(name); err == nil {
			if text, err := cs.NewDecoder().Bytes(body); err == nil {
				body = text
			}
		}
	}
	if asJSON && json.Valid(body) {
		return json.RawMessage(body), false
	}
	if !utf8.Valid(body) {
		return quote(base64.StdEncoding.EncodeToString(body)), true
	}
	return quote(string(body)), false
}

// parseLeft parses text that a hook left as content, where the data type says JSON.
func parseLeft(raw json.RawMessage, dt DataType) json.RawMessage {
	if raw == nil || dt != JSON || len(raw) == 0 || raw[0] != '"' {
		return raw
	}
	return parseText(textOf(raw), dt)
}

func parseText(text string, dt DataType) json.RawMessage {
	if dt == JSON && json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return quote(text)
}

// headersJSON: a value is text; a repeated header, and always Set-Cookie, a list.
func headersJSON(h http.Header) json.RawMessage {
	names := make([]string, 0, len(h))
	for k := range h {
		names = append(names, k)
	}
	slices.Sort(names)
	m := &OrderedMap{}
	for _, k := range names {
		if v := h[k]; len(v) == 1 && k != "Set-Cookie" {
			m.Set(k, v[0])
		} else {
			m.Set(k, v)
		}
	}
	raw, _ := marshal(m)
	return raw
}

// methodError is what after_error sees and may change.
type methodError struct {
	StatusCode   *int            `json:"statusCode"`
	ReasonPhrase string          `json:"reasonPhrase"`
	Content      string          `json:"content"`
	Error        string          `json:"error"`
	IsError      bool            `json:"isError"`
	IsWarning    bool            `json:"isWarning"`
	IsSuccess    bool            `json:"isSuccess"`
	Headers      json.RawMessage `json:"headers"`
}

// afterError runs after_error on an error of the API or the network.
func (x *exchange) afterError(ctx context.Context, f *fault) (*methodError, error) {
	me := &methodError{IsError: true, ReasonPhrase: x.reason, Content: string(x.resBody), Headers: headersJSON(x.resHead)}
	if f != nil {
		me.Error = f.text
	} else {
		status := x.status
		me.StatusCode, me.Error = &status, x.statusText()
	}
	raw, err := marshal(me)
	if err != nil {
		return nil, err
	}
	x.methodError = raw
	out, err := x.event(ctx, "after_error")
	if err != nil || out == nil {
		return me, err
	}
	if changed, ok := out.Changed["method_error"]; ok {
		if err := me.take(changed); err != nil {
			return nil, &CallError{Kind: "script", Message: err.Error(), StatusCode: x.status}
		}
	}
	return me, nil
}

// take reads what after_error left. A member that is gone counts as untouched.
func (me *methodError) take(raw json.RawMessage) error {
	var after map[string]json.RawMessage
	if json.Unmarshal(raw, &after) != nil || after == nil {
		return errors.New("after_error left a method_error that is no object: set its members, and leave it in place")
	}
	for name, into := range map[string]*bool{"isError": &me.IsError, "isWarning": &me.IsWarning, "isSuccess": &me.IsSuccess} {
		if v, ok := after[name]; ok {
			s := string(v)
			*into = s != "false" && s != "null" && s != "0" && s != `""`
		}
	}
	if v, ok := after["content"]; ok {
		if me.Content = string(v); v[0] == '"' {
			me.Content = textOf(v)
		}
	}
	return nil
}

// collect makes the Answer of a call that ran to its end.
func (x *exchange) collect(a *Answer) error {
	a.StatusCode = x.status
	content := x.content
	if string(content) == `""` {
		content = nil
	}
	if x.binary {
		a.ContentEncoding = "base64"
	} else if content != nil && content[0] == '"' && x.m.ResponseDT == JSON {
		return &CallError{Kind: "http", StatusCode: x.status, Detail: x.detail(textOf(content)),
			Message: "the answer is no JSON, though response.data_type says so"}
	}
	if string(content) == "null" {
		content = nil
	}
	a.Content = content
	if len(x.m.Fields) == 0 && !x.m.IsLogin {
		return nil
	}
	var tree any
	if content != nil {
		var err error
		if tree, err = decodeJSON(content); errors.Is(err, errTooDeep) {
			return &CallError{Kind: "limit", StatusCode: x.status, Message: "the answer: " + err.Error()}
		} else if err != nil {
			return &CallError{Kind: "http", StatusCode: x.status, Message: "the answer is no JSON", Detail: x.detail(string(content))}
		}
	}
	if x.m.IsLogin {
		a.Session = x.foundSession()
	}
	fields := &OrderedMap{Values: map[string]any{}}
	for _, f := range x.m.Fields {
		if x.m.IsLogin && x.sessionName(f.System) != "" {
			continue
		}
		if v, found := x.fieldValue(f, tree); found {
			fields.Set(f.System, convert(v, f.Type))
		}
	}
	if len(fields.Keys) == 0 {
		return nil
	}
	raw, err := marshal(fields)
	a.Fields = raw
	return err
}

// foundSession is the session that a login's answer and hooks brought.
func (x *exchange) foundSession() map[string]string {
	session := map[string]string{}
	tree, err := decodeJSON(x.content)
	if err != nil {
		tree = nil
	}
	for _, f := range x.m.Fields {
		name := x.sessionName(f.System)
		if v, found := x.fieldValue(f, tree); found && name != "" {
			if text, ok := scalar(convert(v, f.Type)); ok && text != "" {
				session[name] = text
			}
		}
	}
	for k, v := range x.changedSession() { // what a hook set wins
		session[k] = v
	}
	return session
}

func (x *exchange) fieldValue(f ResponseField, tree any) (any, bool) {
	switch {
	case f.Header != "":
		v := x.resHead.Values(f.Header)
		return strings.Join(v, ", "), len(v) > 0
	case f.Cookie != "":
		for _, line := range x.resHead.Values("Set-Cookie") {
			pair, _, _ := strings.Cut(line, ";")
			if k, v, ok := strings.Cut(pair, "="); ok && strings.TrimSpace(k) == f.Cookie {
				return strings.TrimSpace(v), true // raw, as it was sent
			}
		}
		return nil, false
	}
	steps, err := parsePath(f.Field)
	if err != nil {
		return nil, false
	}
	return dig(tree, steps)
}

func (x *exchange) sessionName(system string) string {
	for _, n := range x.d.SessionNames {
		if strings.EqualFold(n, system) {
			return n
		}
	}
	if strings.EqualFold(system, "session_expires") {
		return "session_expires"
	}
	return ""
}

// changedSession is what hooks set in session_properties.
func (x *exchange) changedSession() map[string]string {
	v, err := decodeJSON(x.session)
	m, ok := v.(*OrderedMap)
	if err != nil || !ok {
		return nil
	}
	out := map[string]string{}
	for _, k := range m.Keys {
		text, ok := scalar(m.Values[k])
		if !ok || text == "" {
			continue
		}
		old, had := x.c.property(x.d, x.cred, "session", k)
		if oldText, _ := scalar(old); !x.m.IsLogin && had && oldText == text {
			continue
		}
		out[k] = text
	}
	return out
}

// scriptDoer performs http_request: the same address policy, cap and time
// limit as the call itself.
type scriptDoer struct{ x *exchange }

func (s *scriptDoer) DoHook(ctx context.Context, r hooks.HTTPRequest) (*hooks.HTTPResponse, error) {
	return s.x.c.doHook(ctx, s.x, r)
}

func (c *Caller) doHook(ctx context.Context, x *exchange, r hooks.HTTPRequest) (*hooks.HTTPResponse, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("http_request: an absolute http or https URL is needed")
	}
	if len(r.Parameters) > 0 {
		p, err := formPairs(r.Parameters)
		if err != nil {
			return nil, err
		}
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += p.encode()
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	var body io.Reader
	if r.HasData {
		body = strings.NewReader(r.Data)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("http_request: the request cannot be built")
	}
	for k, v := range r.Headers {
		if err := setHeader(req.Header, k, v); err != nil {
			return nil, fmt.Errorf("http_request: %w", err)
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "stepworker")
	}
	if !x.m.IgnoreAuth && x.mayReceive(u) {
		_ = c.authenticate(x.d, x.cred, req) // without a token the request goes out bare
	}
	res, f := c.send(req, safe(r.Method))
	if f != nil {
		return nil, fmt.Errorf("http_request: %s", f.text)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, c.cfg.MaxResponse+1))
	if err != nil {
		return nil, fmt.Errorf("http_request: %s", describeFault(u.Host, true, err).text)
	}
	if int64(len(raw)) > c.cfg.MaxResponse {
		return nil, fmt.Errorf("http_request: the answer is larger than %d bytes", c.cfg.MaxResponse)
	}
	sent, err := marshal(map[string]any{"method": r.Method, "url": u.String()})
	if err != nil {
		return nil, err
	}
	return &hooks.HTTPResponse{StatusCode: res.StatusCode, Headers: headersJSON(res.Header), Content: strings.ToValidUTF8(string(raw), "\ufffd"), Request: sent}, nil
}
