package definition

import (
	"slices"

	"go.yaml.in/yaml/v4"
)

// scalarTags are the tags that make something else of a scalar (YAML 1.2
// section 10.3.2): !!str 5 is a text, !!int "5" a number.
var scalarTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null"}

// tags finds those that nobody reads, and those that change nothing.
func (p *fileParser) tags(n *yaml.Node) {
	for _, c := range n.Content {
		p.tags(c)
	}
	if n.Style&yaml.TaggedStyle == 0 {
		return
	}
	without := map[yaml.Kind]string{yaml.MappingNode: "!!map", yaml.SequenceNode: "!!seq", yaml.ScalarNode: plainTag(n)}[n.Kind]
	switch tag := n.ShortTag(); {
	case tag == without:
		p.hint(n, "tag %s changes nothing here", tag)
	case n.Kind != yaml.ScalarNode || !slices.Contains(scalarTags, tag):
		p.find(n, "tag %s means nothing here: !!str, !!int, !!float, !!bool and !!null are known, of a scalar", tag)
	}
}

// plainTag is the tag that a scalar would have without its own.
func plainTag(n *yaml.Node) string {
	const quoted = yaml.DoubleQuotedStyle | yaml.SingleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	var alone yaml.Node
	if n.Style&quoted == 0 && n.Value == "" {
		return "!!null"
	}
	if n.Style&quoted != 0 || yaml.Unmarshal([]byte(n.Value), &alone) != nil || len(alone.Content) == 0 || alone.Content[0].Kind != yaml.ScalarNode {
		return "!!str"
	}
	return alone.Content[0].ShortTag()
}
