package connectors

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/hooks"
)

// isXML says that a media type is a document's (RFC 7303): neither a page for
// people nor a picture.
func isXML(media string) bool {
	return media == "application/xml" || media == "text/xml" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+xml") && media != "application/xhtml+xml"
}

var declaration = regexp.MustCompile(`^<\?xml[^>]{1,200}?encoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)["']`)

// declaredCharset is what an XML declaration says (XML 1.0 section 4.3.3); it
// counts where no Content-Type does (RFC 7303 section 3.2). That a text is
// UTF-16 it cannot say in letters of one byte.
func declaredCharset(body []byte) string {
	m := declaration.FindSubmatch(body[:min(len(body), 300)])
	if m == nil || strings.HasPrefix(strings.ToLower(string(m[1])), "utf-16") {
		return ""
	}
	return string(m[1])
}

// xmlContent takes an answer's text as XML, if it is that.
func (x *exchange) xmlContent(text string) bool {
	raw, err := hooks.XMLToJSON(text)
	if err != nil {
		return false
	}
	x.content, x.ofXML = raw, true
	return true
}

// parseLeft parses text that a hook left as content, or that came as another
// type, where the data type says JSON or XML.
func (x *exchange) parseLeft(raw json.RawMessage, dt definition.DataType) json.RawMessage {
	if len(raw) == 0 || raw[0] != '"' {
		return raw
	}
	return x.parseText(jsontree.TextIn(raw), dt)
}

func (x *exchange) parseText(text string, dt definition.DataType) json.RawMessage {
	switch dt {
	case definition.JSON:
		if raw := asBytes(text); json.Valid(raw) {
			return raw
		}
	case definition.XML:
		if raw, err := hooks.XMLToJSON(text); err == nil {
			x.ofXML = true
			return raw
		}
	}
	return jsontree.Quote(text)
}
