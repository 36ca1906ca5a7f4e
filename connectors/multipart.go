package connectors

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"mime"
	"mime/multipart"
	"net/textproto"
	"strings"
	"unicode"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
)

// BoundaryPrefix begins the boundaries that are made by chance.
const BoundaryPrefix = "stepworker-"

// multipart writes an object's members as parts: of a form (RFC 7578), or of a
// compound document (RFC 2387). One call has one boundary, so that a page's
// request can be told from the one before.
func (x *exchange) multipart(v any, given string) (body []byte, contentType string, err error) {
	o, ok := v.(*jsontree.Object)
	if !ok {
		return nil, "", errors.New("an object is needed: its members are the parts")
	}
	media, params := "multipart/form-data", map[string]string{}
	if x.m.DataType == definition.MultipartRelated {
		media = "multipart/related"
	}
	if given != "" {
		if media, params, err = mime.ParseMediaType(given); err != nil || !strings.HasPrefix(media, "multipart/") {
			return nil, "", fmt.Errorf("its Content-Type is %q, which is none of multipart", clip(given, 60))
		}
	}
	if x.boundary == "" {
		x.boundary = BoundaryPrefix + rand.Text()
	}
	if params["boundary"] == "" {
		params["boundary"] = x.boundary
	}
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(params["boundary"]); err != nil {
		return nil, "", fmt.Errorf("its boundary %q cannot be one", clip(params["boundary"], 80))
	}
	p := parts{w: w, related: x.m.DataType == definition.MultipartRelated, files: fileFields(x.m), ids: map[string]int{}}
	for _, name := range o.Keys {
		if err := p.member(name, o.Values[name]); err != nil {
			return nil, "", fmt.Errorf("member %q: %w", clip(name, 60), err)
		}
	}
	if p.related {
		if p.first == "" {
			return nil, "", errors.New("it has no member, and one part is needed")
		}
		params["type"] = p.first
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	return b.Bytes(), mime.FormatMediaType(media, params), nil
}

// fileFields are the members that are files though they are plain text.
func fileFields(m *definition.Method) map[string]bool {
	files := map[string]bool{}
	for _, f := range m.Request {
		if len(f.Steps) == 1 && f.Type == "file" {
			files[f.Steps[0].Name] = true
		}
	}
	return files
}

// parts writes the parts of a body.
type parts struct {
	w       *multipart.Writer
	related bool
	files   map[string]bool
	first   string         // media type of the first
	ids     map[string]int // parts of one name
}

// member writes a member: a list of files or scalars one by one, null not at all.
func (p *parts) member(name string, v any) error {
	if v == nil {
		return nil
	}
	if list, ok := v.([]any); ok && p.flat(list) {
		for _, e := range list {
			if e == nil {
				continue
			}
			if err := p.one(name, e); err != nil {
				return err
			}
		}
		return nil
	}
	return p.one(name, v)
}

// flat says that a list's items are parts of their own; else the list is one.
func (p *parts) flat(list []any) bool {
	files := 0
	for _, e := range list {
		switch e.(type) {
		case []any:
			return false
		case *jsontree.Object:
			if _, ok, _ := fileOf(e); !ok {
				return false
			}
			files++
		}
	}
	return !p.related || files > 0
}

func (p *parts) one(name string, v any) error {
	if strings.ContainsFunc(name, func(c rune) bool { return unicode.IsControl(c) && c != '\r' && c != '\n' }) {
		return errors.New("a control character cannot stand in a part's name")
	}
	f, isFile, err := fileOf(v)
	if err != nil {
		return err
	}
	if isFile && strings.ContainsFunc(f.filename, func(c rune) bool { return unicode.IsControl(c) && c != '\r' && c != '\n' }) {
		return errors.New("a control character cannot stand in a filename")
	}
	_, composite := v.(*jsontree.Object)
	if _, list := v.([]any); list {
		composite = true
	}
	text, _ := jsontree.Text(v)
	if !isFile && p.files[name] && !composite {
		f, isFile = &fileValue{content: []byte(text)}, true
	}
	content, contentType := []byte(text), ""
	switch {
	case isFile:
		content, contentType = f.content, f.contentType
		if contentType == "" {
			contentType = binaryType
		}
	case composite:
		contentType = "application/json"
	case p.related:
		contentType = textType
	}
	h := textproto.MIMEHeader{}
	switch {
	case p.related:
		// As a Content-ID may have a name; each is one part's (RFC 2045 section 7).
		id := mergefields.Escape(name)
		if p.ids[name]++; p.ids[name] > 1 {
			id = fmt.Sprintf("%s~%d", id, p.ids[name])
		}
		h.Set("Content-ID", "<"+id+">")
		if isFile && f.filename != "" {
			h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": f.filename}))
		}
	case isFile:
		if f.filename == "" {
			f.filename = name
		}
		h.Set("Content-Disposition", multipart.FileContentDisposition(name, f.filename))
	default:
		// The same with a file's name cut off: the library has the quoting.
		h.Set("Content-Disposition", strings.TrimSuffix(multipart.FileContentDisposition(name, ""), `; filename=""`))
	}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	if p.first == "" {
		p.first, _, _ = mime.ParseMediaType(contentType)
	}
	part, err := p.w.CreatePart(h)
	if err == nil {
		_, err = part.Write(content)
	}
	return err
}
