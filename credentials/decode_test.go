package credentials

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"testing"
)

// Each writer's encoding in each other's, twice and thrice: no end of a secret
// is left, and what stands beside it is.
func TestRedactor_encodingsInEncodings(t *testing.T) {
	asJSON := func(s string) string { raw, _ := json.Marshal(map[string]string{"it": s}); return string(raw) }
	writers := map[string]func(string) string{
		"json":   asJSON,
		"url":    url.QueryEscape,
		"path":   url.PathEscape,
		"lower":  func(s string) string { return lowerHex(url.QueryEscape(s)) },
		"html":   html.EscapeString,
		"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte("x:" + s + ":yz")) },
		"raw":    func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s + "-end")) },
	}
	const head, tail = "QZ7HEADK3M", "W5TAILXR2P"
	for _, middle := range []string{"", "+/=", `"<&>\`, "é' %", "\n", "%41+&amp;", `\u0041\\`} {
		secret := head + middle + tail
		r := NewRedactor([]string{secret}, 6)
		for a, first := range writers {
			for b, second := range writers {
				for c, third := range writers {
					masked := r.String("before " + third(second(first("near "+secret+" near"))) + " after")
					if !strings.HasPrefix(masked, "before ") || !strings.HasSuffix(masked, " after") {
						t.Fatalf("%s in %s in %s: %s", a, b, c, masked)
					}
					for depth := 0; depth < 4; depth++ {
						for _, end := range []string{head, tail, "QZ7H", "XR2P"} {
							if strings.Contains(masked, end) {
								t.Fatalf("%q, %s in %s in %s, is left as %s", middle, a, b, c, masked)
							}
						}
						masked = bare(everyBase64(masked))
					}
				}
			}
		}
	}
}

// everyBase64 decodes what may be base64 in a text.
func everyBase64(s string) string {
	var b strings.Builder
	for part := range strings.FieldsFuncSeq(s, func(c rune) bool { return c > 127 || !isBase64(byte(c)) }) {
		part = standardAlphabet.Replace(part)
		if plain, err := base64.RawStdEncoding.DecodeString(part[:len(part)-len(part)%4]); err == nil {
			b.WriteString(" " + string(plain))
		}
	}
	return s + b.String()
}

// The last character of a secret may make an escape of what stands behind it,
// in each level of encoding anew.
func TestRedactor_endsLikeAnEscape(t *testing.T) {
	for _, secret := range []string{`canary-400"\`, `canary-400\\`, `canary-400%`, `canary-400&`, `canary-400%\`} {
		r := NewRedactor([]string{secret}, 6)
		encoded := secret
		for level := range 5 {
			for _, around := range []string{"%s", `{"a":"%s"}`, "%s41;", "%slt;", "%snor", `"%s"`} {
				if got := r.String(fmt.Sprintf(around, encoded)); strings.Contains(got, "canary") {
					t.Errorf("%q at level %d, in %s: %s", secret, level, around, got)
				}
			}
			raw, err := json.Marshal(encoded)
			if err != nil {
				t.Fatal(err)
			}
			if encoded = string(raw); level%2 == 0 {
				encoded = encoded[1 : len(encoded)-1]
			}
		}
	}
}

func TestRedactor_cutInAnEncoding(t *testing.T) {
	const secret = `QZ7HEAD"K3M/W5TAILXR2P`
	r := NewRedactor([]string{secret}, 6)
	raw, _ := json.Marshal(map[string]string{"it": secret})
	for name, whole := range map[string]string{"url of json": url.QueryEscape(string(raw)), "base64 of json": base64.StdEncoding.EncodeToString(raw)} {
		for n := range whole {
			masked := r.Cut(whole[:n]+"…", 1000)
			for _, text := range []string{masked, everyBase64(masked)} {
				if strings.Contains(text, "QZ7HEAD\"K") || strings.Contains(text, "QZ7HEAD%5C%22K") || strings.Contains(text, `QZ7HEAD\"K`) {
					t.Fatalf("%s, cut at %d: %s", name, n, text)
				}
			}
		}
	}
}

func TestRedactor_leavesOtherTextAlone(t *testing.T) {
	r := NewRedactor([]string{"the-secret-itself", "a b c d e f"}, 6)
	for _, text := range []string{"", "plain", `{"a":"\\\\u00e9\n","b":"100%25 & more &amp; %zz \\"}`, "a+b", base64.StdEncoding.EncodeToString([]byte("nothing is hidden in here")), "&#x110000; &; %", strings.Repeat(`\`, 99)} {
		if got := r.String(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func BenchmarkRedactor(b *testing.B) {
	row, _ := json.Marshal(map[string]string{"name": "Ada \"the first\" <ada@example.com>", "note": "100% & more", "id": "c0ffee00-1111-2222-3333-444455556666"})
	page := strings.Repeat(string(row), 1<<20/len(row))
	r := NewRedactor([]string{"one-secret-of-some", "another+secret/of=some", "the third of them"}, 6)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		r.String(page)
	}
}
