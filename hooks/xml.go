package hooks

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
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

// XMLToJSON reads an XML document as a JSON object, in the order of the
// document. No entity but XML's own five and character references is known,
// and nothing is fetched; an encoding that the declaration names means nothing,
// source is text already. It takes a small multiple of the document's memory,
// whatever stands in it.
func XMLToJSON(source string) (json.RawMessage, error) {
	if len(source) > math.MaxInt32 {
		return nil, errors.New("a document of more than 2 GiB")
	}
	d := xmlDocument{names: map[string]int32{}}
	if err := d.read(strings.TrimPrefix(source, "\ufeff")); err != nil {
		return nil, err
	}
	w := xmlJSON{doc: &d}
	w.enc = json.NewEncoder(&w.out)
	w.enc.SetEscapeHTML(false)
	w.out.WriteByte('{')
	w.member(0)
	w.out.WriteByte('}')
	return w.out.Bytes(), nil
}

// xmlDocument is a document as one list of its nodes, in its order: an element
// stands before what it holds.
type xmlDocument struct {
	nodes []xmlNode
	names map[string]int32
	named []string // by number
	text  []byte   // of all nodes
}

type xmlNode struct {
	kind     xmlKind
	later    bool // it has one of its name before it
	name     int32
	from, to int32 // its text
	end      int32 // of an element: the node after all that it holds
	same     int32 // the next of this name in the same element; 0: none
}

type xmlKind byte

const (
	xmlObject xmlKind = iota // an element with attributes or elements
	xmlText                  // one with nothing but text, or none
	xmlNull                  // <a/>
	xmlAttribute
	xmlRun // text between elements
)

// xmlOpen is an element that is being read.
type xmlOpen struct {
	node int32
	last map[int32]int32 // the last node of a name in it
	from int32           // where its run of text begins
}

func (d *xmlDocument) number(n xml.Name) int32 {
	name := n.Local
	if n.Space != "" {
		name = n.Space + ":" + n.Local
	}
	i, ok := d.names[name]
	if !ok {
		i = int32(len(d.named))
		name = strings.Clone(name)
		d.names[name], d.named = i, append(d.named, name)
	}
	return i
}

// here is where the next text begins.
func (d *xmlDocument) here() int32 { return int32(len(d.text)) }

// add appends a node that stands in parent.
func (d *xmlDocument) add(parent *xmlOpen, n xmlNode) int32 {
	at := int32(len(d.nodes))
	key := n.name
	if n.kind == xmlAttribute {
		key = -1 - n.name
	}
	if before, ok := parent.last[key]; ok {
		d.nodes[before].same, n.later = at, true
	}
	if parent.last == nil {
		parent.last = map[int32]int32{}
	}
	parent.last[key] = at
	n.end = at + 1
	d.nodes = append(d.nodes, n)
	return at
}

// cut ends a run of text where an element begins or ends. White space between
// elements is none.
func (d *xmlDocument) cut(o *xmlOpen) {
	if len(bytes.TrimSpace(d.text[o.from:])) > 0 {
		d.nodes = append(d.nodes, xmlNode{kind: xmlRun, from: o.from, to: d.here(), end: int32(len(d.nodes)) + 1})
	} else {
		d.text = d.text[:o.from]
	}
	o.from = d.here()
}

func (d *xmlDocument) read(source string) error {
	dec := xml.NewDecoder(strings.NewReader(source))
	dec.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // it is text already
	var open []xmlOpen
	for {
		t, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return xmlError(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			if err := d.begin(&open, t); err != nil {
				return err
			}
			// <a/> ends where it began.
			if at := int(dec.InputOffset()); at >= 2 && at <= len(source) && source[at-2:at] == "/>" {
				end, err := dec.RawToken()
				if _, ok := end.(xml.EndElement); err != nil || !ok {
					return errors.New("malformed XML")
				}
				d.close(&open, true)
			}
		case xml.EndElement:
			line, _ := dec.InputPos()
			if len(open) == 0 || d.nodes[open[len(open)-1].node].name != d.number(t.Name) {
				return fmt.Errorf("line %d: </%s> closes what is not open", line, short(d.named[d.number(t.Name)], 60))
			}
			d.close(&open, false)
		case xml.CharData:
			if len(open) > 0 {
				d.text = append(d.text, t...)
			} else if len(bytes.TrimSpace(t)) > 0 {
				return errors.New("there is text outside of the root element")
			}
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("<%s> is not closed", short(d.named[d.nodes[open[len(open)-1].node].name], 60))
	}
	if len(d.nodes) == 0 {
		return errors.New("there is no root element")
	}
	return nil
}

func (d *xmlDocument) begin(open *[]xmlOpen, t xml.StartElement) error {
	n := xmlNode{kind: xmlText, name: d.number(t.Name)}
	at := int32(0)
	switch depth := len(*open); {
	case depth >= maxXMLDepth:
		return fmt.Errorf("elements are nested deeper than %d", maxXMLDepth)
	case depth > 0:
		parent := &(*open)[depth-1]
		d.nodes[parent.node].kind = xmlObject
		d.cut(parent)
		at = d.add(parent, n)
	case len(d.nodes) > 0:
		return fmt.Errorf("a second root element, <%s>", short(d.named[n.name], 60))
	default:
		d.nodes = append(d.nodes, n)
	}
	o := xmlOpen{node: at}
	for _, a := range t.Attr {
		from := d.here()
		d.text = append(d.text, a.Value...)
		d.add(&o, xmlNode{kind: xmlAttribute, name: d.number(a.Name), from: from, to: d.here()})
		d.nodes[at].kind = xmlObject
	}
	o.from = d.here()
	*open = append(*open, o)
	return nil
}

func (d *xmlDocument) close(open *[]xmlOpen, selfClosed bool) {
	o := &(*open)[len(*open)-1]
	n := &d.nodes[o.node]
	switch {
	case n.kind == xmlObject:
		d.cut(o)
		n = &d.nodes[o.node]
	case selfClosed:
		n.kind = xmlNull
	default:
		n.from, n.to = o.from, d.here()
	}
	n.end = int32(len(d.nodes))
	*open = (*open)[:len(*open)-1]
	if len(*open) > 0 {
		(*open)[len(*open)-1].from = d.here()
	}
}

// xmlError says where malformed XML is malformed.
func xmlError(err error) error {
	var syntax *xml.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("line %d: %s", syntax.Line, syntax.Msg)
	}
	return err
}

