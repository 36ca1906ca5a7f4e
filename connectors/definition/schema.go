package definition

import (
	_ "embed" // the schema
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

//go:embed schema.json
var schema string

// Schema is the JSON Schema (draft-07, which the YAML language server of
// editors knows best) of connector files: for completion and explanations at
// the keyboard. It refuses less than Check does, and nothing that Check takes.
func Schema() string { return schema }

// keyPlaces are the mappings of a connector file, by what findings call them,
// that have each key.
var keyPlaces = sync.OnceValue(func() map[string][]string {
	type mapping struct {
		Title      string
		Properties map[string]json.RawMessage
	}
	var all struct {
		mapping
		Definitions map[string]mapping
	}
	if err := json.Unmarshal([]byte(schema), &all); err != nil {
		return nil // a test reads it
	}
	places := map[string][]string{}
	for _, m := range append(slices.Collect(maps.Values(all.Definitions)), all.mapping) {
		for key := range m.Properties {
			places[key] = append(places[key], m.Title)
		}
	}
	for _, titles := range places {
		slices.Sort(titles)
	}
	return places
})

// belongs says of a key that stands in the wrong mapping where it would be
// right; "" if it is no key at all, or of so many that to name them helps nobody.
func belongs(key, here string) string {
	places := keyPlaces()[key]
	if len(places) == 0 || len(places) > 3 || slices.Contains(places, here) {
		return ""
	}
	return fmt.Sprintf(": it is a key of %s", strings.Join(places, ", of "))
}
