package hooks

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// mentions is which names a source can reach. Making a global costs more than
// most handlers do, so only those are made that some script names; a source
// that may reach names in other ways gets all.
type mentions struct {
	all   bool
	asks  bool // it may ask the worker for something: http_request, storage
	names map[string]bool
}

// indirect are the ways to a name that is not written down.
var indirect = []string{"this", "globalThis", "eval", "Function", "constructor", "with"}

func mentionsOf(source string) *mentions {
	m := &mentions{names: map[string]bool{}, all: strings.Contains(source, `\u`)}
	from := -1 // where a name begins
	for i, c := range source {
		in := c == '$' || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' && from >= 0 ||
			c >= utf8.RuneSelf && (unicode.IsLetter(c) || from >= 0 && unicode.In(c, unicode.N, unicode.M, unicode.Pc, unicode.Join_Control))
		switch {
		case in && from < 0:
			from = i
		case !in && from >= 0:
			m.names[source[from:i]] = true
			from = -1
		}
	}
	if from >= 0 {
		m.names[source[from:]] = true
	}
	for _, name := range indirect {
		m.all = m.all || m.names[name]
	}
	m.asks = m.all || m.names["http_request"]
	for _, f := range storageFunctions {
		m.asks = m.asks || m.names[f.name]
	}
	return m
}

func (m *mentions) has(name string) bool { return m.all || m.names[name] }
