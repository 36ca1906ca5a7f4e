package definition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/internal/strictjson"
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
	End                  string // what the last page is known by: endShort, EndEmpty
	// Outbound: the list at OutboundLocation is sent in requests of
	// OutboundPageSize items.
	Outbound         bool
	OutboundPageSize int
	OutboundLocation string

	Own bool // the method itself says that its answer comes in pages

	ListSteps, MoreSteps, LastPageSteps, OutboundSteps []location.Step
}

const (
	endShort = "short_page" // it has fewer items than page_size, or none
	EndEmpty = "empty_page" // it has none
)

const (
	maxPageSize   = 1_000_000
	maxConcurrent = 100_000
)

// MostPages ends a call that would go on for ever.
const MostPages = 10_000

// The page variables, as the reference names them.
const (
	pagePrefix  = "CYCLR_PAGE_"
	PageNumber  = "CYCLR_PAGE_NUMBER"
	PageOffset  = "CYCLR_PAGE_OFFSET"
	PageSize    = "CYCLR_PAGE_SIZE"
	PageNextURL = "CYCLR_PAGE_NEXT_URL"
	pageToken   = "CYCLR_PAGE_TOKEN"
)

var pageVariables = []string{PageNumber, PageOffset, PageSize, PageNextURL, pageToken}

// isPageField says that a merge field is one that a request may hold.
func isPageField(name string) bool {
	return name == PageNumber || name == PageOffset || name == PageSize || IsToken(name)
}

// IsToken says that a name is that of a page token.
func IsToken(name string) bool {
	return name == pageToken || strings.HasPrefix(name, pageToken+"_") && len(name) > len(pageToken)+1
}

// Pointer is the page variable that a response_field parameter fills.
func (q *Parameter) Pointer() string {
	if q.Target != "response_field" {
		return ""
	}
	text, _ := q.Value.(string)
	name := strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(text, "{{"), "}}"))
	if name == PageNextURL || IsToken(name) {
		return name
	}
	return ""
}

// paging reads a mapping. A method's begins as the connector's.
func (p *fileParser) paging(n *yaml.Node, into *Paging) map[string]*yaml.Node {
	at := func(text *string, steps *[]location.Step) func(*yaml.Node) {
		return func(n *yaml.Node) {
			p.text(text)(n)
			var err error
			if *steps, err = location.Parse(*text); err != nil {
				p.find(n, "location %q: %v", *text, err)
			}
		}
	}
	listOf := func(text *string, steps *[]location.Step) func(*yaml.Node) {
		return func(n *yaml.Node) {
			at(text, steps)(n)
			if i := slices.IndexFunc(*steps, func(s location.Step) bool { return s.List }); len(*steps) > 0 && i != len(*steps)-1 {
				p.find(n, "location %q: a list is needed, such as data.[records], and no other before it", *text)
			}
		}
	}
	return p.mapping(n, "paging", keys{
		"inbound":            p.boolean(&into.Inbound),
		"page_size":          p.number(&into.PageSize, 1, maxPageSize),
		"max_pages":          p.number(&into.MaxPages, 1, MostPages),
		"list":               listOf(&into.List, &into.ListSteps),
		"more":               at(&into.More, &into.MoreSteps),
		"last_page":          at(&into.LastPage, &into.LastPageSteps),
		"end":                p.enum(&into.End, []string{endShort, EndEmpty}),
		"outbound":           p.boolean(&into.Outbound),
		"outbound_page_size": p.number(&into.OutboundPageSize, 1, maxPageSize),
		"outbound_location":  listOf(&into.OutboundLocation, &into.OutboundSteps),
	})
}

// methodPaging reads a method's.
func (p *fileParser) methodPaging(n *yaml.Node, m *Method) {
	got := p.paging(n, &m.Paging)
	m.Paging.Own = got["inbound"] != nil
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
		if text != PageNextURL && !isPageField(text) {
			p.find(n, "%q is no page variable%s", text, strictjson.DidYouMean(text, pageVariables))
		}
	}
	if q.Target != "response_field" {
		if text, _ := q.Value.(string); strings.Contains(text, PageNextURL) {
			p.find(n, "parameter %q: {{%s}} is the value of a response_field parameter alone: the next request goes there as it is", q.Name, PageNextURL)
		}
		if q.Header != "" {
			p.find(n, "parameter %q: header has a meaning for target response_field alone", q.Name)
		}
		return
	}
	if q.Pointer() == "" {
		p.find(n, "parameter %q: a response_field reads what leads to the next page, so its value is {{%s}} or {{%s}}", q.Name, PageNextURL, pageToken)
	}
	if q.Header != "" {
		p.headerName(n, q.Header)
	} else if _, err := location.Parse(q.Wire()); err != nil {
		p.find(n, "parameter %q: location %q: %v", q.Name, q.Wire(), err)
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
	if missing && (name == PageOffset || name == PageSize) {
		p.find(t.node, "{{%s}} needs paging.page_size: how many items does a page have?", name)
	}
}
