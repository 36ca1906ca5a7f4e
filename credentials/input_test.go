package credentials_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/credentials"
)

func TestDecodeInput_namesTheMemberAndNoValue(t *testing.T) {
	for name, c := range map[string]struct{ members, want string }{
		"null is absent":        {`"api_key":null,"oauth2":null,"properties":null,"if_version":null,"private_key":null,"oauth1":null`, ""},
		"another case":          {`"API_key":"hunter2"`, `unknown member "API_key"; did you mean "api_key"?`},
		"twice":                 {`"api_key":"hunter2","api_key":"hunter3"`, `member "api_key" is given twice`},
		"a property twice":      {`"properties":{"p":"hunter2","p":"hunter3"}`, `properties: member "p" is given twice`},
		"another case below":    {`"basic":{"username":"u","Password":"hunter2"}`, `basic: unknown member "Password"; did you mean "password"?`},
		"of another kind":       {`"api_key":["hunter2"]`, "api_key: a list is not allowed here"},
		"a number, not whole":   {`"if_version":7.5`, "if_version: a whole number is needed"},
		"a token of text":       {`"oauth2":"hunter2"`, "oauth2: an object is needed, as the token endpoint answers it"},
		"a token's member":      {`"oauth2":{"access_token":["hunter2"]}`, "oauth2.access_token: text is needed"},
		"a token's expiry":      {`"oauth2":{"expiry":"hunter2"}`, "oauth2.expiry: an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z"},
		"malformed":             {`"api_key":hunter2`, "malformed JSON at line 1, column 51"},
		"a key of another kind": {`"private_key":["hunter2"]`, "private_key: a list is not allowed here"},
		"an OAuth 1.0a member":  {`"oauth1":{"token":"hunter2","secret":"hunter3"}`, `oauth1: unknown member "secret"`},
		"a field, no text":      {`"fields":{"a":["hunter2"]}`, "fields.a: a list is not allowed here"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := credentials.DecodeInput([]byte(`{"credential_id":"c","connector":"acme",` + c.members + `}`))
			switch {
			case c.want == "" && err != nil, c.want != "" && (err == nil || err.Error() != c.want):
				t.Errorf("got %v, want %s", err, c.want)
			case err != nil && strings.Contains(err.Error(), "hunter"):
				t.Errorf("it holds the value: %v", err)
			}
		})
	}
}