// xmlJSON writes a document as JSON.
type xmlJSON struct {
	doc *xmlDocument
	out bytes.Buffer
	enc *json.Encoder
}

func (w *xmlJSON) quote(text string) {
	_ = w.enc.Encode(text)          // a text into memory: no error
	w.out.Truncate(w.out.Len() - 1) // the line's end
}

// member writes the node and those of the same name after it.
func (w *xmlJSON) member(at int32) {
	n := &w.doc.nodes[at]
	name := w.doc.named[n.name]
	if n.kind == xmlAttribute {
		name = "@" + name
	}
	w.quote(name)
	w.out.WriteByte(':')
	if n.same == 0 {
		w.value(at)
		return
	}
	w.out.WriteByte('[')
	for i := at; ; i = w.doc.nodes[i].same {
		w.value(i)
		if w.doc.nodes[i].same == 0 {
			break
		}
		w.out.WriteByte(',')
	}
	w.out.WriteByte(']')
}

func (w *xmlJSON) value(at int32) {
	n := &w.doc.nodes[at]
	switch n.kind {
	case xmlNull:
		w.out.WriteString("null")
	case xmlObject:
		w.object(at)
	default:
		w.quote(string(w.doc.text[n.from:n.to]))
	}
}

func (w *xmlJSON) object(at int32) {
	members, runs := 0, []int32(nil)
	comma := func() {
		if members++; members > 1 {
			w.out.WriteByte(',')
		}
	}
	w.out.WriteByte('{')
	for i := at + 1; i < w.doc.nodes[at].end; i = w.doc.nodes[i].end {
		switch n := &w.doc.nodes[i]; {
		case n.kind == xmlRun:
			runs = append(runs, i)
		case !n.later:
			comma()
			w.member(i)
		}
	}
	if len(runs) > 0 {
		comma()
		w.out.WriteString(`"#text":`)
		if len(runs) > 1 {
			w.out.WriteByte('[')
		}
		for i, run := range runs {
			if i > 0 {
				w.out.WriteByte(',')
			}
			w.value(run)
		}
		if len(runs) > 1 {
			w.out.WriteByte(']')
		}
	}
	w.out.WriteByte('}')
}

// xmlName is a Name of XML 1.0 section 2.3, prefix included.
var xmlName = regexp.MustCompile(`^[\pL_][\pL\pN._\-]*(:[\pL_][\pL\pN._\-]*)?$`)

// XMLName says that a text can be the name of an element or an attribute.
func XMLName(name string) bool { return xmlName.MatchString(name) }

// JSONToXML writes a JSON object with one member as an XML document, without
// declaration and indentation. Texts are escaped; null is an empty element, an
// attribute that is null is left out.
func JSONToXML(raw json.RawMessage) (string, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := readXMLValue(dec, 0)
	if err != nil {
		if len(raw) == 0 || !json.Valid(raw) {
			return "", errors.New("an object is needed")
		}
		return "", err
	}
	if v.kind != '{' {
		return "", errors.New("an object is needed")
	}
	root := slices.DeleteFunc(v.members, func(m xmlMember) bool { return strings.HasPrefix(m.name, "?") })
	if len(root) != 1 {
		return "", fmt.Errorf("an object with one root element is needed, this one has %d members", len(root))
	}
	if root[0].value.kind == '[' {
		return "", errors.New("the root element cannot be a list")
	}
	var w bytes.Buffer
	if err := writeXML(&w, root[0].name, root[0].value, 0); err != nil {
		return "", err
	}
	return w.String(), nil
}

