package connectors

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/hooks"
)

// accepts is the Accept header by the method's data types; "" for none.
func accepts(m *definition.Method) string {
	switch {
	case m.ResponseDT == definition.JSON:
		return "application/json"
	case m.ResponseDT == definition.XML:
		return "application/xml"
	case m.ResponseDT == definition.Form && (m.Verb == http.MethodGet || m.Verb == http.MethodHead): // else it tells of the request
		return formType
	}
	return ""
}

const (
	formType   = "application/x-www-form-urlencoded"
	binaryType = "application/octet-stream"
	textType   = "text/plain; charset=utf-8"
)

// encodeBody writes the body as the method's data type says. given is a
// Content-Type that the request has already, which wins; parts of a multipart
// body are cut by the boundary that it names, or it gets one.
func (x *exchange) encodeBody(given string) (body []byte, contentType string, err error) {
	raw := x.body
	if raw == nil || string(raw) == "null" {
		return nil, "", nil
	}
	bad := func(err error) error {
		return &CallError{Kind: "input", Message: fmt.Sprintf("the body cannot be written as %s: %v", x.m.DataType, err)}
	}
	if given == "" {
		given = x.m.ContentType
	}
	var v any
	if x.m.DataType == definition.JSON || x.m.DataType == definition.UnknownDT {
		if !json.Valid(raw) {
			return nil, "", bad(errors.New("it is no JSON value"))
		}
	} else if v, err = jsontree.Decode(raw); err != nil {
		return nil, "", bad(errors.New("it is no JSON value"))
	}
	switch x.m.DataType {
	case definition.XML:
		body, err = xmlBody(x.m, v)
		contentType = "application/xml"
	case definition.Form:
		var p pairs
		p, err = formPairs(raw)
		body, contentType = []byte(p.encode()), formType
	case definition.File, definition.MultipartRelated:
		body, given, err = x.multipart(v, given)
	case definition.PlainText:
		var text string
		text, err = plainText(v)
		body, contentType = []byte(text), textType
	case definition.SimpleFile:
		body, contentType, err = simpleFile(v)
	case definition.UnknownDT:
		body = raw
		var text string
		if json.Unmarshal(raw, &text) == nil {
			body = []byte(text)
		}
	default:
		body, contentType = raw, "application/json"
	}
	if err != nil {
		return nil, "", bad(err)
	}
	if given != "" {
		contentType = given
	}
	return body, contentType, nil
}

func plainText(v any) (string, error) {
	switch v.(type) {
	case []any, *jsontree.Object:
		return "", errors.New("text is needed, not an object or a list")
	}
	text, _ := jsontree.Text(v)
	return text, nil
}

// xmlDeclaration begins each XML body (XML 1.0 section 2.8).
const xmlDeclaration = `<?xml version="1.0" encoding="utf-8"?>`

// xmlBody writes an object as XML, below xml_root unless that is its only
// member. Text that is XML already, a script's perhaps, stays as it is.
func xmlBody(m *definition.Method, v any) ([]byte, error) {
	if text, ok := v.(string); ok {
		_, err := hooks.XMLToJSON(text)
		switch {
		case err != nil && m.XMLRoot == "":
			return nil, fmt.Errorf("it is text that is no XML document: %w", err)
		case err == nil:
			if !strings.HasPrefix(strings.TrimPrefix(text, "\ufeff"), "<?xml") {
				text = xmlDeclaration + text
			}
			return []byte(text), nil
		}
	}
	o, ok := v.(*jsontree.Object)
	switch {
	case m.XMLRoot != "" && (!ok || len(o.Keys) != 1 || o.Keys[0] != m.XMLRoot):
		if _, list := v.([]any); list {
			return nil, fmt.Errorf("a list cannot stand right below its root element <%s>: give its items a name, {\"item\": […]}", m.XMLRoot)
		}
		o = &jsontree.Object{}
		o.Set(m.XMLRoot, v)
	case !ok:
		return nil, errors.New("an object is needed, whose one member is the root element")
	case len(o.Keys) != 1 && !slices.ContainsFunc(o.Keys, func(k string) bool { return strings.HasPrefix(k, "?") }):
		return nil, fmt.Errorf("it has %d members, and a document has one root element: say xml_root", len(o.Keys))
	}
	raw, err := jsontree.Marshal(o)
	if err != nil {
		return nil, err
	}
	text, err := hooks.JSONToXML(raw)
	return []byte(xmlDeclaration + text), err
}

