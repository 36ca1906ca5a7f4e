package definition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/mergefields"
)

// mergeFields finds templates whose merge fields nothing can fill.
func (e *deadEnds) mergeFields() {
	e.hosts()
	e.tokenURL()
	e.circles(valueOf(e.root, "parameters"), e.d.Parameters)
	e.each(func(m *Method, n *yaml.Node) { e.circles(valueOf(n, "parameters"), m.Parameters) })
}

// hostFields are the merge fields in a URL's scheme and host.
func hostFields(text string) (names []string) {
	parts, err := mergefields.Split(text)
	if err != nil {
		return nil
	}
	sofar := ""
	for i, p := range parts {
		switch {
		case p.Name == "":
			sofar += p.Text
		case i == 0: // a whole URL, perhaps with a path
			names = append(names, p.Name)
			sofar = "https://x"
		case mergefields.InHost(sofar):
			names = append(names, p.Name)
			sofar += "x"
		}
	}
	return names
}

func find(params []Parameter, name string) *Parameter {
	for i := range params {
		if q := &params[i]; q.Name == name || q.Wire() == name {
			return q
		}
	}
	return nil
}

// stepsOnly says that only a step, or a script, can give a parameter its value.
func stepsOnly(q *Parameter) bool { return q != nil && !q.HasValue && !q.HasDef && q.Property == "" }

// hosts finds hosts that only a step could supply, which it may not.
func (e *deadEnds) hosts() {
	base := valueOf(e.root, "base_url")
	for _, name := range hostFields(textOfNode(base)) {
		q := find(e.d.Parameters, name)
		if stepsOnly(q) && !e.overridden(name) || q == nil && e.ofMethods(name) && !slices.ContainsFunc(e.d.MethodNames, func(m string) bool {
			own := find(e.d.Methods[m].Parameters, name)
			return own != nil && !stepsOnly(own)
		}) {
			e.p.hint(base, "base_url: {{%s}} is a parameter that steps supply, and a step cannot choose the host: give it a value, or property: account or partner", name)
		}
	}
	e.each(func(m *Method, n *yaml.Node) {
		at := valueOf(n, "endpoint")
		if text := textOfNode(at); strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://") {
			for _, name := range hostFields(text) {
				if stepsOnly(find(m.Parameters, name)) {
					e.p.hint(at, "endpoint: {{%s}} is a parameter that steps supply, and a step cannot choose the host: give it a value, or property: account or partner", name)
				}
			}
		}
	})
}

// overridden says that some method has a parameter of its own by that name.
func (e *deadEnds) overridden(name string) bool {
	return slices.ContainsFunc(e.d.MethodNames, func(m string) bool {
		return find(own(e.methodNode(m)), name) != nil || !stepsOnly(find(e.d.Methods[m].Parameters, name))
	})
}

// own are the parameters that stand at a node, as far as their names tell.
func own(n *yaml.Node) (all []Parameter) {
	for _, q := range items(valueOf(n, "parameters")) {
		all = append(all, Parameter{Name: textOfNode(valueOf(q, "name")), As: textOfNode(valueOf(q, "as")), Target: textOfNode(valueOf(q, "target"))})
	}
	return all
}

// tokenURL finds what a token request cannot know: it is made for a credential,
// with no step and no method.
func (e *deadEnds) tokenURL() {
	places := []*yaml.Node{valueOf(e.root, "auth")}
	for _, a := range items(valueOf(e.root, "authentications")) {
		places = append(places, valueOf(a, "auth"))
	}
	for _, auth := range places {
		for _, key := range []string{"token_url", "authorize_url"} {
			at := valueOf(auth, key)
			for _, name := range fieldsOf(textOfNode(at)) {
				q := find(e.d.Parameters, name)
				switch {
				case q == nil && e.ofMethods(name):
					e.p.hint(at, "auth.%s: {{%s}} is a parameter of methods, which a token request has none of: declare it at connector level", key, name)
				case stepsOnly(q):
					e.p.hint(at, "auth.%s: parameter %q has neither a value nor a property, and no step is there to supply it: give it property: account or partner", key, name)
				case q != nil && (inline.Is(q.Value) || !q.HasValue && q.Property == "" && inline.Is(q.Default)):
					e.p.find(at, "auth.%s: parameter %q is inline script, which has no value here", key, name)
				}
			}
		}
	}
}

func (e *deadEnds) ofMethods(name string) bool {
	return slices.ContainsFunc(e.d.MethodNames, func(m string) bool { return find(e.d.Methods[m].Parameters, name) != nil })
}

// circles finds values that are built from themselves, on a way that each call
// goes: by fixed values.
func (e *deadEnds) circles(at *yaml.Node, params []Parameter) {
	from := map[string][]string{}
	for _, n := range items(at) {
		name := textOfNode(valueOf(n, "name"))
		for _, t := range texts(valueOf(n, "value")) {
			from[name] = append(from[name], fieldsOf(t.Value)...)
		}
	}
	for i := range params { // the connector's, among a method's own
		q := &params[i]
		if text, ok := q.Value.(string); ok && from[q.Name] == nil {
			from[q.Name] = fieldsOf(text)
		}
	}
	var reaches func(name, to string, seen map[string]bool) bool
	reaches = func(name, to string, seen map[string]bool) bool {
		q := find(params, name)
		if q == nil || seen[q.Name] {
			return false
		}
		seen[q.Name] = true
		for _, next := range from[q.Name] {
			if n := find(params, next); n != nil && (n.Name == to || reaches(n.Name, to, seen)) {
				return true
			}
		}
		return false
	}
	for _, n := range items(at) {
		name := textOfNode(valueOf(n, "name"))
		if reaches(name, name, map[string]bool{}) {
			e.p.find(valueOf(n, "value"), "parameter %q is built from itself, so it never has a value", name)
		}
	}
}
