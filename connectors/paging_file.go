package connectors

import (
	"slices"
	"strings"

	"github.com/stepworker/stepworker/internal/strictjson"
	"go.yaml.in/yaml/v4"
)

// Paging is how a method's pages are asked for and put together.
type Paging struct {
	Inbound  bool // the answer comes in pages
	PageSize int  // items of a page; 0: not known
	MaxPages int  // that are asked for; 0: all
	// List is the location of the list that a page holds; More that of a value
	// that is null, false, 0, "" or missing on the last page; LastPage that of
	// the last page's number. Each may be "".
	List, More, LastPage string
	End                  string // what the last page is known by: endShort, endEmpty
	// Outbound: the list at OutboundLocation is sent in requests of
	// OutboundPageSize items.
	Outbound         bool
	OutboundPageSize int
	OutboundLocation string

	own bool // the method itself says that its answer comes in pages

	list, more, lastPage, outbound []pathStep
}

const (
	endShort = "short_page" // it has fewer items than page_size, or none
	endEmpty = "empty_page" // it has none
)

const (
	maxPageSize   = 1_000_000
	maxConcurrent = 100_000
)

// paging reads a mapping. A method's begins as the connector's.
func (p *fileParser) paging(n *yaml.Node, into *Paging) map[string]*yaml.Node {
	at := func(text *string, steps *[]pathStep) func(*yaml.Node) {
		return func(n *yaml.Node) {
			p.text(text)(n)
			var err error
			if *steps, err = parsePath(*text); err != nil {
				p.find(n, "location %q: %v", *text, err)
			}
		}
	}
	listOf := func(text *string, steps *[]pathStep) func(*yaml.Node) {
		return func(n *yaml.Node) {
			at(text, steps)(n)
			if i := slices.IndexFunc(*steps, func(s pathStep) bool { return s.list }); len(*steps) > 0 && i != len(*steps)-1 {
				p.find(n, "location %q: a list is needed, such as data.[records], and no other before it", *text)
			}
		}
	}
	return p.mapping(n, "paging", keys{
		"inbound":            p.boolean(&into.Inbound),
		"page_size":          p.number(&into.PageSize, 1, maxPageSize),
		"max_pages":          p.number(&into.MaxPages, 1, mostPages),
		"list":               listOf(&into.List, &into.list),
		"more":               at(&into.More, &into.more),
		"last_page":          at(&into.LastPage, &into.lastPage),
		"end":                p.enum(&into.End, []string{endShort, endEmpty}),
		"outbound":           p.boolean(&into.Outbound),
		"outbound_page_size": p.number(&into.OutboundPageSize, 1, maxPageSize),
		"outbound_location":  listOf(&into.OutboundLocation, &into.outbound),
	})
}

// methodPaging reads a method's.
func (p *fileParser) methodPaging(n *yaml.Node, m *Method) {
	got := p.paging(n, &m.Paging)
	m.Paging.own = got["inbound"] != nil
	switch {
	case m.Paging.Inbound && m.Paging.Outbound && got["inbound"] != nil && got["outbound"] != nil:
		p.find(got["outbound"], "paging: a method's pages are either inbound or outbound")
	case m.Paging.Outbound && m.Paging.OutboundPageSize == 0:
		p.find(n, "paging: key \"outbound_page_size\" is missing: how many items does a request take?")
	case m.Paging.Outbound && m.Paging.OutboundLocation == "":
		p.find(n, "paging: key \"outbound_location\" is missing: which list of the body is sent in parts?")
	}
	if m.Paging.Outbound { // which of the two the method asks for
		m.Paging.Inbound = false
	}
}

// pageVariable reads a parameter's value that is a page variable, with or
// without its braces.
func (p *fileParser) pageVariable(n *yaml.Node, q *Parameter) {
	if text, ok := q.Value.(string); ok && strings.HasPrefix(text, pagePrefix) {
		q.Value = "{{" + text + "}}"
		if text != pageNextURL && !isPageField(text) {
			p.find(n, "%q is no page variable%s", text, strictjson.DidYouMean(text, pageVariables))
		}
	}
	if q.Target != "response_field" {
		if text, _ := q.Value.(string); strings.Contains(text, pageNextURL) {
			p.find(n, "parameter %q: {{%s}} is the value of a response_field parameter alone: the next request goes there as it is", q.Name, pageNextURL)
		}
		if q.Header != "" {
			p.find(n, "parameter %q: header has a meaning for target response_field alone", q.Name)
		}
		return
	}
	if q.pointer() == "" {
		p.find(n, "parameter %q: a response_field reads what leads to the next page, so its value is {{%s}} or {{%s}}", q.Name, pageNextURL, pageToken)
	}
	if q.Header != "" {
		p.headerName(n, q.Header)
	} else if _, err := parsePath(q.wire()); err != nil {
		p.find(n, "parameter %q: location %q: %v", q.Name, q.wire(), err)
	}
}

// needsPageSize finds what counts by a page's size where nobody says it: each
// page would be the first.
func (p *fileParser) needsPageSize(t template, name string) {
	lacks := func(m *Method) bool { return m.Paging.Inbound && m.Paging.PageSize == 0 }
	missing := t.method != nil && lacks(t.method)
	if t.method == nil {
		for _, m := range p.def.MethodNames {
			missing = missing || lacks(p.def.Methods[m])
		}
	}
	if missing && (name == pageOffset || name == pageSize) {
		p.find(t.node, "{{%s}} needs paging.page_size: how many items does a page have?", name)
	}
}
