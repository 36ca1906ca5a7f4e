package definition

import (
	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/location"
)

// FilterField is the target of a parameter that lets only newer items of an
// answer pass: as (default its name) is a location in a list, and of its items
// those stay whose value there is later, or greater, than the parameter's.
const FilterField = "filter_field"

func (p *fileParser) filterLocation(n *yaml.Node, q *Parameter) {
	steps, err := location.Parse(q.Wire())
	if err != nil {
		p.find(n, "parameter %q: location %q: %v", q.Name, q.Wire(), err)
	} else if location.ToList(steps) == nil {
		p.find(n, "parameter %q filters the items of a list: its location (as) must name one, such as [records].updated_at", q.Name)
	}
}
