package connectors_test

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

// Each data type as the server sees it.
func TestBody_dataTypes(t *testing.T) {
	const declaration = `<?xml version="1.0" encoding="utf-8"?>`
	cases := map[string]struct {
		keys, body                string
		want, contentType, accept string
		fails                     string
	}{
		"xml":                                   {"data_type: xml", `{"a":{"@id":7,"@none":null,"b":[1,true,"x<&>"],"c":null,"d":"","#text":"t"}}`, declaration + `<a id="7"><b>1</b><b>true</b><b>x&lt;&amp;&gt;</b><c /><d></d>t</a>`, "application/xml", "application/xml", ""},
		"xml keeps namespaces":                  {"data_type: xml", `{"s:E":{"@xmlns:s":"u","s:B":{"m":"1"}}}`, declaration + `<s:E xmlns:s="u"><s:B><m>1</m></s:B></s:E>`, "application/xml", "application/xml", ""},
		"xml below its root":                    {"data_type: xml, xml_root: r", `{"a":1,"b":2}`, declaration + `<r><a>1</a><b>2</b></r>`, "application/xml", "application/xml", ""},
		"xml below its root, one other member":  {"data_type: xml, xml_root: r", `{"a":1}`, declaration + `<r><a>1</a></r>`, "application/xml", "application/xml", ""},
		"xml that has its root":                 {"data_type: xml, xml_root: r", `{"r":{"a":1}}`, declaration + `<r><a>1</a></r>`, "application/xml", "application/xml", ""},
		"xml of two roots":                      {"data_type: xml", `{"a":1,"b":2}`, "", "", "", "it has 2 members, and a document has one root element: say xml_root"},
		"xml of a list":                         {"data_type: xml", `[1]`, "", "", "", "an object is needed, whose one member is the root element"},
		"xml of a list below its root":          {"data_type: xml, xml_root: r", `[1]`, "", "", "", "a list cannot stand right below its root element <r>"},
		"xml of several roots of a name":        {"data_type: xml", `{"a":[1,2]}`, "", "", "", "the root element cannot be a list"},
		"xml of a bad name":                     {"data_type: xml", `{"a":{"b c":1}}`, "", "", "", `"b c" is no name of an element`},
		"xml of a character that it has not":    {"data_type: xml", `{"a":"\u0001"}`, "", "", "", "U+0001 cannot stand in XML"},
		"xml that is text already":              {"data_type: xml", `"<a>1</a>"`, declaration + `<a>1</a>`, "application/xml", "application/xml", ""},
		"xml with a declaration of its own":     {"data_type: xml", `"<?xml version=\"1.0\" standalone=\"yes\"?><a/>"`, `<?xml version="1.0" standalone="yes"?><a/>`, "application/xml", "application/xml", ""},
		"xml of a text below its root":          {"data_type: xml, xml_root: r", `"a < b"`, declaration + `<r>a &lt; b</r>`, "application/xml", "application/xml", ""},
		"xml of a text that is none":            {"data_type: xml", `"<a>"`, "", "", "", "it is text that is no XML document: <a> is not closed"},
		"xml of another type":                   {"data_type: xml, content_type: application/soap+xml; charset=utf-8", `{"a":1}`, declaration + `<a>1</a>`, "application/soap+xml; charset=utf-8", "application/xml", ""},
		"a simple file of text":                 {"data_type: simple_file", `"a,b\n"`, "a,b\n", "application/octet-stream", "", ""},
		"a simple file":                         {"data_type: simple_file", `{"content":"AP8=","content_encoding":"base64","filename":"a.bin","content_type":"image/png"}`, "\x00\xff", "image/png", "", ""},
		"a simple file without padding":         {"data_type: simple_file", `{"content":"AP8","content_encoding":"base64"}`, "\x00\xff", "application/octet-stream", "", ""},
		"a simple file of a type by the method": {"data_type: simple_file, content_type: text/csv", `{"content":"a","content_type":"image/png"}`, "a", "text/csv", "", ""},
		"a simple file of no base64":            {"data_type: simple_file", `{"content":"?","content_encoding":"base64"}`, "", "", "", "content is not base64"},
		"a simple file of an unknown encoding":  {"data_type: simple_file", `{"content":"?","content_encoding":"gzip"}`, "", "", "", `content_encoding is "gzip"`},
		"a simple file of a bad type":           {"data_type: simple_file", `{"content":"x","content_type":"a\r\nX: y"}`, "", "", "", "is no media type"},
		"a simple file of an object":            {"data_type: simple_file", `{"a":1}`, "", "", "", "text is needed, or a file"},
		"plain text":                            {"data_type: plain_text", `"zoë"`, "zoë", "text/plain; charset=utf-8", "", ""},
		"a form":                                {"data_type: form", `{"a":["x y",1],"n":null,"e":""}`, "a=x%20y&a=1&e=", "application/x-www-form-urlencoded", "", ""},
		"unknown":                               {"data_type: unknown", `{"a": 1}`, `{"a": 1}`, "", "", ""},
		"a form, as an answer too":              {"data_type: form, verb: GET", ``, ``, "", "application/x-www-form-urlencoded", ""},
		"multipart of a list":                   {"data_type: file", `[1]`, "", "", "", "its members are the parts"},
		"related of nothing":                    {"data_type: multipart_related", `{}`, "", "", "", "one part is needed"},
		"multipart of no base64":                {"data_type: file", `{"f":{"content":"?","content_encoding":"base64"}}`, "", "", "", `member "f": content is not base64`},
		"multipart of a type that is none":      {"data_type: file, content_type: text/plain", `{"f":1}`, "", "", "", `Content-Type is "text/plain", which is none of multipart`},
		"a control character in a name":         {"data_type: file", `{"a\u0000":1}`, "", "", "", "control character"},
		"a control character in a filename":     {"data_type: file", `{"a":{"content":"","filename":"\u0000"}}`, "", "", "", "control character"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			verb := "verb: POST, "
			if strings.Contains(c.keys, "verb") {
				verb = ""
			}
			a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, "+verb+c.keys+", response: {data_type: "+answerType(c.keys)+"}}]\n", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
			change := func(call *connectors.Call) {
				if c.body != "" {
					call.Body = json.RawMessage(c.body)
				}
			}
			if c.fails != "" {
				e := a.fails("m", change)
				if e.Kind != "input" || len(a.requests()) > 0 {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.fails)
				return
			}
			a.must("m", change)
			got := a.only()
			if got.Body != c.want || got.Header.Get("Content-Type") != c.contentType || got.Header.Get("Accept") != c.accept {
				t.Errorf("sent %q as %q, accepting %q", got.Body, got.Header.Get("Content-Type"), got.Header.Get("Accept"))
			}
			if length := strconv.Itoa(len(c.want)); c.body != "" && got.Header.Get("Content-Length") != length {
				t.Errorf("its length is %q, want %s", got.Header.Get("Content-Length"), length)
			}
		})
	}
}

