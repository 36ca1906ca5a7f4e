package definition

import (
	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/location"
)

// About is what a file says of a field to people and to programs that offer
// its values. What a step gives need not be one of Values.
type About struct {
	Title       string
	Description string
	Values      []any
	Trigger     string // a lookup whose answer offers further values
}

// RequestField names where in a body a value stands, and as what it is written.
type RequestField struct {
	About
	Field    string
	System   string
	Type     string
	Format   string // of a datetime, in .NET's words
	Required bool
	Default  any
	HasDef   bool

	Steps []location.Step
}

func (p *fileParser) request(n *yaml.Node, m *Method) {
	p.mapping(n, "request", keys{
		"fields": func(n *yaml.Node) {
			seen := map[string]bool{}
			p.sequence(n, func(n *yaml.Node) {
				f, optional := RequestField{}, true
				k := p.about(&f.About)
				k["field"], k["system"], k["type"], k["format"] = p.text(&f.Field), p.text(&f.System), p.enum(&f.Type, fieldTypes), p.text(&f.Format)
				k["optional"] = p.boolean(&optional)
				k["default"] = func(n *yaml.Node) {
					f.Default, f.HasDef = p.free(n), true
					p.templatesIn(n, m, "body")
				}
				got := p.mapping(n, "a request field", k)
				if f.Field == "" && n.Kind == yaml.MappingNode && got["field"] == nil {
					p.find(n, "a request field needs a location: key \"field\"")
				}
				f.Required = !optional
				f.Steps = p.location(n, f.Field, seen)
				p.dateFormat(got["format"], f.Type, f.Format)
				if f.System == "" {
					f.System = f.Field
				}
				m.Request = append(m.Request, f)
			})
		},
	})
}

// about reads the keys that say what a field is.
func (p *fileParser) about(a *About) keys {
	return keys{
		"title": p.text(&a.Title), "description": p.text(&a.Description),
		"trigger": p.lookup(&a.Trigger),
		"values":  func(n *yaml.Node) { p.sequence(n, func(n *yaml.Node) { a.Values = append(a.Values, p.free(n)) }) },
	}
}

// location reads where a field stands; seen are those before it in its list.
func (p *fileParser) location(n *yaml.Node, field string, seen map[string]bool) []location.Step {
	if at := valueOf(n, "field"); field == "" {
		if at != nil && at.Kind == yaml.ScalarNode && at.ShortTag() == "!!str" { // else text is missing, which is told
			p.find(at, "field is empty: a location is needed, such as [records].id")
		}
		return nil
	}
	steps, err := location.Parse(field)
	switch {
	case err != nil:
		p.find(n, "field %q: %v", field, err)
	case seen[field]:
		p.hint(n, "field %q stands here twice", field)
	}
	seen[field] = true
	return steps
}

// dateFormat checks a field's format.
func (p *fileParser) dateFormat(key *yaml.Node, typ, format string) {
	if key == nil {
		return
	}
	if typ != "datetime" {
		p.find(key, "format has a meaning for type datetime alone")
	} else if err := dates.CheckFormat(format); err != nil {
		p.find(key, "format: %v", err)
	}
}

// webhookFields are read from a webhook's body as response fields are.
func webhookFields(request []RequestField) (all []ResponseField) {
	for _, f := range request {
		all = append(all, ResponseField{Field: f.Field, System: f.System, Type: f.Type, Format: f.Format, Title: f.Title, Description: f.Description,
			Optional: !f.Required, Default: f.Default, HasDef: f.HasDef, Steps: f.Steps})
	}
	return all
}