// fileValue is a file within a body, as a step or a script brings it.
type fileValue struct {
	content               []byte
	filename, contentType string
}

// fileOf reads an object with member content, and perhaps content_encoding
// (base64), filename and content_type, as a file. ok is false for other values.
func fileOf(v any) (f *fileValue, ok bool, err error) {
	o, _ := v.(*jsontree.Object)
	if o == nil {
		return nil, false, nil
	}
	texts := map[string]string{}
	for _, k := range o.Keys {
		text, isText := o.Values[k].(string)
		if !slices.Contains([]string{"content", "content_encoding", "filename", "content_type"}, k) || !isText && o.Values[k] != nil {
			return nil, false, nil
		}
		texts[k] = text
	}
	if _, ok := o.Values["content"].(string); !ok {
		return nil, false, nil
	}
	f = &fileValue{filename: texts["filename"], contentType: texts["content_type"]}
	switch encoding := texts["content_encoding"]; encoding {
	case "":
		f.content = []byte(texts["content"])
	case "base64":
		plain := strings.TrimRight(strings.Join(strings.Fields(texts["content"]), ""), "=")
		if f.content, err = base64.RawStdEncoding.DecodeString(plain); err != nil {
			return nil, true, errors.New("content is not base64, as content_encoding says")
		}
	default:
		return nil, true, fmt.Errorf("content_encoding is %q: base64 is meant, or none", clip(encoding, 40))
	}
	if f.contentType != "" {
		if _, _, err := mime.ParseMediaType(f.contentType); err != nil || strings.ContainsFunc(f.contentType, func(c rune) bool { return c < ' ' || c > '~' }) {
			return nil, true, fmt.Errorf("content_type %q is no media type", clip(f.contentType, 60))
		}
	}
	return f, true, nil
}

// simpleFile is a body that is sent raw: a file, or text.
func simpleFile(v any) (body []byte, contentType string, err error) {
	f, ok, err := fileOf(v)
	if err != nil {
		return nil, "", err
	}
	if !ok {
		text, err := plainText(v)
		if err != nil {
			return nil, "", errors.New("text is needed, or a file: {content, content_encoding, content_type}")
		}
		f = &fileValue{content: []byte(text)}
	}
	if f.contentType == "" {
		f.contentType = binaryType
	}
	return f.content, f.contentType, nil
}

// simpleContent is an answer that is a file: text if it is UTF-8, else base64.
// So each of its bytes can be had back, whatever its Content-Type says.
func simpleContent(body []byte) (content json.RawMessage, binary bool) {
	if utf8.Valid(body) {
		return jsontree.Quote(asText(body)), false
	}
	return jsontree.QuoteBase64(body), true
}

// keyInBody puts an API key into the body, where the connector wants it there
// and nobody else put a member of that name. As auth fields do, it makes one only
// for a verb that takes one.
func (x *exchange) keyInBody() error {
	a := &x.d.Auth
	none := len(x.body) == 0 || string(x.body) == "null"
	if a.Type != "api_key" || a.In != "body" || x.m.IgnoreAuth || none && !definition.MakesBody(x.m.Verb) {
		return nil
	}
	const what = "the API key stands in the body (auth.in)"
	if !a.HasPlaceIn(x.m.DataType) {
		return x.noPlace(what, "it")
	}
	decoded, err := jsontree.Decode(x.body)
	m, ok := decoded.(*jsontree.Object)
	switch {
	case x.body == nil, err == nil && decoded == nil:
		m = &jsontree.Object{}
		decoded = m
	case !ok:
		return &CallError{Kind: "input", Message: fmt.Sprintf("%s, so the body must be an object, for member %q", what, a.Name)}
	}
	m = membersOf(x.m, m)
	if _, there := m.Values[a.Name]; there {
		return nil
	}
	if x.cred.Secrets.APIKey.Empty() {
		return lacks(x.d, "api_key")
	}
	m.Set(a.Name, a.Prefix+x.cred.Secrets.APIKey.Reveal())
	x.body, err = jsontree.Marshal(decoded)
	return err
}

// membersOf is where a body's members stand: in XML those of its root element.
func membersOf(m *definition.Method, body *jsontree.Object) *jsontree.Object {
	if m.DataType != definition.XML || len(body.Keys) != 1 || m.XMLRoot != "" && body.Keys[0] != m.XMLRoot {
		return body
	}
	if inner, ok := body.Values[body.Keys[0]].(*jsontree.Object); ok {
		return inner
	}
	return body
}