// answerType is a method's response.data_type as it would be without one.
func answerType(keys string) string {
	_, dt, _ := strings.Cut(keys, "data_type: ")
	dt, _, _ = strings.Cut(dt, ",")
	if dt == "file" || dt == "multipart_related" {
		return "json"
	}
	return dt
}

// part is one of a multipart body, as Go's own reader has it.
type part struct {
	Header map[string]string
	Body   string
}

func partsOf(t *testing.T, r request) (media string, params map[string]string, all []part) {
	t.Helper()
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Header.Get("Content-Length"); got != strconv.Itoa(len(r.Body)) {
		t.Errorf("Content-Length is %q", got)
	}
	for reader := multipart.NewReader(strings.NewReader(r.Body), params["boundary"]); ; {
		p, err := reader.NextRawPart()
		if err == io.EOF {
			return media, params, all
		}
		if err != nil {
			t.Fatalf("%v in %q", err, r.Body)
		}
		body, _ := io.ReadAll(p)
		one := part{Header: map[string]string{}, Body: string(body)}
		for k, v := range p.Header {
			one.Header[k] = strings.Join(v, "|")
		}
		all = append(all, one)
	}
}

func formPart(name, more, body string) part {
	return part{map[string]string{"Content-Disposition": `form-data; name="` + name + `"` + more}, body}
}

