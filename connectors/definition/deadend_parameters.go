package definition

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
)

// parameters finds those that nothing uses, and those that stand in each
// other's way.
func (e *deadEnds) parameters() {
	all := e.connectorTexts()
	e.each(func(_ *Method, n *yaml.Node) { all = append(all, texts(n)...) })
	for _, q := range items(valueOf(e.root, "parameters")) {
		e.used(q, all, e.scripts(nil))
	}
	e.each(func(m *Method, n *yaml.Node) {
		for _, q := range items(valueOf(n, "parameters")) {
			e.used(q, append(e.connectorTexts(), texts(n)...), e.scripts(m))
		}
		e.apart(m, n)
	})
}

// used finds a merge field that no template and no script names. A user name
// or password may be there for the authentication.
func (e *deadEnds) used(at *yaml.Node, texts []*yaml.Node, scripts []*hooks.Script) {
	name, as := textOfNode(valueOf(at, "name")), textOfNode(valueOf(at, "as"))
	if textOfNode(valueOf(at, "target")) != "merge_field" || slices.Contains(mergefields.OfCredential, name) || slices.Contains(mergefields.Supplied, name) {
		return
	}
	if textOfNode(valueOf(at, "property")) == "session" && e.d.LoginMethod == "" {
		return // nothing fills it, which is told
	}
	for _, t := range texts {
		fields := fieldsOf(t.Value)
		if slices.Contains(fields, name) || as != "" && slices.Contains(fields, as) {
			return
		}
	}
	if !named(scripts, name) && (as == "" || !named(scripts, as)) {
		e.p.hint(at, "nothing uses parameter %q: no template has {{%s}}, and no script names it", name, name)
	}
}

// apart finds parameters of one method that write the same place of a request.
func (e *deadEnds) apart(m *Method, n *yaml.Node) {
	_, query, _ := strings.Cut(textOfNode(valueOf(n, "endpoint")), "?")
	inURL, _ := url.ParseQuery(mergefields.Replace(query, "1"))
	seen := map[string]string{}
	for i := range m.Parameters {
		q := &m.Parameters[i]
		wire := q.Wire()
		switch q.Target {
		case "http_header":
			wire = strings.ToLower(wire)
		case "query_string":
			if inURL.Has(wire) {
				e.p.hint(e.parameterNode(n, q.Name), "the endpoint of method %q has query parameter %q already, so it is sent twice", m.Name, wire)
			}
		default:
			continue
		}
		place := q.Target + " " + wire
		if other, twice := seen[place]; twice && find(own(n), q.Name) != nil {
			e.p.hint(e.parameterNode(n, q.Name), "parameters %q and %q both become the %s %q: the later one wins", other, q.Name, placeNames[q.Target], q.Wire())
		}
		seen[place] = q.Name
	}
}

var placeNames = map[string]string{"http_header": "header", "query_string": "query parameter"}

var tokenText = regexp.MustCompile(`CYCLR_PAGE_TOKEN\w*`)

// pages finds paging that cannot go on, and what is there for pages that
// nobody asks for.
func (e *deadEnds) pages() {
	e.each(func(m *Method, n *yaml.Node) {
		if m.Type != TypeAction {
			return
		}
		paged := func(key string) *yaml.Node {
			if at := valueOf(n, "paging", key); at != nil {
				return at
			}
			return valueOf(e.root, "paging", key)
		}
		if out := paged("outbound"); textOfNode(out) == "true" && paged("outbound_location") == nil {
			e.p.hint(out, "outbound paging of method %q needs outbound_location: where in the body is the list that is cut?", m.Name)
		}
		inbound := paged("inbound")
		if textOfNode(inbound) != "true" {
			for _, q := range items(valueOf(n, "parameters")) {
				if v := valueOf(q, "value"); v != nil && strings.Contains(v.Value, "CYCLR_PAGE_") {
					e.p.hint(v, "method %q is not paged, so %s means nothing here: paging: {inbound: true} is missing", m.Name, v.Value)
				}
			}
			return
		}
		e.goesOn(m, n, inbound)
		e.tokens(m, n)
	})
}

// goesOn finds a paged method whose requests are all the same.
func (e *deadEnds) goesOn(m *Method, n, inbound *yaml.Node) {
	for _, t := range append(e.connectorTexts(), texts(n)...) {
		if strings.Contains(t.Value, "CYCLR_PAGE_") && !strings.Contains(t.Value, "CYCLR_PAGE_SIZE") {
			return
		}
	}
	if valueOf(n, "paging", "inbound") == nil && strings.Contains(strings.ReplaceAll(e.p.def.Source, "CYCLR_PAGE_SIZE", ""), "CYCLR_PAGE_") {
		return // the connector's, and meant for other methods
	}
	scripts := e.scripts(m)
	if named(scripts, "before_action") || named(scripts, "after_action_paging") || slices.ContainsFunc(scripts, func(s *hooks.Script) bool { return strings.Contains(s.Source, "CYCLR_PAGE_") }) {
		return
	}
	e.p.hint(inbound, "every page of method %q would be the same request: no parameter has {{CYCLR_PAGE_NUMBER}}, {{CYCLR_PAGE_OFFSET}}, a token or the next URL, and no script pages", m.Name)
}

// tokens finds tokens that are read and not sent, or sent and not read.
func (e *deadEnds) tokens(m *Method, n *yaml.Node) {
	read, sent := map[string]*yaml.Node{}, map[string]*yaml.Node{}
	own := items(valueOf(n, "parameters"))
	reading := func(list []*yaml.Node) {
		for _, q := range list {
			if v := valueOf(q, "value"); v != nil && textOfNode(valueOf(q, "target")) == "response_field" {
				for _, token := range tokenText.FindAllString(v.Value, -1) {
					read[token] = v
				}
			}
		}
	}
	reading(items(valueOf(e.root, "parameters")))
	reading(own)
	isRead := func(t *yaml.Node) bool {
		for _, v := range read {
			if v == t {
				return true
			}
		}
		return false
	}
	for _, t := range append(e.connectorTexts(), texts(n)...) {
		if isRead(t) {
			continue
		}
		for _, token := range tokenText.FindAllString(t.Value, -1) {
			sent[token] = t
		}
	}
	inScript := func(token string) bool { return named(e.scripts(m), token) }
	for token, at := range read {
		if sent[token] == nil && !inScript(token) {
			e.p.hint(at, "method %q sends %s nowhere, so each page would be the first: a parameter with value: \"{{%s}}\" sends it", m.Name, token, token)
		}
	}
	for token, at := range sent {
		if read[token] == nil && !inScript(token) {
			e.p.hint(at, "method %q reads %s nowhere: a parameter of target response_field says where in the answer it is", m.Name, token)
		}
	}
}

// attemptTime is what an attempt of a step has, if the step does not say.
const attemptTime = 5 * time.Minute

// timeouts finds calls that may take longer than an attempt.
func (e *deadEnds) timeouts() {
	e.each(func(m *Method, n *yaml.Node) {
		if m.Timeout > attemptTime {
			e.p.hint(valueOf(n, "timeout"), "timeout: an attempt of a step has %s unless the step says otherwise, so a call is cut off before", attemptTime)
		}
	})
}
