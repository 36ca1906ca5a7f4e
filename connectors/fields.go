package connectors

import "go.yaml.in/yaml/v4"

// RequestField names where in a body a value stands, and as what it is written.
type RequestField struct {
	Field    string
	System   string
	Type     string
	Format   string // of a datetime, in .NET's words
	Title    string
	Required bool
	Default  any
	HasDef   bool
}

func (p *fileParser) request(n *yaml.Node, m *Method) {
	p.mapping(n, "request", keys{
		"fields": func(n *yaml.Node) {
			p.sequence(n, func(n *yaml.Node) {
				f, optional := RequestField{}, true
				p.mapping(n, "a request field", keys{
					"field": p.text(&f.Field), "system": p.text(&f.System), "type": p.enum(&f.Type, fieldTypes), "format": p.text(&f.Format),
					"title": p.text(&f.Title), "optional": p.boolean(&optional),
					"default": func(n *yaml.Node) { f.Default, f.HasDef = p.free(n), true },
				})
				f.Required = !optional
				m.Request = append(m.Request, f)
			})
		},
	})
}