func filePart(name, filename, contentType, body string) part {
	p := formPart(name, `; filename="`+filename+`"`, body)
	p.Header["Content-Type"] = contentType
	return p
}

func TestBody_multipartForm(t *testing.T) {
	cases := map[string]struct {
		body string
		want []part
	}{
		"in order":                  {`{"z":"1","a":2,"t":true,"n":null,"e":""}`, []part{formPart("z", "", "1"), formPart("a", "", "2"), formPart("t", "", "true"), formPart("e", "", "")}},
		"a list repeats":            {`{"a":["x",1,null]}`, []part{formPart("a", "", "x"), formPart("a", "", "1")}},
		"a file":                    {`{"f":{"content":"AP8=","content_encoding":"base64","filename":"a.pdf","content_type":"application/pdf"}}`, []part{filePart("f", "a.pdf", "application/pdf", "\x00\xff")}},
		"a file of text, no name":   {`{"f":{"content":"hi"}}`, []part{filePart("f", "f", "application/octet-stream", "hi")}},
		"several files":             {`{"f":[{"content":"1","filename":"1"},{"content":"2","filename":"2"}]}`, []part{filePart("f", "1", "application/octet-stream", "1"), filePart("f", "2", "application/octet-stream", "2")}},
		"a declared file":           {`{"doc":"text"}`, []part{filePart("doc", "doc", "application/octet-stream", "text")}},
		"names that would break it": {`{"a\"b\r\nX: y":1,"ü\\":{"content":"","filename":"ü\"\n.txt"}}`, []part{formPart(`a\"b%0D%0AX: y`, "", "1"), filePart(`ü\\`, `ü\"%0A.txt`, "application/octet-stream", "")}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: file, request: {fields: [{field: doc, type: file}]}}]\n", nil)
			a.must("m", func(call *connectors.Call) { call.Body = json.RawMessage(c.body) })
			media, _, got := partsOf(t, a.only())
			if d := cmp.Diff(c.want, got); d != "" || media != "multipart/form-data" {
				t.Errorf("%s: %s", media, d)
			}
		})
	}
	t.Run("an object is JSON", func(t *testing.T) {
		a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: file}]\n", nil)
		a.must("m", func(call *connectors.Call) { call.Body = json.RawMessage(`{"o":{"a":[1]},"l":[{"b":1}]}`) })
		_, _, got := partsOf(t, a.only())
		want := []part{formPart("o", "", `{"a":[1]}`), formPart("l", "", `[{"b":1}]`)}
		for i := range want {
			want[i].Header["Content-Type"] = "application/json"
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
	t.Run("the boundary that a header names", func(t *testing.T) {
		a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: file, headers: {Content-Type: multipart/mixed; boundary=here}}]\n", nil)
		a.must("m", func(call *connectors.Call) { call.Body = json.RawMessage(`{"a":1}`) })
		media, params, got := partsOf(t, a.only())
		if media != "multipart/mixed" || params["boundary"] != "here" || len(got) != 1 {
			t.Errorf("got %s, %v, %v", media, params, got)
		}
	})
}

