package hooks

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/dop251/goja"
)

// XML and objects, by the convention of Newtonsoft's Json.NET: an element is a
// member, "@name" an attribute, "#text" the text of an element that has
// attributes or elements too, elements of one name are a list, <a/> is null
// and <a></a> is "". Names keep their prefixes as they stand. Comments,
// declarations and processing instructions are left out.

const maxXMLDepth = 500

// xmlNode is an element that is being read.
type xmlNode struct {
	name    string
	members []xmlMember
	index   map[string]int
	text    strings.Builder
	texts   []string // before each element, and after the last
	plain   bool     // nothing but text so far
}

type xmlMember struct {
	name   string
	values []goja.Value
}

func (n *xmlNode) add(name string, v goja.Value) {
	i, ok := n.index[name]
	if !ok {
		if n.index == nil {
			n.index = map[string]int{}
		}
		i = len(n.members)
		n.index[name] = i
		n.members = append(n.members, xmlMember{name: name})
	}
	n.members[i].values = append(n.members[i].values, v)
}

// cut ends a run of text where an element begins or ends. White space between
// elements is none.
func (n *xmlNode) cut() {
	if t := n.text.String(); strings.TrimSpace(t) != "" {
		n.texts = append(n.texts, t)
	}
	n.text.Reset()
}

func (r *run) xmlDeserialize(c goja.FunctionCall) goja.Value {
	v, err := r.fromXML(strings.TrimPrefix(text(c.Argument(0)), "\ufeff"))
	if err != nil {
		r.throw("cyclr_xml_deserialize: " + err.Error())
	}
	return v
}

func (r *run) fromXML(source string) (goja.Value, error) {
	vm := r.vm
	d := xml.NewDecoder(strings.NewReader(source))
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // it is text already
	var open []*xmlNode
	var root *goja.Object
	name := func(n xml.Name) string {
		if n.Space != "" {
			return n.Space + ":" + n.Local
		}
		return n.Local
	}
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, xmlError(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			if len(open) == 0 && root != nil {
				return nil, fmt.Errorf("a second root element, <%s>", short(name(t.Name), 60))
			}
			if len(open) >= maxXMLDepth {
				return nil, fmt.Errorf("elements are nested deeper than %d", maxXMLDepth)
			}
			if len(open) > 0 {
				parent := open[len(open)-1]
				parent.cut()
				parent.plain = false
			}
			n := &xmlNode{name: name(t.Name), plain: true}
			for _, a := range t.Attr {
				n.add("@"+name(a.Name), vm.ToValue(a.Value))
				n.plain = false
			}
			open = append(open, n)
			// <a/> ends where it began.
			if at := d.InputOffset(); at >= 2 && int(at) <= len(source) && source[at-2:at] == "/>" {
				end, err := d.RawToken()
				if _, ok := end.(xml.EndElement); err != nil || !ok {
					return nil, errors.New("malformed XML")
				}
				open = open[:len(open)-1]
				root = r.closeXML(open, n, root, true)
			}
		case xml.EndElement:
			line, _ := d.InputPos()
			if len(open) == 0 || open[len(open)-1].name != name(t.Name) {
				return nil, fmt.Errorf("line %d: </%s> closes what is not open", line, short(name(t.Name), 60))
			}
			n := open[len(open)-1]
			open = open[:len(open)-1]
			root = r.closeXML(open, n, root, false)
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].text.Write(t)
			} else if strings.TrimSpace(string(t)) != "" {
				return nil, errors.New("there is text outside of the root element")
			}
		}
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("<%s> is not closed", short(open[len(open)-1].name, 60))
	}
	if root == nil {
		return nil, errors.New("there is no root element")
	}
	return root, nil
}

// xmlError says where malformed XML is malformed.
func xmlError(err error) error {
	var syntax *xml.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("line %d: %s", syntax.Line, syntax.Msg)
	}
	return err
}

