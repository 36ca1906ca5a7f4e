package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"
)

func TestCheck_signing(t *testing.T) {
	const tail = "\nmethods: [{method: m, endpoint: /a}]\n"
	head := "connector: acme\nbase_url: https://acme.example\nauth: {token_url: https://acme.example/token, type: oauth2, "
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"all of them":   {head + "grant: jwt_bearer, auth_style: private_key_jwt, issuer: '{{client_id}}', subject: '{{username}}', audience: x, key_id: k, claims: {scope: a}}" + tail, nil},
		"client's only": {head + "auth_style: private_key_jwt, audience: x, key_id: k}" + tail, nil},
		"another grant": {head + "grant: client_credentials,\n  issuer: i,\n  subject: s,\n  claims: {a: 1},\n  audience: x,\n  key_id: k}" + tail, []string{
			"4:3: issuer has no meaning for the grant client_credentials: it is of the assertion that jwt_bearer sends",
			"5:3: subject has no meaning for the grant client_credentials: it is of the assertion that jwt_bearer sends",
			"6:3: claims has no meaning for the grant client_credentials: it is of the assertion that jwt_bearer sends",
			"7:3: audience has no meaning without grant jwt_bearer or auth_style private_key_jwt: nothing is signed",
			"8:3: key_id has no meaning without grant jwt_bearer or auth_style private_key_jwt: nothing is signed"}},
		"claims of ours": {head + "grant: jwt_bearer, claims:\n  {aud: a,\n  jti: b}}" + tail, []string{
			`4:4: claim "aud" has a key of its own: auth.audience`, `5:3: claim "jti" is made anew for each assertion`}},
		"claims of no kind":    {head + "grant: jwt_bearer,\n  claims: [a]}" + tail, []string{"4:11: claims: a mapping is needed"}},
		"a claim's field":      {head + "grant: jwt_bearer,\n  claims: {a: '{{usernam}}'}}" + tail, []string{`4:15: unknown merge field {{usernam}}; did you mean "username"?`}},
		"oauth1":               {"connector: acme\nbase_url: https://acme.example\nauth: {type: oauth1}" + tail, nil},
		"oauth1, another word": {"connector: acme\nbase_url: https://acme.example\nauth: {type: oauth1, signature: HMAC-SHA265}" + tail, []string{`3:33: "HMAC-SHA265" is none of HMAC-SHA1, HMAC-SHA256, RSA-SHA1; did you mean "HMAC-SHA256"?`}},
		"keys of others": {"connector: acme\nbase_url: https://acme.example\nauth: {type: oauth1,\n  audience: x,\n  grant: password}" + tail, []string{
			"4:3: audience has no meaning for auth type oauth1", "5:3: grant has no meaning for auth type oauth1"}},
		"signature of another": {"connector: acme\nbase_url: https://acme.example\nauth: {type: basic, signature: HMAC-SHA1}" + tail, []string{"3:21: signature has no meaning for auth type basic"}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, definitiontest.Check(t, c.file)); d != "" {
				t.Error(d)
			}
		})
	}
}
