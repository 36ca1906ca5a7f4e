package definition

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// Recording is what a recording that stands beside a connector shows of its
// answers. Names stand in it for secrets.
type Recording struct {
	File      string
	Connector string
	Answers   []RecordedAnswer // to this connector's methods, those that went well
}

// RecordedAnswer is one answer, and the request that it is one to.
type RecordedAnswer struct {
	Number int
	Verb   string
	Path   string // of the request's URL
	Header http.Header
	Body   string // JSON, else it is not looked at
}

// CheckBeside is Check, with the recordings that lie in a connector file's folder:
// locations of response fields are looked up in the answers there.
func CheckBeside(paths []string, recordings func(folder string) []Recording) ([]Finding, error) {
	c, findings, err := load(paths)
	if err != nil {
		return nil, err
	}
	for _, name := range c.Names() {
		d := c.defs[name]
		if slices.ContainsFunc(findings, func(f Finding) bool { return f.File == d.File && !f.Hint }) {
			continue
		}
		var mine []Recording
		for _, r := range recordings(filepath.Dir(d.File)) {
			if r.Connector == name {
				mine = append(mine, r)
			}
		}
		findings = append(findings, d.recorded(mine)...)
	}
	return findings, nil
}

// recorded compares a connector's response fields with recorded answers.
func (d *Connector) recorded(recordings []Recording) (all []Finding) {
	var doc yaml.Node
	if len(recordings) == 0 || yaml.Unmarshal([]byte(d.Source), &doc) != nil || len(doc.Content) == 0 {
		return nil
	}
	for _, n := range items(valueOf(doc.Content[0], "methods")) {
		m := d.Methods[textOfNode(valueOf(n, "method"))]
		if m == nil || m.Type != TypeAction || d.rewrites(m) {
			continue
		}
		for i, f := range items(valueOf(n, "response", "fields")) {
			if i >= len(m.Fields) || m.Fields[i].Optional {
				continue
			}
			if at, text := d.unmatched(m, &m.Fields[i], f, recordings); text != "" {
				all = append(all, Finding{File: d.File, Line: at.Line, Column: at.Column, Hint: true, Text: text})
			}
		}
	}
	return all
}

var rewritten = regexp.MustCompile(`method_response(\.\w+|\[[^\]]*\])*\s*=[^=]|\b(method_response|parse)\s*\(`)

// rewrites says that hooks may make another answer of the one that came.
func (d *Connector) rewrites(m *Method) bool {
	return d.Script != nil && rewritten.MatchString(d.Script.Source) || m.Script != nil && rewritten.MatchString(m.Script.Source)
}

// unmatched says why no recorded answer of a method has a field, in words of
// the last; "" if one has it, or if none is there to tell.
func (d *Connector) unmatched(m *Method, f *ResponseField, n *yaml.Node, recordings []Recording) (at *yaml.Node, text string) {
	at = n
	for _, r := range recordings {
		for _, a := range r.Answers {
			if d.methodOf(a) != m {
				continue
			}
			var why string
			var ok bool
			switch {
			case f.Header != "":
				at = valueOf(n, "header")
				ok = len(a.Header.Values(f.Header)) > 0
				why = fmt.Sprintf("has no header %s", f.Header)
			case f.Cookie != "":
				at = valueOf(n, "cookie")
				ok = slices.ContainsFunc(a.Header.Values("Set-Cookie"), func(line string) bool {
					name, _, _ := strings.Cut(line, "=")
					return strings.TrimSpace(name) == f.Cookie
				})
				why = fmt.Sprintf("sets no cookie %s", f.Cookie)
			default:
				at = valueOf(n, "field")
				tree, err := jsontree.Decode([]byte(a.Body))
				steps, errPath := location.Parse(f.Field)
				if err != nil || errPath != nil {
					continue // nothing can be told
				}
				why = lookUp(tree, steps, "")
				ok = why == ""
			}
			if ok {
				return nil, ""
			}
			text = fmt.Sprintf("in %s answer %d %s", filepath.Base(r.File), a.Number, why)
		}
	}
	return at, text
}

// methodOf is the one method whose request an answer belongs to; nil if that
// is none or cannot be told.
func (d *Connector) methodOf(a RecordedAnswer) (found *Method) {
	for _, name := range d.MethodNames {
		m := d.Methods[name]
		if m.Type != TypeAction || m.Verb != a.Verb || !endpointPath(m.Endpoint).MatchString(a.Path) {
			continue
		}
		if found != nil {
			return nil
		}
		found = m
	}
	return found
}

// endpointPath is what the path of an endpoint's requests ends with.
func endpointPath(endpoint string) *regexp.Regexp {
	path, _, _ := strings.Cut(endpoint, "?")
	if u, err := url.Parse(mergefields.Replace(path, "x")); err == nil && u.Host != "" {
		_, path, _ = strings.Cut(strings.SplitN(path, "://", 2)[1], "/")
	}
	var re strings.Builder
	parts, err := mergefields.Split("/" + strings.Trim(path, "/"))
	if err != nil {
		return regexp.MustCompile(`$^`)
	}
	for _, p := range parts {
		switch {
		case p.Name == "":
			re.WriteString(regexp.QuoteMeta(p.Text))
		case p.Raw:
			re.WriteString(`.+`)
		default:
			re.WriteString(`[^/]+`)
		}
	}
	return regexp.MustCompile(re.String() + `/?$`)
}

// lookUp says why a location is not in a value; "" if it is there, or if an
// empty list or null hides it.
func lookUp(v any, steps []location.Step, at string) string {
	for i, s := range steps {
		if v == nil {
			return ""
		}
		if s.Name != "" || !s.List {
			m, ok := v.(*jsontree.Object)
			if list, isList := v.([]any); isList && i == 0 {
				return fmt.Sprintf("is a list of %d: its items' members are written [].%s", len(list), s.Name)
			} else if isList {
				return fmt.Sprintf("has a list at %s: it is written [%s]", at, at)
			}
			if !ok {
				return fmt.Sprintf("has no members at %s", at)
			}
			next, there := m.Values[s.Name]
			if !there {
				return fmt.Sprintf("has no member %q%s; it has %s%s", s.Name, below(at), quotedList(m.Keys[:min(len(m.Keys), 8)]), strictjson.DidYouMean(s.Name, m.Keys))
			}
			v, at = next, strings.TrimPrefix(at+"."+s.Name, ".")
		}
		if !s.List || v == nil {
			continue
		}
		list, ok := v.([]any)
		if !ok && at == "" {
			return "is no list"
		} else if !ok {
			return fmt.Sprintf("has no list at %s: without brackets it is one value", at)
		}
		why := ""
		for _, item := range list { // one that has it is enough
			if why = lookUp(item, steps[i+1:], at); why == "" {
				return ""
			}
		}
		return why
	}
	return ""
}

func below(at string) string {
	if at == "" {
		return ""
	}
	return " in " + at
}