// closeXML hands an element that has ended to its parent, or makes it the root.
func (r *run) closeXML(open []*xmlNode, n *xmlNode, root *goja.Object, selfClosed bool) *goja.Object {
	v := r.xmlValue(n, selfClosed)
	if len(open) > 0 {
		open[len(open)-1].add(n.name, v)
		return root
	}
	root = r.vm.NewObject()
	_ = root.DefineDataProperty(n.name, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
	return root
}

func (r *run) xmlValue(n *xmlNode, selfClosed bool) goja.Value {
	vm := r.vm
	if n.plain {
		if selfClosed {
			return goja.Null()
		}
		return vm.ToValue(n.text.String())
	}
	n.cut()
	for _, t := range n.texts {
		n.add("#text", vm.ToValue(t))
	}
	o := vm.NewObject()
	for _, m := range n.members {
		v := m.values[0]
		if len(m.values) > 1 {
			items := make([]any, len(m.values))
			for i := range m.values {
				items[i] = m.values[i]
			}
			v = vm.NewArray(items...)
		}
		_ = o.DefineDataProperty(m.name, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
	}
	return o
}

func (r *run) xmlSerialize(c goja.FunctionCall) goja.Value {
	raw, err := r.stringify(c.Argument(0))
	if err != nil {
		panic(err)
	}
	out, err := toXML(raw)
	if err != nil {
		r.throw("cyclr_xml_serialize: " + err.Error())
	}
	return r.vm.ToValue(out)
}

// xmlName is a Name of XML 1.0 section 2.3, prefix included.
var xmlName = regexp.MustCompile(`^[\pL_][\pL\pN._\-]*(:[\pL_][\pL\pN._\-]*)?$`)

// toXML writes an object with one member as XML, without declaration and
// indentation.
func toXML(raw json.RawMessage) (string, error) {
	root, err := jsonMembers(raw)
	if err != nil || raw == nil {
		return "", errors.New("an object is needed")
	}
	root = slices.DeleteFunc(root, func(m jsonMember) bool { return strings.HasPrefix(m.name, "?") })
	if len(root) != 1 {
		return "", fmt.Errorf("an object with one root element is needed, this one has %d members", len(root))
	}
	if root[0].raw[0] == '[' {
		return "", errors.New("the root element cannot be a list")
	}
	var w bytes.Buffer
	if err := writeXML(&w, root[0], 0); err != nil {
		return "", err
	}
	return w.String(), nil
}

type jsonMember struct {
	name string
	raw  json.RawMessage
}

// jsonMembers are an object's members, in order.
func jsonMembers(raw json.RawMessage) ([]jsonMember, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("no object")
	}
	var all []jsonMember
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := jsonMember{name: t.(string)}
		if err := d.Decode(&m.raw); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func writeXML(w *bytes.Buffer, m jsonMember, depth int) error {
	if depth > maxXMLDepth {
		return fmt.Errorf("elements are nested deeper than %d", maxXMLDepth)
	}
	if m.raw[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(m.raw, &list); err != nil {
			return err
		}
		for _, e := range list {
			if e[0] == '[' {
				return fmt.Errorf("member %q: a list in a list has no name for its elements", short(m.name, 60))
			}
			if err := writeXML(w, jsonMember{m.name, e}, depth); err != nil {
				return err
			}
		}
		return nil
	}
	if !xmlName.MatchString(m.name) {
		return fmt.Errorf("%q is no name of an element", short(m.name, 60))
	}
	w.WriteString("<" + m.name)
	if m.raw[0] != '{' {
		if string(m.raw) == "null" {
			w.WriteString(" />")
			return nil
		}
		w.WriteByte('>')
		if err := writeXMLText(w, m.raw, false); err != nil {
			return fmt.Errorf("element %q: %w", short(m.name, 60), err)
		}
		w.WriteString("</" + m.name + ">")
		return nil
	}
	members, err := jsonMembers(m.raw)
	if err != nil {
		return err
	}
	content := 0
	for _, c := range members {
		name, attribute := strings.CutPrefix(c.name, "@")
		switch {
		case !attribute:
			content++
		case !xmlName.MatchString(name):
			return fmt.Errorf("%q is no name of an attribute", short(c.name, 60))
		case string(c.raw) == "null":
		default:
			w.WriteString(" " + name + `="`)
			if err := writeXMLText(w, c.raw, true); err != nil {
				return fmt.Errorf("attribute %q: %w", short(c.name, 60), err)
			}
			w.WriteByte('"')
		}
	}
	if content == 0 {
		w.WriteString(" />")
		return nil
	}
	w.WriteByte('>')
	for _, c := range members {
		switch {
		case strings.HasPrefix(c.name, "@"):
		case c.name == "#text", c.name == "#cdata-section":
			texts := []json.RawMessage{c.raw}
			if c.raw[0] == '[' {
				if err := json.Unmarshal(c.raw, &texts); err != nil {
					return err
				}
			}
			for _, t := range texts {
				if err := writeXMLText(w, t, false); err != nil {
					return fmt.Errorf("element %q: %w", short(m.name, 60), err)
				}
			}
		case strings.HasPrefix(c.name, "#"): // a comment, white space
		default:
			if err := writeXML(w, c, depth+1); err != nil {
				return err
			}
		}
	}
	w.WriteString("</" + m.name + ">")
	return nil
}

// writeXMLText writes a text, a number or a boolean.
func writeXMLText(w *bytes.Buffer, raw json.RawMessage, attribute bool) error {
	t := string(raw)
	switch raw[0] {
	case '"':
		if err := json.Unmarshal(raw, &t); err != nil {
			return err
		}
	case '{', '[':
		return errors.New("text is needed, not an object or a list")
	case 'n':
		return nil
	}
	for _, c := range t {
		switch {
		case c == '&':
			w.WriteString("&amp;")
		case c == '<':
			w.WriteString("&lt;")
		case c == '>':
			w.WriteString("&gt;")
		case c == '"' && attribute:
			w.WriteString("&quot;")
		case c == '\r', attribute && (c == '\n' || c == '\t'):
			fmt.Fprintf(w, "&#x%X;", c)
		case c < ' ' && c != '\n' && c != '\t', c == '\ufffe', c == '\uffff':
			return fmt.Errorf("character U+%04X cannot stand in XML", c)
		default:
			w.WriteRune(c)
		}
	}
	return nil
}
