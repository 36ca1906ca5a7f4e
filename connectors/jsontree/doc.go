// Package jsontree holds JSON and YAML values in memory: an [Object] keeps its
// members' order, a number is a json.Number as it was written, and the rest is
// as encoding/json has it. It also gives a value the type that a connector file
// declares.
package jsontree
