package definition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
	"golang.org/x/net/http/httpguts"

	"github.com/stepworker/stepworker/connectors/location"
)

// locations finds response fields that no answer can have, and request fields
// that no body can.
func (e *deadEnds) locations() {
	e.each(func(m *Method, n *yaml.Node) {
		if m.Type == TypeAction && m.DataType == PlainText {
			for _, f := range items(valueOf(n, "request", "fields")) {
				e.p.hint(f, "field %q: a body of data_type %s is text, which has no members", textOfNode(valueOf(f, "field")), m.DataType)
			}
		}
		var seen []located
		systems := map[string]bool{}
		for _, f := range items(valueOf(n, "response", "fields")) {
			for _, key := range []string{"header", "cookie"} {
				if at := valueOf(f, key); at != nil && !httpguts.ValidHeaderFieldName(at.Value) {
					e.p.hint(at, "no answer has a %s %q: it is no such name", key, at.Value)
				}
			}
			field := valueOf(f, "field")
			if system := cmpText(valueOf(f, "system"), field); system != nil {
				if systems[system.Value] && !m.IsLogin { // a login may find its session in several places
					e.p.hint(system, "two response fields are called %q: the later one wins", system.Value)
				}
				systems[system.Value] = true
			}
			if field == nil {
				continue
			}
			if why := oddLocation(field.Value); why != "" {
				e.p.hint(field, "field %q: %s", field.Value, why)
				continue
			}
			steps, err := location.Parse(field.Value)
			if err != nil {
				continue
			}
			if m.Type == TypeAction && m.ResponseDT == SimpleFile {
				e.p.hint(field, "field %q: an answer of response.data_type %s is a file, which has no members", field.Value, m.ResponseDT)
			}
			now := located{field, shape(steps), textOfNode(valueOf(f, "type"))}
			if m.ResponseDT == XML { // one element and several look alike there
				continue
			}
			if before, why := now.against(seen); why != "" {
				e.p.hint(field, "field %q: %s, by field %q at line %d: only one of them can match", field.Value, why, before.node.Value, before.node.Line)
			} else {
				seen = append(seen, now)
			}
		}
	})
}

func cmpText(nodes ...*yaml.Node) *yaml.Node {
	for _, n := range nodes {
		if n != nil {
			return n
		}
	}
	return nil
}

// oddLocation says why a location looks like one and is another.
func oddLocation(s string) string {
	rest := s
	for rest != "" {
		if strings.HasPrefix(rest, `\`) { // literal
			_, after, ok := strings.Cut(rest[1:], `\`)
			if !ok {
				return ""
			}
			rest = strings.TrimPrefix(after, ".")
			continue
		}
		var name string
		name, rest, _ = strings.Cut(rest, ".")
		inner := strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
		switch {
		case name != strings.TrimSpace(name) || inner != strings.TrimSpace(inner):
			return "a blank beside a name is part of it; leave it out, or put backslashes around the name"
		case strings.Count(name, "[") != strings.Count(name, "]"):
			return "a bracket has no partner; a list is written [list].x, and a name with a bracket in it stands in backslashes"
		case strings.HasPrefix(name, "[") && strings.Contains(inner, "]"):
			return "a dot is missing after the list: it is written [list].x"
		}
	}
	return ""
}

// located is a location where it stands.
type located struct {
	node  *yaml.Node
	steps []location.Step
	typ   string
}

// shape is a location with each list said at its name: a.[].b is [a].b.
func shape(steps []location.Step) (out []location.Step) {
	for _, s := range steps {
		if n := len(out); s.Name == "" && s.List && n > 0 && !out[n-1].List {
			out[n-1].List = true
			continue
		}
		out = append(out, s)
	}
	return out
}

// against is the first of other locations that contradicts this one, and how.
func (l located) against(others []located) (before located, why string) {
	for _, before := range others {
		if why := before.contradicts(l); why != "" {
			return before, why
		}
	}
	return located{}, ""
}

var scalarTypes = []string{"integer", "float", "decimal", "boolean", "datetime"}

// contradicts says what one location makes of a place that another makes
// something else of.
func (l located) contradicts(other located) string {
	for i := range min(len(l.steps), len(other.steps)) {
		a, b := l.steps[i], other.steps[i]
		rootA, rootB := a.Name == "" && a.List, b.Name == "" && b.List
		if rootA != rootB && i == 0 {
			if rootA {
				return "the answer is a list"
			}
			return "the answer is no list"
		}
		if a.Name != b.Name {
			return ""
		}
		lastA, lastB := i == len(l.steps)-1, i == len(other.steps)-1
		if lastA || lastB {
			if lastA && !lastB && !a.List && slices.Contains(scalarTypes, l.typ) {
				return "of " + l.typ + " is what has this below it"
			}
			return ""
		}
		if a.List != b.List {
			if a.List {
				return "what it takes for one object is a list"
			}
			return "what it takes for a list is one object"
		}
	}
	return ""
}
