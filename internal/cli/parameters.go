package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Parameters reads the values of --parameter: k=text, or k:=JSON.
func Parameters(given []string) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	for _, p := range given {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" || name == ":" {
			return nil, fmt.Errorf("--parameter %q: k=text or k:=JSON is needed", p)
		}
		raw, _ := json.Marshal(value)
		if typed, ok := strings.CutSuffix(name, ":"); ok {
			if name, raw = typed, []byte(value); !json.Valid(raw) {
				return nil, fmt.Errorf("--parameter %s: the value is no JSON", name)
			}
		}
		if all == nil {
			all = map[string]json.RawMessage{}
		}
		all[name] = raw
	}
	return all, nil
}

// JSON reads an option whose value is JSON, or @FILE that holds it; nil if there is none.
func JSON(option, given string) (json.RawMessage, error) {
	if given == "" {
		return nil, nil
	}
	raw := []byte(given)
	if file, ok := strings.CutPrefix(given, "@"); ok {
		var err error
		if raw, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("--%s: %s cannot be read", option, file)
		}
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("--%s is no JSON", option)
	}
	return raw, nil
}
