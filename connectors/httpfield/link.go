package httpfield

import (
	"mime"
	"slices"
	"strings"
)

// NextLink is the target of the link whose relation is next, "" without (RFC
// 8288 section 3). Targets and quoted texts may hold commas and semicolons.
func NextLink(headers []string) string {
	for _, h := range headers {
		for h != "" {
			begin := strings.IndexByte(h, '<')
			if begin < 0 {
				break
			}
			end := strings.IndexByte(h[begin:], '>')
			if end < 0 {
				break
			}
			target := h[begin+1 : begin+end]
			var params string
			params, h = untilComma(h[begin+end+1:])
			if slices.Contains(relations(params), "next") {
				return target
			}
		}
	}
	return ""
}

// untilComma cuts a link's parameters off the links that follow.
func untilComma(s string) (params, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// relations are the relation types of a link's first rel parameter.
func relations(params string) []string {
	if _, all, err := mime.ParseMediaType("a/b" + params); err == nil {
		return strings.Fields(strings.ToLower(all["rel"]))
	}
	for p := range strings.SplitSeq(params, ";") {
		k, v, ok := strings.Cut(p, "=")
		if ok && strings.EqualFold(strings.TrimSpace(k), "rel") {
			return strings.Fields(strings.ToLower(strings.Trim(strings.TrimSpace(v), `"`)))
		}
	}
	return nil
}
