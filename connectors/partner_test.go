package connectors_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
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
	p := connectors.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(first, "acme", "client_id", "app-number-7")+`,"client_secret":`+seal(second, "acme", "client_secret", "hunter22")+`,
		"properties":{"region":"eu","app_key":`+seal(first, "acme", "properties.app_key", `k"ey-of-the-app`)+`,"sealed":{"sealed":7}}}}`), keys)
	if len(p.Mistakes) > 0 {
		t.Fatal(p.Mistakes)
	}
	got := p.Settings["acme"]
	if got.ClientID != "app-number-7" || got.ClientSecret != "hunter22" || string(got.Properties["app_key"]) != `"k\"ey-of-the-app"` ||
		string(got.Properties["region"]) != `"eu"` || string(got.Properties["sealed"]) != `{"sealed":7}` {
		t.Errorf("%q", got)
	}
	if d := cmp.Diff([]string{"acme client_secret"}, p.Aged); d != "" {
		t.Error(d)
	}
	// What was sealed is masked, though no parameter is marked sensitive.
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters: [{name: app_key, target: http_header, property: partner}]
methods: [{method: get, endpoint: /things}]
`, nil, func(c *connectors.CallerConfig) { c.Partner = p.Settings })
	e := a.fails("get", withScript(`function after_action() { throw method_request_headers.app_key + ' of app-number-7'; }`))
	if a.only().Header.Get("app_key") != `k"ey-of-the-app` || strings.Contains(e.Message, "ey-of-the-app") || strings.Contains(e.Message, "number-7") {
		t.Error(e.Message)
	}
	names := []string{}
	for _, n := range a.Caller.NamedSecrets(a.Def, a.Cred) {
		names = append(names, n.Name)
	}
	for _, want := range []string{"client_id", "client_secret", "app_key"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	// All mistakes at once, none with a value.
	p = connectors.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(other, "acme", "client_id", "app")+`,"client_secret":`+seal(first, "acme", "client_id", "app")+`,
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
	p = connectors.ParsePartnerSettings([]byte(`{"acme":{"client_id":`+seal(first, "acme", "client_id", "app")+`}}`), nil)
	if d := cmp.Diff([]string{"acme.client_id: it is sealed, and there is no key to open it: give STEPWORKER_KEYS or --keys-file"}, p.Mistakes); d != "" {
		t.Error(d)
	}
}
