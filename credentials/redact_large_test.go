package credentials_test

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/credentials"
)

// A large text is masked window by window: a secret is found wherever it
// stands, in whatever encoding, also where one window ends.
func TestRedactor_largeText(t *testing.T) {
	const secret = `s3cret "with" ümlaut/and&more`
	r := credentials.NewRedactor([]string{secret}, 16)
	js, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := json.Marshal(url.QueryEscape(string(js)))
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{
		"JSON": string(js[1 : len(js)-1]), "URL of JSON": strings.Trim(string(twice), `"`),
		"base64 in a longer one": base64.StdEncoding.EncodeToString([]byte("before it " + secret + " and after")),
	}
	const window = 1 << 20
	for name, form := range forms {
		for _, at := range []int{100, window - len(form)/2, window - 1, window + len(form)/2, 2*window - 7, 3*window + 60<<10} {
			text := `"` + strings.Repeat(`a\n .`, at/5) + strings.Repeat(".", at%5) + form + strings.Repeat(`. b\t`, 3*window/5) + `"`
			got := string(r.JSON(json.RawMessage(text)))
			if strings.Contains(got, form) || strings.Count(got, "[redacted]") != 1 || !json.Valid([]byte(got)) || len(got) < len(text)-len(form) {
				t.Errorf("%s at %d: %d masks", name, at, strings.Count(got, "[redacted]"))
			}
		}
	}
	plain := json.RawMessage(`"` + strings.Repeat("nothing here ", 200_000) + `"`)
	if got := r.JSON(plain); &got[0] != &plain[0] {
		t.Error("text without a secret is copied")
	}
}
