package definition

import (
	"encoding/json"
	"errors"
	"fmt"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

// yamlValue turns a YAML node into the same kind of tree.
func yamlValue(n *yaml.Node, depth int) (any, error) {
	if depth > 100 {
		return nil, errors.New("nested too deeply")
	}
	switch n.Kind {
	case yaml.MappingNode:
		m := &jsontree.Object{Values: map[string]any{}}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := yamlValue(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			m.Set(n.Content[i].Value, v)
		}
		return m, nil
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := yamlValue(c, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return nil, nil
		case "!!bool":
			var b bool
			err := n.Decode(&b)
			return b, err
		case "!!int":
			if json.Valid([]byte(n.Value)) { // also one that no int64 holds
				return json.Number(n.Value), nil
			}
			var i int64
			if err := n.Decode(&i); err != nil {
				return nil, err
			}
			return json.Number(fmt.Sprint(i)), nil
		case "!!float":
			if json.Valid([]byte(n.Value)) {
				return json.Number(n.Value), nil
			}
			var f float64
			if err := n.Decode(&f); err != nil {
				return nil, err
			}
			raw, err := json.Marshal(f)
			return json.Number(raw), err
		}
		return n.Value, nil
	}
	return nil, errors.New("aliases are not allowed")
}
