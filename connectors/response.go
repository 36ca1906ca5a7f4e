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
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"github.com/stepworker/stepworker/connectors/coding"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/hooks"
)

// send makes the request and reads its answer. A fault is a request that got
// none; an answer over the cap is told by tooLarge.
func (x *exchange) send(req *http.Request) *fault {
	x.status, x.reason, x.resHead, x.said = 0, "", nil, "" // of the page before
	sent := time.Now()
	defer func() { x.c.answered(x.d.Name, x.status, sent) }()
	res, f := x.c.send(req, x.m.MayRepeat(), x.told())
	x.ran = x.ran || f == nil || f.sent
	if f != nil {
		return f
	}
	defer res.Body.Close()
	if x.m.IsLogin || x.d.Auth.Type == "oauth1" { // its signatures tell the time
		x.skew = x.c.learnClock(x.d.Name, res.Header, sent)
	}
	x.status, x.resHead = res.StatusCode, res.Header
	x.reason = strings.TrimSpace(strings.TrimPrefix(res.Status, fmt.Sprint(res.StatusCode)))
	if x.reason == "" {
		x.reason = http.StatusText(res.StatusCode)
	}
	body, err := readAnswer(res, x.c.cfg.MaxResponse)
	var coded *codingError
	switch {
	case errors.Is(err, coding.ErrTooLarge):
		x.tooLarge = true
	case errors.As(err, &coded):
		return &fault{sent: true, coded: coded, text: coded.Error()}
	case err != nil:
		x.status = 0
		return readFault(req.URL.Host, err)
	}
	x.resBody = body
	x.parseBody()
	x.resBody = nil
	if x.status >= 200 && x.status <= 299 && len(x.said) > maxSaid { // the rest is content, and errors show no more
		x.said = strings.Clone(x.said[:maxSaid+1])
	}
	if x.m.IsLogin && x.c.cfg.Trace != nil {
		x.c.cfg.Trace.secrets(x.foundSession())
	}
	return nil
}

// parseBody turns an answer into what hooks see: by its own Content-Type, else
// by the method's data type. What does not parse is text, never a failure.
func (x *exchange) parseBody() {
	contentType := x.resHead.Get("Content-Type")
	raw, isText := decodeText(x.resBody, contentType)
	dt := typeOf(contentType, x.m.ResponseDT)
	if dt == definition.JSON && !isText {
		if valid := bytes.ToValidUTF8(x.resBody, []byte("\ufffd")); json.Valid(valid) {
			raw, isText = valid, true // JSON that does not say so
		}
	}
	x.binary, x.unparsed, x.ofXML = false, false, false
	if x.m.ResponseDT == definition.SimpleFile {
		x.content, x.binary = simpleContent(x.resBody)
		x.said = asText(x.content[1 : len(x.content)-1])
		return
	}
	if !isText {
		x.content, x.binary = jsontree.QuoteBase64(raw), true
		x.said = asText(x.content[1 : len(x.content)-1])
		return
	}
	text := asText(raw)
	x.said = text
	switch {
	case len(strings.TrimSpace(text)) == 0 && (dt == definition.JSON || dt == definition.XML || x.m.ResponseDT == definition.JSON || x.m.ResponseDT == definition.XML):
		x.content = jsontree.Quote("")
	case dt == definition.JSON && json.Valid(raw):
		x.content = raw
	case dt == definition.XML && !x.xmlContent(text):
		x.content, x.unparsed = jsontree.Quote(text), true
	case dt == definition.XML:
	case dt == definition.Form && text != "":
		if form, ok := parseForm(text); ok {
			x.content = form
			return
		}
		fallthrough
	default:
		x.content, x.unparsed = jsontree.Quote(text), true
	}
}

// typeOf is how a body is read: as its Content-Type says, without one as dt.
func typeOf(contentType string, dt definition.DataType) definition.DataType {
	media, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil || media == "":
		return dt
	case media == "application/json", media == "text/json", strings.HasSuffix(media, "+json"):
		return definition.JSON
	case media == formType:
		return definition.Form
	case isXML(media):
		return definition.XML
	}
	return definition.PlainText
}

// DecodeText is a body as text, by its byte-order mark, else by its charset.
// Text that is not UTF-8, and says no other charset, is read as browsers read
// it (WHATWG Encoding: windows-1252); JSON is UTF-8 (RFC 8259 section 8.1).
// What is no text comes as base64. The text may be the body itself, which then
// must not change any more.
func DecodeText(body []byte, contentType string) (text string, binary bool) {
	raw, isText := decodeText(body, contentType)
	if isText {
		return asText(raw), false
	}
	return base64.StdEncoding.EncodeToString(raw), true
}

