package connectors

import "go.yaml.in/yaml/v4"

// Trigger is a lookup: a method whose answer offers values for parameters and
// fields, and where in it a value and what people call it stand.
type Trigger struct {
	Name, Method string
	Key, Label   string // locations in the answer
}

func (p *fileParser) triggers(n *yaml.Node) {
	p.sequence(n, func(n *yaml.Node) {
		t := Trigger{}
		p.mapping(n, "a trigger", keys{"name": p.text(&t.Name), "method": p.text(&t.Method), "key": p.text(&t.Key), "label": p.text(&t.Label)})
		p.def.Triggers = append(p.def.Triggers, t)
	})
}
