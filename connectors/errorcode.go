package connectors

import (
	"encoding/json"
	"strings"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

// tokenError is what a token endpoint's answer says of its error.
type tokenError struct {
	code    string // in the words of the RFCs, where it can be told
	written string // as the provider wrote it
	text    string // its description; may hold secrets
}

// readError finds the error in an answer of RFC 6749 section 5.2 and in the
// shapes that providers have beside it: {"error": {"code": …}},
// {"errors": [{…}]}, a code of their own at the top. The first code that the
// table knows counts, else the one in its proper place. Where there is no code
// at all, a sentence that the table knows stands for one.
func readError(answer map[string]json.RawMessage) tokenError {
	inner := objects(answer["error"], answer["errors"])
	var written []string
	note := func(code string) {
		if code != "" {
			written = append(written, code)
		}
	}
	note(jsontree.TextIn(answer["error"]))
	for _, o := range inner {
		note(jsontree.TextIn(o["code"]))
		note(jsontree.TextIn(o["type"]))
	}
	proper := len(written)
	for _, o := range inner {
		for _, with := range []string{"type", "field"} { // {"type": "OAuthException", "code": 190}, {"field": "refresh_token", "code": "invalid"}
			if name, code := jsontree.TextIn(o[with]), word(o["code"]); name != "" && code != "" {
				note(name + " " + code)
			}
		}
		for _, k := range []string{"error", "errorType", "error_type", "errorCode", "error_code", "status"} {
			note(jsontree.TextIn(o[k]))
		}
	}
	for _, k := range []string{"error_code", "errorCode", "error_type", "errorType", "code", "type", "status"} {
		note(jsontree.TextIn(answer[k]))
	}
	if n := word(answer["errcode"]); n != "" {
		note("errcode " + n)
	}
	e := tokenError{text: describeError(answer, inner)}
	for i, w := range written {
		code := strings.ToLower(strings.TrimSpace(w))
		if s, ok := spellings[code]; ok {
			code = s
		}
		_, known := codes[code]
		if known || i < proper && e.code == "" {
			e.code, e.written = code, w
		}
		if known {
			break
		}
	}
	if len(written) == 0 {
		e.code = sentences[strings.ToLower(jsontree.TextIn(answer["message"]))]
	}
	for _, x := range exceptions {
		if e.code == x.code && x.says.MatchString(e.text) {
			e.code = x.means
			break
		}
	}
	return e
}

// describeError finds the sentence that a provider has for people.
func describeError(answer map[string]json.RawMessage, inner []map[string]json.RawMessage) string {
	if d := jsontree.TextIn(answer["error_description"]); d != "" {
		return d
	}
	for _, o := range append(inner, answer) {
		for _, k := range []string{"error_description", "message", "error_message", "detail", "reason", "errmsg"} {
			if d := jsontree.TextIn(o[k]); d != "" {
				return d
			}
		}
	}
	return ""
}

// objects are the objects among values and their lists.
func objects(values ...json.RawMessage) (all []map[string]json.RawMessage) {
	for _, v := range values {
		var one map[string]json.RawMessage
		var list []json.RawMessage
		switch {
		case len(v) == 0:
		case json.Unmarshal(v, &one) == nil && one != nil:
			all = append(all, one)
		case json.Unmarshal(v, &list) == nil:
			all = append(all, objects(list...)...)
		}
	}
	return all
}

// word is a text, or a number as it is written.
func word(raw json.RawMessage) string {
	if s := jsontree.TextIn(raw); s != "" {
		return s
	}
	var n json.Number
	if json.Unmarshal(raw, &n) == nil {
		return n.String()
	}
	return ""
}