// decodeText is a body as UTF-8, or as it is where it is no text.
func decodeText(body []byte, contentType string) (raw []byte, isText bool) {
	media, params, _ := mime.ParseMediaType(contentType)
	rest, marked := bytes.CutPrefix(body, []byte("\xef\xbb\xbf"))
	isJSON := typeOf(contentType, definition.PlainText) == definition.JSON
	name := params["charset"]
	if name == "" && !isJSON {
		name = declaredCharset(body)
	}
	charset, _ := htmlindex.Get(name)
	known := strings.HasPrefix(media, "text/") || strings.HasSuffix(media, "xml") || media == "application/x-www-form-urlencoded"
	if !isJSON && !known && media != "" {
		return rest, utf8.Valid(rest)
	}
	if (marked || charset == nil || charset == unicode.UTF8) && utf8.Valid(rest) { // nothing to decode
		return rest, true
	}
	decoder := transform.Transformer(transform.Nop)
	if charset != nil {
		decoder = charset.NewDecoder()
	}
	decoded, _, err := transform.Bytes(unicode.BOMOverride(decoder), body)
	switch {
	case err != nil:
		return body, utf8.Valid(body)
	case isJSON:
		return bytes.ToValidUTF8(decoded, []byte("\ufffd")), true
	case known && !utf8.Valid(decoded):
		decoded, err = charmap.Windows1252.NewDecoder().Bytes(decoded)
		if err != nil {
			return body, utf8.Valid(body)
		}
	}
	return decoded, utf8.Valid(decoded)
}

// parseForm reads a form: a name that is repeated has a list.
func parseForm(text string) (json.RawMessage, bool) {
	m := &jsontree.Object{}
	for _, pair := range strings.Split(text, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		k, err := url.QueryUnescape(k)
		v, err2 := url.QueryUnescape(v)
		if err != nil || err2 != nil {
			return nil, false
		}
		switch before := m.Values[k].(type) {
		case nil:
			m.Set(k, v)
		case []any:
			m.Set(k, append(before, v))
		default:
			m.Set(k, []any{before, v})
		}
	}
	raw, err := jsontree.Marshal(m)
	return raw, err == nil
}

// headersJSON: a value is text; a repeated header, and always Set-Cookie, a list.
func headersJSON(h http.Header) json.RawMessage {
	names := make([]string, 0, len(h))
	for k := range h {
		names = append(names, k)
	}
	slices.Sort(names)
	m := &jsontree.Object{}
	for _, k := range names {
		if v := h[k]; len(v) == 1 && k != "Set-Cookie" {
			m.Set(k, v[0])
		} else {
			m.Set(k, v)
		}
	}
	raw, _ := jsontree.Marshal(m)
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
	me := &methodError{IsError: true, ReasonPhrase: x.reason, Content: x.said, Headers: headersJSON(x.resHead)}
	if f != nil {
		me.Error = f.text
	} else {
		status := x.status
		me.StatusCode, me.Error = &status, x.statusText()
	}
	raw, err := jsontree.Marshal(me)
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
			me.Content = jsontree.TextIn(v)
		}
	}
	return nil
}

// mustParse says of text, which is what did not parse, that it is not what the
// method's answers are.
func (x *exchange) mustParse(content json.RawMessage) error {
	if len(content) == 0 || content[0] != '"' || string(content) == `""` || x.m.ResponseDT != definition.JSON && x.m.ResponseDT != definition.XML || x.m.Type != definition.TypeAction {
		return nil
	}
	what := "JSON object or list"
	if x.m.ResponseDT == definition.XML {
		what = "XML document"
	} else if text := strings.TrimSpace(jsontree.TextIn(content)); text != "" && strings.ContainsRune("[{", rune(text[0])) && jsontree.Deeper([]byte(text), jsontree.ReadDepth) {
		return x.nestedDeeper(jsontree.ReadDepth)
	}
	return &CallError{Kind: "http", StatusCode: x.status, Detail: x.detail(jsontree.TextIn(content)),
		Message: fmt.Sprintf("the answer is no %s, though response.data_type says %s", what, x.m.ResponseDT)}
}

// nestedDeeper is an answer that is nested deeper than can be worked with.
func (x *exchange) nestedDeeper(most int) error {
	return &CallError{Kind: "limit", Limit: LimitDepth, StatusCode: x.status, Message: fmt.Sprintf("the answer: JSON is nested deeper than %d", most)}
}

// collect makes the Answer of a call that ran to its end.
func (x *exchange) collect(a *Answer) error {
	a.StatusCode, a.Pages, a.Began = x.status, x.book.Pages, x.book.Began
	content := x.content
	if string(content) == `""` {
		content = nil
	}
	if x.binary {
		a.ContentEncoding = "base64"
	} else if err := x.mustParse(content); err != nil {
		return err
	}
	if string(content) == "null" {
		content = nil
	}
	a.Content = content
	if len(x.m.Fields) == 0 && !x.m.IsLogin {
		return nil
	}
	if jsontree.Deeper(content, jsontree.MaxDepth) {
		return x.nestedDeeper(jsontree.MaxDepth)
	}
	body := location.View(content)
	if x.m.IsLogin {
		a.Session = x.foundSession()
	}
	fields := &jsontree.Object{Values: map[string]any{}}
	for _, f := range x.m.Fields {
		if x.m.IsLogin && x.sessionName(f.System) != "" {
			continue
		}
		v, found := x.fieldValue(f, body)
		if !found {
			v, found = f.Default, f.HasDef
		}
		if found {
			fields.Set(f.System, jsontree.Convert(v, f.Type, f.Format))
		}
	}
	if len(fields.Keys) == 0 {
		return nil
	}
	raw, err := fields.MarshalJSON()
	a.Fields = raw
	return err
}

