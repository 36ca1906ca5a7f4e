package connectors

import "go.yaml.in/yaml/v4"

// Paging is how a method's pages are asked for.
type Paging struct {
	Inbound  bool
	PageSize int
}

func (p *fileParser) paging(n *yaml.Node, into *Paging, _ *Method) {
	p.mapping(n, "paging", keys{"inbound": p.boolean(&into.Inbound), "page_size": p.number(&into.PageSize, 1, 1_000_000)})
}

func (p *fileParser) pagingOf(m *Method, _ []Parameter) {
	if m.Paging.PageSize == 0 {
		m.Paging.PageSize = p.def.Paging.PageSize
	}
}

const maxConcurrent = 100_000
