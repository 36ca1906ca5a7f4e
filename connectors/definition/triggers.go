package definition

import (
	"encoding/json"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// Trigger is a lookup: a method whose answer offers values for parameters and
// fields, and where in it a value and what people call it stand.
type Trigger struct {
	Name, Method string
	Key, Label   string // locations in the answer, in the same list; Label "": the key is the label
}

// Choice is a value that a trigger offers, and what people call it.
type Choice struct {
	Key   any `json:"key"`
	Label any `json:"label"`
}

// Trigger finds a lookup.
func (d *Connector) Trigger(name string) (*Trigger, bool) {
	for i := range d.Triggers {
		if d.Triggers[i].Name == name {
			return &d.Triggers[i], true
		}
	}
	return nil, false
}

// NearestTrigger is the lookup that a name was perhaps meant to be.
func (d *Connector) NearestTrigger(name string) string {
	return strictjson.Nearest(name, d.triggerNames())
}

func (d *Connector) triggerNames() []string {
	names := make([]string, len(d.Triggers))
	for i := range d.Triggers {
		names[i] = d.Triggers[i].Name
	}
	return names
}

// Choices are what an answer of the trigger's method offers, in its order. An
// item without a key offers nothing; one without a label has its key for one.
func (t *Trigger) Choices(content json.RawMessage) ([]Choice, error) {
	key, err := location.Parse(t.Key)
	if err != nil {
		return nil, err
	}
	label, err := location.Parse(t.Label)
	if err != nil {
		return nil, err
	}
	if !json.Valid(content) {
		return nil, fmt.Errorf("the answer of method %q is no JSON value", t.Method)
	}
	found, _ := location.Dig(location.View(content), key, true, nil)
	values, ok := found.([]any)
	if !ok {
		return nil, fmt.Errorf("the answer of method %q has no list at %s", t.Method, t.Key)
	}
	found, _ = location.Dig(location.View(content), label, true, nil)
	labels, _ := found.([]any)
	all := make([]Choice, 0, len(values))
	for i, v := range values {
		if v == nil {
			continue
		}
		c := Choice{v, v}
		if t.Label != "" && i < len(labels) && labels[i] != nil { // of the same list
			c.Label = labels[i]
		}
		all = append(all, c)
	}
	return all, nil
}

func (p *fileParser) triggers(n *yaml.Node) {
	p.sequence(n, func(n *yaml.Node) {
		t := &Trigger{}
		got := p.mapping(n, "a trigger", keys{"name": p.name(&t.Name), "method": p.text(&t.Method), "key": p.text(&t.Key), "label": p.text(&t.Label)})
		for _, k := range []string{"name", "method", "key"} {
			if got[k] == nil && n.Kind == yaml.MappingNode {
				p.find(n, "a trigger: key %q is missing", k)
			}
		}
		if _, twice := p.def.Trigger(t.Name); twice {
			p.find(n, "trigger %q is declared twice", t.Name)
		}
		p.triggerLocations(n, t)
		p.def.Triggers = append(p.def.Triggers, *t)
		if at := p.places[&t.Method]; at != nil {
			p.lookups = append(p.lookups, lookupUse{at, t.Name, t.Method})
		}
	})
}

func (p *fileParser) triggerLocations(n *yaml.Node, t *Trigger) {
	list := func(what, at string) ([]location.Step, bool) {
		steps, err := location.Parse(at)
		if err != nil {
			p.find(n, "trigger %q: %s %q: %v", t.Name, what, at, err)
			return nil, false
		}
		return location.ToList(steps), true
	}
	if t.Key == "" {
		return
	}
	key, ok := list("key", t.Key)
	if !ok {
		return
	}
	if len(key) == 0 {
		p.find(n, "trigger %q: key %q names no list, such as [accounts].id", t.Name, t.Key)
	} else if label, ok := list("label", t.Label); ok && t.Label != "" && !slices.Equal(key, label) {
		p.find(n, "trigger %q: key %q and label %q stand in different lists", t.Name, t.Key, t.Label)
	}
}

// lookupUse is where a trigger is named, or a trigger names its method.
type lookupUse struct {
	at              *yaml.Node
	trigger, method string
}

// lookup reads the name of a trigger, which may be declared further down.
func (p *fileParser) lookup(into *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		p.text(into)(n)
		p.lookups = append(p.lookups, lookupUse{at: n, trigger: *into})
	}
}

// checkTriggers checks what triggers name, and who names them.
func (p *fileParser) checkTriggers() {
	d := p.def
	for _, u := range p.lookups {
		m := d.Methods[u.method]
		_, known := d.Trigger(u.trigger)
		switch {
		case u.method == "" && !known:
			p.find(u.at, "trigger %q does not exist%s", u.trigger, strictjson.DidYouMean(u.trigger, d.triggerNames()))
		case u.method == "":
		case m == nil:
			p.find(u.at, "trigger %q names method %q, which does not exist%s", u.trigger, u.method, strictjson.DidYouMean(u.method, d.MethodNames))
		case m.Type == TypeWebhook:
			p.find(u.at, "trigger %q names method %q, which is a webhook", u.trigger, u.method)
		case m.IsLogin || u.method == d.LogoutMethod:
			p.find(u.at, "trigger %q names method %q, which is the login or the logout method", u.trigger, u.method)
		}
	}
}
