package connectors

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/hooks"
)

// Webhook is a request that somebody else received, for a method of type
// webhook to judge. Values of headers and query are text or lists of text.
type Webhook struct {
	URL     string                     `json:"url,omitempty"`
	Method  string                     `json:"method,omitempty"`
	Headers map[string]json.RawMessage `json:"headers,omitempty"`
	Query   map[string]json.RawMessage `json:"query,omitempty"`
	Body    json.RawMessage            `json:"body,omitempty"`
}

// WebhookAnswer is what became of it: Accepted is false where a hook dropped
// it. Reply is what a hook wants answered, nil for nothing in particular.
type WebhookAnswer struct {
	Accepted bool
	Reply    *Reply
}

// Reply to whoever called the webhook.
type Reply struct {
	Headers json.RawMessage // an object
	Content json.RawMessage // nil: none
}

// suits is an error if the step does not bring what its method's type needs.
func (x *exchange) suits() error {
	input := func(format string, args ...any) error {
		return &CallError{Kind: "input", Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case x.m.Type != definition.TypeWebhook && x.call.Webhook != nil:
		return input("method %q is no webhook method, so the step has no webhook for it", x.m.Name)
	case x.m.Type != definition.TypeWebhook:
		return nil
	case x.call.Webhook == nil:
		return input("method %q is a webhook method: the step needs member \"webhook\", the request that came", x.m.Name)
	case x.call.Body != nil || len(x.mapped) > 0:
		return input("method %q is a webhook method: the body that came is webhook.body, and the step has none of its own", x.m.Name)
	}
	return nil
}

// inbound takes what came in the place of a request that is to be sent.
func (x *exchange) inbound() error {
	w := x.call.Webhook
	x.endpoint = w.URL
	for into, values := range map[*json.RawMessage]map[string]json.RawMessage{&x.headers: w.Headers, &x.query: w.Query} {
		if *into = json.RawMessage(`{}`); values != nil {
			var err error
			if *into, err = jsontree.Marshal(values); err != nil {
				return err
			}
		}
	}
	for name, raw := range w.Headers {
		x.callersSecret(name, raw)
	}
	contentType, _ := member(x.headers, "Content-Type", true)
	media, _ := jsontree.Text(contentType)
	x.body = w.Body
	switch dt := typeOf(media, x.m.DataType); {
	case len(w.Body) == 0 || w.Body[0] != '"':
	case dt == definition.Form:
		if form, ok := parseForm(jsontree.TextIn(w.Body)); ok {
			x.body = form
		}
	case dt == definition.XML:
		x.body = x.parseLeft(w.Body, definition.XML)
	case dt == definition.JSON || x.m.DataType == definition.JSON:
		x.body = x.parseLeft(w.Body, definition.JSON)
	case x.m.DataType == definition.XML:
		x.body = x.parseLeft(w.Body, definition.XML)
	}
	return nil
}

// callersSecret hides a header that whoever called shows who it is with: its
// token without the scheme, a cookie's values.
func (x *exchange) callersSecret(name string, raw json.RawMessage) {
	var cut string
	switch strings.ToLower(name) {
	case "authorization", "proxy-authorization":
		cut = " "
	case "cookie":
		cut = "="
	default:
		return
	}
	v, err := jsontree.Decode(raw)
	if err != nil {
		return
	}
	for _, text := range leaves(v) {
		for _, one := range strings.Split(text, "; ") {
			if _, value, ok := strings.Cut(one, cut); ok {
				one = value
			}
			x.found = append(x.found, one)
			x.c.cfg.Trace.secret("webhook."+strings.ToLower(name), one)
		}
	}
}

// receive runs the events of a webhook, and sends nothing. false in the first
// drops it with the script's reply, false in the second drops it silently.
func (x *exchange) receive(ctx context.Context) (*Answer, error) {
	w := &WebhookAnswer{Accepted: true}
	answer := &Answer{Webhook: w}
	out, err := x.event(ctx, "before_webhook")
	if err != nil {
		return nil, err
	}
	if out != nil {
		dropped := string(out.Result) == "false"
		headers, content := out.Value("method_response_headers", nil), out.Value("method_response", nil)
		if dropped || headers != nil || content != nil {
			if w.Reply, err = newReply(headers, content); err != nil {
				return nil, err
			}
		}
		if dropped {
			w.Accepted = false
			return answer, nil
		}
	}
	if x.content = x.body; x.content == nil {
		x.content = json.RawMessage("null")
	}
	out, err = x.event(ctx, "after_webhook")
	if err != nil {
		return nil, err
	}
	if out != nil && string(out.Result) == "false" {
		return &Answer{Webhook: &WebhookAnswer{}}, nil
	}
	return answer, x.collect(answer)
}

func newReply(headers, content json.RawMessage) (*Reply, error) {
	if string(content) == "null" {
		content = nil
	}
	if headers == nil {
		return &Reply{Headers: json.RawMessage(`{}`), Content: content}, nil
	}
	decoded, _ := jsontree.Decode(headers)
	m, ok := decoded.(*jsontree.Object)
	if !ok {
		return nil, &CallError{Kind: "script", Message: "before_webhook left method_response_headers that are no object: set its members, and leave it in place"}
	}
	clean := &jsontree.Object{}
	for _, name := range m.Keys {
		v, err := replyHeader(name, m.Values[name])
		if err != nil {
			return nil, &CallError{Kind: "script", Message: "before_webhook, method_response_headers: " + err.Error()}
		}
		if v != nil {
			clean.Set(name, v)
		}
	}
	headers, err := jsontree.Marshal(clean)
	return &Reply{Headers: headers, Content: content}, err
}

// replyHeader is a header's value as a flow may send it: text, or a list of
// texts; nil for none. Whoever answers the webhook need not look at it again.
func replyHeader(name string, v any) (any, error) {
	if list, ok := v.([]any); ok {
		texts := []any{}
		for _, item := range list {
			if _, deeper := item.([]any); deeper {
				return nil, fmt.Errorf("header %q: a list of texts is needed", clip(name, 60))
			}
			text, err := replyHeader(name, item)
			if err != nil {
				return nil, err
			}
			if text != nil {
				texts = append(texts, text)
			}
		}
		return texts, nil
	}
	if _, ok := v.(*jsontree.Object); ok {
		return nil, fmt.Errorf("header %q: text is needed, or a list of texts", clip(name, 60))
	}
	text, ok := jsontree.Text(v)
	if !ok {
		return nil, nil
	}
	return text, setHeader(http.Header{}, name, text)
}

// webhookGlobals are those that only a webhook's events have.
func (x *exchange) webhookGlobals(event string) []hooks.Global {
	method := x.call.Webhook.Method
	if method == "" {
		method = "POST"
	}
	g := []hooks.Global{{Name: "method_request_method", JSON: jsontree.Quote(strings.ToUpper(method))}}
	if event == "before_webhook" { // the reply
		return append(g, hooks.Global{Name: "method_response", Write: true},
			hooks.Global{Name: "method_response_headers", JSON: json.RawMessage(`{}`), Write: true, Headers: true})
	}
	return append(g, hooks.Global{Name: "method_response", JSON: x.content, Write: true})
}

// scripted runs a method of type script: all of a call but the request.
func (x *exchange) scripted(ctx context.Context) (*Answer, error) {
	x.content = json.RawMessage("null")
	answer := &Answer{}
	if err := x.hook(ctx, "after_action"); err != nil {
		return nil, err
	}
	if err := x.paging(ctx); err != nil {
		return nil, err
	}
	if err := x.condition(ctx, answer); err != nil {
		return nil, err
	}
	return answer, x.collect(answer)
}
