package hooks_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/hooks"
)

func TestXMLToJSON(t *testing.T) {
	cases := map[string]struct{ source, want string }{
		"attributes and elements of one name": {`<a x="1"><x>2</x><x>3</x></a>`, `{"a":{"@x":"1","x":["2","3"]}}`},
		"elements of one name apart":          {`<a><b>1</b><c/><b><d>2</d></b></a>`, `{"a":{"b":["1",{"d":"2"}],"c":null}}`},
		"namespaces stay":                     {`<s:E xmlns:s="u" xmlns="v"><s:B s:k="1"/></s:E>`, `{"s:E":{"@xmlns:s":"u","@xmlns":"v","s:B":{"@s:k":"1"}}}`},
		"text that a comment cuts":            {`<a>x<!-- c -->y<![CDATA[<]]></a>`, `{"a":"xy<"}`},
		"text beside elements":                {"<a> one <b/>\n<c>two</c> three </a>", `{"a":{"b":null,"c":"two","#text":[" one "," three "]}}`},
		"an attribute alone":                  {`<a b="&lt;&#x41;"/>`, `{"a":{"@b":"<A"}}`},
		"a declaration of another charset":    {`<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>`, `{"a":"é"}`},
		"a mark of byte order":                {"\ufeff<a/>", `{"a":null}`},
		"nothing of HTML is escaped":          {`<a>x &amp; y</a>`, `{"a":"x & y"}`},
		"depth of siblings in siblings":       {`<a><b><c>1</c></b><b><c>2</c><c>3</c></b></a>`, `{"a":{"b":[{"c":"1"},{"c":["2","3"]}]}}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := hooks.XMLToJSON(c.source)
			if err != nil || string(got) != c.want {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
}

// Documents that are made to hurt: each is an error or a document, soon, and in
// a small multiple of its size.
func TestXMLToJSON_hostile(t *testing.T) {
	many := func(n int, of func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(of(i))
		}
		return b.String()
	}
	letters := func(i int) string { return strings.Repeat("x", i%7+1) + string(rune('a'+i%26)) }
	cases := map[string]struct{ source, err string }{
		"a bomb of entities":        {`<!DOCTYPE l [<!ENTITY a "aaaa">` + many(20, func(int) string { return `<!ENTITY b "&a;&a;">` }) + `]><l>&b;</l>`, "invalid character entity &b;"},
		"an entity of a file":       {`<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>`, "invalid character entity &x;"},
		"deep":                      {strings.Repeat("<a>", 1_000_000), "nested deeper than 500"},
		"deep lists":                {strings.Repeat("<a><b/>", 500) + strings.Repeat("</a>", 500), "nested deeper than 500"},
		"many attributes":           {"<a " + many(300_000, func(i int) string { return letters(i) + strings.Repeat("y", i%11) + `="" ` }) + "/>", ""},
		"many elements":             {"<a>" + strings.Repeat("<b/>", 1_000_000) + "</a>", ""},
		"text below all 499 levels": {strings.Repeat("<a>", 499) + strings.Repeat("x", 4_000_000) + strings.Repeat("</a>", 499), ""},
		"no UTF-8":                  {"<a>\xff</a>", "invalid UTF-8"},
		"never closed":              {"<a", "unexpected EOF"},
		"a directive without end":   {"<!DOCTYPE " + strings.Repeat("[", 100_000), "unexpected EOF"},
		"a control character":       {"<a>\x00</a>", "illegal character code U+0000"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := hooks.XMLToJSON(c.source)
			runtime.ReadMemStats(&after)
			switch {
			case c.err == "" && (err != nil || len(got) == 0):
				t.Errorf("got %v", err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("got %v, want %q", err, c.err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 200*uint64(len(c.source))+(16<<20) {
				t.Errorf("%d bytes for a document of %d", used, len(c.source))
			}
		})
	}
}

// Deep JSON is read once, not once for each level.
func TestJSONToXML_deep(t *testing.T) {
	const depth = 490
	raw := strings.Repeat(`{"a":`, depth) + `"` + strings.Repeat("x", 1<<20) + `"` + strings.Repeat(`}`, depth)
	out, err := hooks.JSONToXML([]byte(raw))
	if err != nil || strings.Count(out, "<a>") != depth {
		t.Fatalf("%d elements, %v", strings.Count(out, "<a>"), err)
	}
	if _, err := hooks.JSONToXML([]byte(strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat(`}`, 5000))); err == nil || !strings.Contains(err.Error(), "nested deeper than 500") {
		t.Errorf("too deep: got %v", err)
	}
}