// foundSession is the session that a login's answer and hooks brought.
func (x *exchange) foundSession() map[string]string {
	session := map[string]string{}
	body := location.View(x.content)
	for _, f := range x.m.Fields {
		name := x.sessionName(f.System)
		if v, found := x.fieldValue(f, body); found && name != "" {
			if text, ok := jsontree.Text(jsontree.Convert(v, f.Type, f.Format)); ok && text != "" {
				session[name] = strings.Clone(text) // it outlives the answer
			}
		}
	}
	for k, v := range x.changedSession() { // what a hook set wins
		session[k] = v
	}
	return session
}

func (x *exchange) fieldValue(f definition.ResponseField, body gjson.Result) (any, bool) {
	switch {
	case f.Header != "":
		v := x.resHead.Values(f.Header)
		return strings.Join(v, ", "), len(v) > 0
	case f.Cookie != "":
		last := ""
		for _, line := range x.resHead.Values("Set-Cookie") {
			pair, _, _ := strings.Cut(line, ";")
			if k, v, ok := strings.Cut(pair, "="); ok && strings.TrimSpace(k) == f.Cookie && strings.TrimSpace(v) != "" {
				last = strings.TrimSpace(v) // raw, as it was sent
			}
		}
		return last, last != ""
	}
	return x.dig(body, f.Steps, f.Default)
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
	v, err := jsontree.Decode(x.session)
	m, ok := v.(*jsontree.Object)
	if err != nil || !ok {
		return nil
	}
	out := map[string]string{}
	for _, k := range m.Keys {
		text, ok := jsontree.Text(m.Values[k])
		if !ok || text == "" {
			continue
		}
		old, had := x.c.property(x.d, x.cred, "session", k)
		if oldText, _ := jsontree.Text(old); !x.m.IsLogin && had && oldText == text {
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
	ctx, cancel := context.WithTimeout(withPurpose(ctx, "http_request"), c.cfg.CallTimeout)
	defer cancel()
	var body io.Reader
	if r.HasData {
		if int64(len(r.Data)) > c.cfg.MaxResponse {
			return nil, fmt.Errorf("http_request: data is larger than %d bytes (--max-response)", c.cfg.MaxResponse)
		}
		body = strings.NewReader(r.Data)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("http_request: the request cannot be built")
	}
	for k, v := range r.Headers {
		if strings.EqualFold(k, "Host") {
			return nil, errors.New("http_request: a Host header cannot be set: the URL says the host")
		}
		if err := setHeader(req.Header, k, v); err != nil {
			return nil, fmt.Errorf("http_request: %w", err)
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "stepworker")
	}
	sent, err := sentRequest(r, u, req.Header)
	if err != nil {
		return nil, err
	}
	if !x.m.IgnoreAuth && x.mayReceive(u) {
		_ = c.authenticate(x.d, x.cred, req) // without a token the request goes out bare
	}
	if x.mayReceive(u) {
		if err := x.pace(ctx, PaceExtra); err != nil {
			return nil, fmt.Errorf("http_request: %w", err)
		}
	}
	status, begun := 0, time.Now()
	defer func() { c.answered(x.d.Name, status, begun) }()
	res, f := c.send(req, definition.SafeVerb(r.Method), told{mask: x.mask})
	if f != nil {
		return nil, fmt.Errorf("http_request: %s", f.text)
	}
	defer res.Body.Close()
	raw, err := readAnswer(res, c.cfg.MaxResponse)
	var coded *codingError
	switch {
	case errors.Is(err, coding.ErrTooLarge):
		return nil, fmt.Errorf("http_request: the answer is larger than %d bytes (--max-response)", c.cfg.MaxResponse)
	case errors.As(err, &coded):
		return nil, fmt.Errorf("http_request: %w", coded)
	case err != nil:
		return nil, fmt.Errorf("http_request: %s", readFault(u.Host, err).text)
	}
	status = res.StatusCode
	content, _ := DecodeText(raw, res.Header.Get("Content-Type"))
	return &hooks.HTTPResponse{StatusCode: res.StatusCode, Headers: headersJSON(res.Header), Content: content, Request: sent}, nil
}

// sentRequest is what a script is told of its request: as it made it, before
// the connector's authentication joined.
func sentRequest(r hooks.HTTPRequest, u *url.URL, h http.Header) (json.RawMessage, error) {
	m := &jsontree.Object{}
	m.Set("method", r.Method)
	m.Set("url", u.String())
	m.Set("headers", headersJSON(h))
	if r.HasData {
		m.Set("data", r.Data)
	}
	return jsontree.Marshal(m)
}