// xmlValue is JSON that is to be written: of kind {, [, n(ull) or t(ext).
type xmlValue struct {
	kind    byte
	text    string // of a text, a number, a boolean
	members []xmlMember
	items   []xmlValue
}

type xmlMember struct {
	name  string
	value xmlValue
}

func readXMLValue(dec *json.Decoder, depth int) (v xmlValue, err error) {
	if depth > 2*maxXMLDepth+1 { // a list of elements is none itself
		return v, errXMLDepth
	}
	t, err := dec.Token()
	if err != nil {
		return v, err
	}
	switch t := t.(type) {
	case json.Delim:
		v.kind = byte(t)
		for dec.More() {
			m := xmlMember{}
			if v.kind == '{' {
				k, err := dec.Token()
				if err != nil {
					return v, err
				}
				m.name = k.(string)
			}
			if m.value, err = readXMLValue(dec, depth+1); err != nil {
				return v, err
			}
			if v.kind == '{' {
				v.members = append(v.members, m)
			} else {
				v.items = append(v.items, m.value)
			}
		}
		_, err = dec.Token()
		return v, err
	case nil:
		v.kind = 'n'
	case string:
		v.kind, v.text = 't', t
	default:
		v.kind, v.text = 't', fmt.Sprint(t)
	}
	return v, nil
}

var errXMLDepth = fmt.Errorf("elements are nested deeper than %d", maxXMLDepth)

func writeXML(w *bytes.Buffer, name string, v xmlValue, depth int) error {
	if depth > maxXMLDepth {
		return errXMLDepth
	}
	if v.kind == '[' {
		for _, e := range v.items {
			if e.kind == '[' {
				return fmt.Errorf("member %q: a list in a list has no name for its elements", short(name, 60))
			}
			if err := writeXML(w, name, e, depth); err != nil {
				return err
			}
		}
		return nil
	}
	if !XMLName(name) {
		return fmt.Errorf("%q is no name of an element", short(name, 60))
	}
	w.WriteString("<" + name)
	content := v.kind == 't'
	for _, c := range v.members {
		attribute, ok := strings.CutPrefix(c.name, "@")
		switch {
		case !ok:
			content = true
		case !XMLName(attribute):
			return fmt.Errorf("%q is no name of an attribute", short(c.name, 60))
		case c.value.kind == 'n':
		default:
			w.WriteString(" " + attribute + `="`)
			if err := writeXMLText(w, c.value, true); err != nil {
				return fmt.Errorf("attribute %q: %w", short(c.name, 60), err)
			}
			w.WriteByte('"')
		}
	}
	if !content {
		w.WriteString(" />")
		return nil
	}
	w.WriteByte('>')
	texts := []xmlValue{v}
	if v.kind == '{' {
		texts = nil
	}
	for _, c := range v.members {
		switch {
		case strings.HasPrefix(c.name, "@"):
			continue
		case c.name == "#text", c.name == "#cdata-section":
			if texts = []xmlValue{c.value}; c.value.kind == '[' {
				texts = c.value.items
			}
		case strings.HasPrefix(c.name, "#"): // a comment, white space
			continue
		default:
			if err := writeXML(w, c.name, c.value, depth+1); err != nil {
				return err
			}
			continue
		}
		if err := writeXMLTexts(w, name, texts); err != nil {
			return err
		}
		texts = nil
	}
	if err := writeXMLTexts(w, name, texts); err != nil {
		return err
	}
	w.WriteString("</" + name + ">")
	return nil
}

func writeXMLTexts(w *bytes.Buffer, name string, texts []xmlValue) error {
	for _, t := range texts {
		if err := writeXMLText(w, t, false); err != nil {
			return fmt.Errorf("element %q: %w", short(name, 60), err)
		}
	}
	return nil
}

// writeXMLText writes a text, a number or a boolean.
func writeXMLText(w *bytes.Buffer, v xmlValue, attribute bool) error {
	if v.kind == '{' || v.kind == '[' {
		return errors.New("text is needed, not an object or a list")
	}
	for _, c := range v.text {
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

func (r *run) xmlDeserialize(c goja.FunctionCall) goja.Value {
	raw, err := XMLToJSON(text(c.Argument(0)))
	if err != nil {
		r.throw("cyclr_xml_deserialize: " + err.Error())
	}
	v, err := r.parseJSON(raw)
	if err != nil {
		r.throw("cyclr_xml_deserialize: " + err.Error())
	}
	return v
}

func (r *run) xmlSerialize(c goja.FunctionCall) goja.Value {
	raw, err := r.stringify(c.Argument(0))
	if err != nil {
		panic(err)
	}
	out, err := JSONToXML(raw)
	if err != nil {
		r.throw("cyclr_xml_serialize: " + err.Error())
	}
	return r.vm.ToValue(out)
}
