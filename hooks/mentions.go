package hooks

import (
	"regexp"
	"strings"
)

// mentions is which names a source can reach. Making a global costs more than
// most handlers do, so only those are made that some script names; a source
// that may reach names in other ways gets all.
type mentions struct {
	all   bool
	names map[string]bool
}

var (
	identifier = regexp.MustCompile(`[\pL_$][\pL\pN_$]*`)
	// indirect are the ways to a name that is not written down.
	indirect = []string{"this", "globalThis", "eval", "Function", "constructor", "with"}
)

func mentionsOf(source string) *mentions {
	m := &mentions{names: map[string]bool{}, all: strings.Contains(source, `\u`)}
	for _, name := range identifier.FindAllString(source, -1) {
		m.names[name] = true
	}
	for _, name := range indirect {
		m.all = m.all || m.names[name]
	}
	return m
}

func (m *mentions) has(name string) bool { return m.all || m.names[name] }