// As Google Drive's multipart upload wants it.
func TestBody_multipartRelated(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: multipart_related}]\n", nil)
	a.must("m", func(call *connectors.Call) {
		call.Body = json.RawMessage(`{"meta data":{"name":"a.png","parents":["x"]},"note":"hi","gone":null,"file":{"content":"AP8=","content_encoding":"base64","content_type":"image/png"},
			"more":[{"content":"a","content_type":"text/plain","filename":"a \"b\".txt"},{"content":"b","content_type":"text/plain","filename":"é\r\n.txt"}]}`)
	})
	seen := a.only()
	media, params, got := partsOf(t, seen)
	want := []part{
		{map[string]string{"Content-Id": "<meta%20data>", "Content-Type": "application/json"}, `{"name":"a.png","parents":["x"]}`},
		{map[string]string{"Content-Id": "<note>", "Content-Type": "text/plain; charset=utf-8"}, "hi"},
		{map[string]string{"Content-Id": "<file>", "Content-Type": "image/png"}, "\x00\xff"},
		{map[string]string{"Content-Id": "<more>", "Content-Type": "text/plain", "Content-Disposition": `attachment; filename="a \"b\".txt"`}, "a"},
		{map[string]string{"Content-Id": "<more~2>", "Content-Type": "text/plain", "Content-Disposition": "attachment; filename*=utf-8''%C3%A9%0D%0A.txt"}, "b"},
	}
	if d := cmp.Diff(want, got); d != "" || media != "multipart/related" || params["type"] != "application/json" || seen.Header.Get("Accept") != "application/json" {
		t.Errorf("%s %v: %s", media, params, d)
	}
}

// The key joins the body before it is written, whatever it is written as.
func TestBody_keyInEach(t *testing.T) {
	cases := map[string]struct{ keys, body, want string }{
		"json":                        {"data_type: json", `{"a":1}`, `{"a":1,"key":"the-api-key"}`},
		"form":                        {"data_type: form", `{"a":1}`, `a=1&key=the-api-key`},
		"xml":                         {"data_type: xml", `{"r":{"a":1}}`, `<r><a>1</a><key>the-api-key</key></r>`},
		"xml below its root":          {"data_type: xml, xml_root: r", `{"a":1}`, `<r><a>1</a><key>the-api-key</key></r>`},
		"xml that has its root":       {"data_type: xml, xml_root: r", `{"r":{"a":1}}`, `<r><a>1</a><key>the-api-key</key></r>`},
		"xml below its root, no body": {"data_type: xml, xml_root: r", ``, `<r><key>the-api-key</key></r>`},
		"file":                        {"data_type: file", `{"a":1}`, "name=\"key\"\r\n\r\nthe-api-key\r\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: api_key, in: body, name: key}\nmethods: [{method: m, endpoint: /a, verb: POST, "+c.keys+"}]\n", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
			a.Cred.Secrets.APIKey = credentials.NewSecret("the-api-key")
			a.must("m", func(call *connectors.Call) {
				if c.body != "" {
					call.Body = json.RawMessage(c.body)
				}
			})
			contains(t, "body", a.only().Body, c.want)
		})
	}
}

