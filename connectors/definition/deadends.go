package definition

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
)

// deadEnds looks in a file that can be read for what will not work, or does
// nothing, when it is used. Its findings are hints, but where a call is certain
// to fail. It knows where things stand from the document itself.
type deadEnds struct {
	p    *fileParser
	d    *Connector
	root *yaml.Node
}

func (p *fileParser) deadEnds(root *yaml.Node) {
	e := &deadEnds{p: p, d: p.def, root: root}
	e.mergeFields()
	e.locations()
	e.sessions()
	e.exceptions()
	e.parameters()
	e.pages()
	e.timeouts()
	e.members()
	e.values()
}

// valueOf is what stands below a node at the end of these keys, nil if nothing.
func valueOf(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		if n = entry(n, key); n == nil {
			return nil
		}
	}
	return n
}

func entry(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// textOfNode is a scalar's text; "" of anything else.
func textOfNode(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// methodNode is where a method stands.
func (e *deadEnds) methodNode(name string) *yaml.Node {
	for _, n := range items(valueOf(e.root, "methods")) {
		if textOfNode(valueOf(n, "method")) == name {
			return n
		}
	}
	return e.root
}

// parameterNode is where a parameter of a method, or of the connector (method
// nil), stands; a method's own comes first.
func (e *deadEnds) parameterNode(method *yaml.Node, name string) *yaml.Node {
	for _, where := range []*yaml.Node{method, e.root} {
		for _, n := range items(valueOf(where, "parameters")) {
			if textOfNode(valueOf(n, "name")) == name {
				return n
			}
		}
	}
	return e.root
}

// each calls f for every method that has been read.
func (e *deadEnds) each(f func(m *Method, n *yaml.Node)) {
	for _, name := range e.d.MethodNames {
		f(e.d.Methods[name], e.methodNode(name))
	}
}

// scripts are the scripts that run in a method, the connector's and its own;
// of nil all there are.
func (e *deadEnds) scripts(m *Method) (all []*hooks.Script) {
	if e.d.Script != nil {
		all = append(all, e.d.Script)
	}
	for _, name := range e.d.MethodNames {
		if s := e.d.Methods[name].Script; s != nil && (m == nil || m.Name == name) {
			all = append(all, s)
		}
	}
	return all
}

// named says that a script has this word anywhere.
func named(scripts []*hooks.Script, word string) bool {
	re := regexp.MustCompile(`(^|[^\w$])` + regexp.QuoteMeta(word) + `($|[^\w$])`)
	return slices.ContainsFunc(scripts, func(s *hooks.Script) bool { return re.MatchString(s.Source) })
}

// texts are all scalars below a node but scripts.
func texts(n *yaml.Node) (all []*yaml.Node) {
	if n == nil {
		return nil
	}
	if n.Kind == yaml.ScalarNode {
		return []*yaml.Node{n}
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && (i%2 == 0 || n.Content[i-1].Value == "script") {
			continue
		}
		all = append(all, texts(c)...)
	}
	return all
}

// connectorTexts are those of the whole connector: its own without methods.
func (e *deadEnds) connectorTexts() (all []*yaml.Node) {
	for i := 0; i+1 < len(e.root.Content); i += 2 {
		if k := e.root.Content[i].Value; k != "methods" && k != "script" {
			all = append(all, texts(e.root.Content[i+1])...)
		}
	}
	return all
}

// fieldsOf are the merge fields of a text.
func fieldsOf(text string) (names []string) {
	parts, err := mergefields.Split(text)
	if err != nil {
		return nil
	}
	for _, p := range parts {
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	return names
}

// authTypes are those that credentials of this connector may have.
func (e *deadEnds) authTypes() []string {
	all := []string{e.d.Auth.Type}
	for _, a := range e.d.Authentications {
		all = append(all, a.Auth.Type)
	}
	return all
}

func quotedList(names []string) string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(all, ", ")
}
