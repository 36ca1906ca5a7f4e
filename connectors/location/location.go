package location

import (
	"errors"
	"strings"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

// Step is one step of a field's location: a member, and whether its value
// is a list to go through.
type Step struct {
	Name string // "" for the root list
	List bool
}

// Parse reads a field notation: a.b, [list].x, [a].[b].x, [].x,
// data.[records].id; backslashes around a name make it literal.
func Parse(s string) ([]Step, error) {
	var steps []Step
	for s != "" {
		var name string
		if strings.HasPrefix(s, `\`) {
			end := strings.Index(s[1:], `\`)
			if end < 0 {
				return nil, errors.New(`a name that begins with \ must end with \`)
			}
			name, s = s[1:1+end], s[2+end:]
			steps = append(steps, Step{Name: name})
		} else {
			end := strings.IndexByte(s, '.')
			if end < 0 {
				end = len(s)
			}
			name, s = s[:end], s[end:]
			if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
				steps = append(steps, Step{Name: name[1 : len(name)-1], List: true})
			} else if name == "" {
				return nil, errors.New("an empty name")
			} else {
				steps = append(steps, Step{Name: name})
			}
		}
		if s != "" {
			if s[0] != '.' || len(s) == 1 {
				return nil, errors.New("a dot must stand between names")
			}
			s = s[1:]
		}
	}
	return steps, nil
}

// HasList says that a location leads through a list.
func HasList(steps []Step) bool {
	for _, s := range steps {
		if s.List {
			return true
		}
	}
	return false
}

// ToList is the beginning of a location that ends with its last list; nil
// without one.
func ToList(steps []Step) []Step {
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].List {
			return steps[:i+1]
		}
	}
	return nil
}

// Member follows members alone.
func Member(tree any, steps []Step) (any, bool) {
	for _, s := range steps {
		m, ok := tree.(*jsontree.Object)
		if !ok {
			return nil, false
		}
		if tree, ok = m.Values[s.Name]; !ok {
			return nil, false
		}
	}
	return tree, true
}

// Lay sets what stands at a location, and makes the objects that lead there.
func Lay(tree any, steps []Step, v any) (any, bool) {
	if len(steps) == 0 {
		return v, true
	}
	m, ok := tree.(*jsontree.Object)
	if tree == nil {
		m, ok = &jsontree.Object{}, true
	}
	if !ok {
		return nil, false
	}
	inner, ok := Lay(m.Values[steps[0].Name], steps[1:], v)
	if ok {
		m.Set(steps[0].Name, inner)
	}
	return m, ok
}