// Answers that are XML, and those that should be.
func TestAnswer_xml(t *testing.T) {
	cases := map[string]struct {
		dataType, contentType, body string
		want, encoding, kind        string
	}{
		"by its type":                     {"json", "application/xml", `<a b="1"><c/></a>`, `{"a":{"@b":"1","c":null}}`, "", ""},
		"by another of its types":         {"unknown", "application/soap+xml; charset=utf-8", `<a>1</a>`, `{"a":"1"}`, "", ""},
		"without a type":                  {"xml", "", `<a>1</a>`, `{"a":"1"}`, "", ""},
		"sent as text":                    {"xml", "text/plain", `<a>1</a>`, `{"a":"1"}`, "", ""},
		"a charset by its declaration":    {"xml", "application/xml", "<?xml version=\"1.0\" encoding='ISO-8859-1'?><a>\xeb</a>", `{"a":"ë"}`, "", ""},
		"the same without a type":         {"xml", "", "<?xml version=\"1.0\" encoding=\"iso-8859-5\"?><a>\xb0</a>", `{"a":"А"}`, "", ""},
		"a charset by its type":           {"xml", "application/xml; charset=utf-8", "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?><a>ë</a>", `{"a":"ë"}`, "", ""},
		"a charset that nobody knows":     {"xml", "application/xml", `<?xml version="1.0" encoding="x-none"?><a>ë</a>`, `{"a":"ë"}`, "", ""},
		"a page is no document":           {"unknown", "application/xhtml+xml", `<html/>`, `"<html/>"`, "", ""},
		"a page where XML is due":         {"xml", "text/html", `<p>down<br>`, "", "", "http"},
		"malformed":                       {"xml", "application/xml", `<a>`, "", "", "http"},
		"malformed, and nobody asked":     {"unknown", "application/xml", `<a>`, `"<a>"`, "", ""},
		"a bomb":                          {"xml", "application/xml", `<!DOCTYPE l [<!ENTITY a "aa">]><l>&a;</l>`, "", "", "http"},
		"deep":                            {"xml", "application/xml", strings.Repeat("<a>", 100_000), "", "", "http"},
		"empty":                           {"xml", "application/xml", " \n", ``, "", ""},
		"json where XML is due":           {"xml", "application/json", `{"a":1}`, `{"a":1}`, "", ""},
		"a simple file of JSON":           {"simple_file", "application/json", `{"a":1}`, `"{\"a\":1}"`, "", ""},
		"a simple file of XML":            {"simple_file", "text/xml", `<a/>`, `"<a/>"`, "", ""},
		"a simple file that is no text":   {"simple_file", "text/plain", "%PDF\xff", `"JVBERv8="`, "base64", ""},
		"a simple file without any bytes": {"simple_file", "text/plain", "", ``, "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, data_type: %s}]\n", c.dataType), func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil
				if c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				_, _ = io.WriteString(w, c.body)
			})
			if c.kind != "" {
				if e := a.fails("m"); e.Kind != c.kind || e.Repeat || !strings.Contains(e.Message, "no XML document") {
					t.Errorf("got %+v", e)
				}
				return
			}
			if got := a.must("m"); string(got.Content) != c.want || got.ContentEncoding != c.encoding {
				t.Errorf("got %s (%q), want %s", got.Content, got.ContentEncoding, c.want)
			}
		})
	}
}

// Hooks see the object, may leave text, and what after_error leaves is read.
func TestAnswer_xmlInHooks(t *testing.T) {
	serve := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/xml")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `<r><n>1</n></r>`)
		}
	}
	const head = "connector: acme\nbase_url: BASE\nmethods:\n  - method: m\n    endpoint: /a\n    data_type: xml\n    response: {fields: [{field: 'r.[n]', system: N, type: integer}]}\n    script: |\n      "
	cases := map[string]struct {
		script, want string
		status       int
	}{
		"the object":       {"function after_action() { method_response.r.m = typeof method_response; }", `{"r":{"n":"1","m":"object"}}`, 200},
		"text left":        {"function after_action() { method_response = '<r><n>1</n><x/></r>'; }", `{"r":{"n":"1","x":null}}`, 200},
		"an error no more": {"function after_error() { method_error.isSuccess = true; }", `{"r":{"n":"1"}}`, 409},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, head+c.script+"\n", serve(c.status))
			got := a.must("m")
			if string(got.Content) != c.want {
				t.Errorf("got %s, want %s", got.Content, c.want)
			}
			sameJSON(t, "fields", got.Fields, `{"N":[1]}`)
		})
	}
}

// Merge fields are data in XML too, and one call's multipart pages have one
// boundary: a request that differs in nothing else ends paging.
func TestBody_mergeFieldsInXML(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nparameters: [{name: v, target: merge_field}]\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: xml, response: {data_type: json}, body: {r: {'@a': '{{v}}', b: 'x{{v}}', c: '{{none}}'}}, parameters: [{name: none, target: merge_field, optional: true}]}]\n", nil)
	a.must("m", withParameters(`{"v":"</b><evil a=\"1\"/>"}`))
	contains(t, "body", a.only().Body, `<r a="&lt;/b&gt;&lt;evil a=&quot;1&quot;/&gt;"><b>x&lt;/b&gt;&lt;evil a="1"/&gt;</b></r>`)
}

func TestBody_multipartPagesEnd(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, verb: POST, data_type: file, body: {a: 1}, paging: {inbound: true}}]\n", answering(200, `[1]`))
	a.must("m")
	if n := len(a.requests()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}
