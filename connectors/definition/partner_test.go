package definition_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

func keyring(t *testing.T, keys ...string) *credentials.Keyring {
	t.Helper()
	r, err := credentials.ParseKeys(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPartnerSettings_sealed(t *testing.T) {
	first, second, other := credentials.NewKey(), credentials.NewKey(), credentials.NewKey()
	seal := func(key, connector, member, text string) string {
		return fmt.Sprintf(`{"sealed":%q}`, keyring(t, key).SealSetting(connector, member, credentials.NewSecret(text)))
	}
	keys := keyring(t, first, second)
	p := definition.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(first, "acme", "client_id", "app-number-7")+`,"client_secret":`+seal(second, "acme", "client_secret", "hunter22")+`,
		"properties":{"region":"eu","app_key":`+seal(first, "acme", "properties.app_key", `k"ey-of-the-app`)+`,"sealed":{"seal":7}}}}`), keys)
	if len(p.Mistakes) > 0 {
		t.Fatal(p.Mistakes)
	}
	got := p.Settings["acme"]
	if got.ClientID != "app-number-7" || got.ClientSecret != "hunter22" || string(got.Properties["app_key"]) != `"k\"ey-of-the-app"` ||
		string(got.Properties["region"]) != `"eu"` || string(got.Properties["sealed"]) != `{"seal":7}` {
		t.Errorf("%q", got)
	}
	if d := cmp.Diff([]string{"client_id", "client_secret", "properties.app_key"}, got.Sealed); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"acme client_secret"}, p.Aged); d != "" {
		t.Error(d)
	}
	// All mistakes at once, none with a value.
	p = definition.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(other, "acme", "client_id", "app")+`,"client_secret":`+seal(first, "acme", "client_id", "app")+`,
		"private_key":`+seal(first, "acme", "private_key", "hunter22")+`,"properties":{"a":{"sealed":"hunter22"},"b":`+seal(first, "other", "properties.b", "x")+`},"secret":1},"other":{"client_id":7}}`), keys)
	want := []string{
		"acme.client_id: no key opens it: it was sealed with " + keyring(t, other).Fingerprints()[0] + ", which is none of the keys",
		"acme.client_secret: it was sealed for another connector or member, or was changed; seal it again with `worker key seal`",
		"acme.private_key: a key in PEM is needed, which begins with -----BEGIN PRIVATE KEY-----",
		"acme.properties.a: it is no sealed value; `worker key seal` makes one",
		"acme.properties.b: it was sealed for another connector or member, or was changed; seal it again with `worker key seal`",
		`acme: unknown member "secret"`,
		"other.client_id has the wrong type",
	}
	if d := cmp.Diff(want, p.Mistakes); d != "" {
		t.Error(d)
	}
	p = definition.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(first, "acme", "client_id", "app")+`}}`), nil)
	if d := cmp.Diff([]string{"acme.client_id: it is sealed, and there is no key to open it: give STEPWORKER_KEYS or --keys-file"}, p.Mistakes); d != "" {
		t.Error(d)
	}
}

// What a reader of the file would not see is a mistake: a name that is given
// twice, of which the later would win, and what only looks sealed.
func TestPartnerSettings_whatIsNotAsItLooks(t *testing.T) {
	const object = `an object of objects is needed: {"acme": {"client_id": "…", "client_secret": "…", "properties": {}}}`
	const box = "a sealed value is {\"sealed\": \"…\"}, a text and nothing beside it; `worker key seal` makes one"
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"null":                     {`null`, []string{object}},
		"a list":                   {`[]`, []string{object}},
		"text":                     {`"hunter22"`, []string{object}},
		"nothing":                  {``, []string{"malformed JSON at line 1, column 1"}},
		"malformed":                {"{\"acme\":\n {\"client_id\": hunter22}}", []string{"malformed JSON at line 2, column 16"}},
		"more than one":            {"{}\n{}", []string{"malformed JSON at line 2, column 1"}},
		"a connector that is null": {`{"acme": null, "other": 7}`, []string{"acme: an object is needed", "other: an object is needed"}},
		"a connector twice": {"{\"acme\": {\"client_id\": \"hunter22\"},\n  \"acme\": {\"client_secret\": \"hunter23\"}}",
			[]string{`connector "acme" is given twice, again at line 2, column 3`}},
		"a member twice": {"{\"acme\": {\"client_id\": \"hunter22\",\n\"client_id\": \"hunter23\", \"properties\": {\"ä\": 1, \"\\u00e4\": 2}}}",
			[]string{`acme: member "client_id" is given twice, again at line 2, column 1`, `acme.properties: member "ä" is given twice, again at line 2, column 50`}},
		"properties of another type": {`{"acme": {"properties": [1]}}`, []string{"acme.properties has the wrong type"}},
		"sealed, a number":           {`{"acme": {"client_secret": {"sealed": 5}, "properties": {"key": {"sealed": 5}}}}`, []string{"acme.client_secret: " + box, "acme.properties.key: " + box}},
		"sealed, null":               {`{"acme": {"properties": {"key": {"sealed": null}}}}`, []string{"acme.properties.key: " + box}},
		"sealed, and more":           {`{"acme": {"private_key": {"sealed": "hunter22", "y": 1}, "properties": {"key": {"y": 1, "sealed": "hunter22"}}}}`, []string{"acme.private_key: " + box, "acme.properties.key: " + box}},
		"sealed, twice": {`{"acme": {"properties": {"key": {"sealed": "hunter22", "sealed": "hunter23"}}}}`,
			[]string{`acme.properties.key: member "sealed" is given twice, again at line 1, column 56`, "acme.properties.key: it is no sealed value; `worker key seal` makes one"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := definition.ParsePartnerSettings([]byte(c.file), keyring(t, credentials.NewKey()))
			if d := cmp.Diff(c.want, p.Mistakes); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParsePartnerSettings_privateKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	quoted := strings.ReplaceAll(text, "\n", `\n`)
	p := definition.ParsePartnerSettings([]byte(`{"acme":{"client_id":"c","private_key":"`+quoted+`"}}`), nil)
	if len(p.Mistakes) > 0 || p.Settings["acme"].PrivateKey.Reveal() != text {
		t.Errorf("%v", p.Mistakes)
	}
	p = definition.ParsePartnerSettings([]byte(`{"acme":{"private_key":"hunter2"}}`), nil)
	if want := []string{"acme.private_key: a key in PEM is needed, which begins with -----BEGIN PRIVATE KEY-----"}; !slices.Equal(p.Mistakes, want) {
		t.Errorf("%v", p.Mistakes)
	}
}
