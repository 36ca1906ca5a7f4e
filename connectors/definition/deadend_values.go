package definition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// values finds what a file says once for all and no request can be made of.
func (e *deadEnds) values() {
	e.parameterValues(e.root, e.d.Parameters)
	e.lineBreaks(e.root)
	for _, q := range items(valueOf(e.root, "parameters")) {
		if v := valueOf(q, "value"); textOfNode(v) == Ignored {
			e.p.hint(v, "%s leaves a connector's parameter out of one method, and this is the connector's own", Ignored)
		}
	}
	e.each(func(m *Method, n *yaml.Node) {
		e.parameterValues(n, m.Parameters)
		e.lineBreaks(n)
		e.leftOut(n)
		for i, f := range items(valueOf(n, "request", "fields")) {
			if i < len(m.Request) {
				e.ofType(valueOf(f, "default"), m.Request[i].Default, m.Request[i].Type)
			}
		}
		e.body(m, n)
	})
}

// parameterValues looks at the values that stand in a list of parameters.
func (e *deadEnds) parameterValues(n *yaml.Node, params []Parameter) {
	for _, at := range items(valueOf(n, "parameters")) {
		if q := find(params, textOfNode(valueOf(at, "name"))); q != nil {
			e.ofType(valueOf(at, "value"), q.Value, q.Type)
			e.ofType(valueOf(at, "default"), q.Default, q.Type)
		}
	}
}

// ofType finds a value that cannot be of its type. What merge fields or a
// script make of one is not known, nor what page is asked for.
func (e *deadEnds) ofType(at *yaml.Node, v any, typ string) {
	if at == nil || inline.Is(v) || slices.ContainsFunc(texts(at), func(t *yaml.Node) bool {
		return strings.Contains(t.Value, "{{") || strings.HasPrefix(t.Value, "CYCLR_")
	}) {
		return
	}
	if _, ok := jsontree.Coerce(v, typ); !ok {
		e.p.hint(at, "what stands here is not of type %s, so a call that uses it fails", typ)
	}
}

// leftOut finds a method that leaves out what is not there: a name that is
// misspelt, so that the parameter that is meant is sent.
func (e *deadEnds) leftOut(n *yaml.Node) {
	names := make([]string, len(e.d.Parameters))
	for i := range e.d.Parameters {
		names[i] = e.d.Parameters[i].Name
	}
	for _, q := range items(valueOf(n, "parameters")) {
		if name, v := textOfNode(valueOf(q, "name")), valueOf(q, "value"); textOfNode(v) == Ignored && !slices.Contains(names, name) {
			e.p.hint(v, "the connector has no parameter %q that could be left out%s", name, strictjson.DidYouMean(name, names))
		}
	}
}

// lineBreaks finds headers that cannot be sent; a block (|) ends with one.
func (e *deadEnds) lineBreaks(n *yaml.Node) {
	for _, v := range texts(valueOf(n, "headers")) {
		if strings.ContainsAny(v.Value, "\r\n") {
			e.p.hint(v, "a line break cannot stand in a header, so each call fails")
		}
	}
}

// body finds one that its data type has no form for, where no script makes another of it.
func (e *deadEnds) body(m *Method, n *yaml.Node) {
	at := valueOf(n, "body")
	if at == nil || len(e.scripts(m)) > 0 || len(m.Request) > 0 || at.Kind == yaml.ScalarNode && (at.Tag == "!!null" || strings.Contains(at.Value, "{{")) {
		return
	}
	object := at.Kind == yaml.MappingNode
	switch {
	case !object && slices.Contains([]DataType{Form, File, MultipartRelated}, m.DataType):
		e.p.hint(at, "a body of data_type %s is an object, whose members are its parts", m.DataType)
	case object && m.DataType == PlainText:
		e.p.hint(at, "a body of data_type %s is text", m.DataType)
	case object && m.DataType == XML && m.XMLRoot == "" && len(at.Content) != 2 && !slices.ContainsFunc(at.Content, func(k *yaml.Node) bool { return strings.HasPrefix(k.Value, "?") }):
		e.p.hint(at, "a document has one root element, and this body has %d members: say xml_root", len(at.Content)/2)
	}
}
