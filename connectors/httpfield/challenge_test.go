package httpfield

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChallenges(t *testing.T) {
	cases := map[string]struct {
		fields []string
		want   []challenge
	}{
		"none":            {nil, nil},
		"empty":           {[]string{"", " , "}, nil},
		"a scheme alone":  {[]string{"Negotiate"}, []challenge{{"negotiate", nil}}},
		"RFC 6750":        {[]string{`Bearer realm="example", error="insufficient_scope", scope="a b"`}, []challenge{{"bearer", map[string]string{"realm": "example", "error": "insufficient_scope", "scope": "a b"}}}},
		"tokens":          {[]string{`Bearer error=insufficient_scope,scope=a:b/c`}, []challenge{{"bearer", map[string]string{"error": "insufficient_scope", "scope": "a:b/c"}}}},
		"spaces around =": {[]string{`bearer Error = "x" , SCOPE= y`}, []challenge{{"bearer", map[string]string{"error": "x", "scope": "y"}}}},
		"commas, quotes, equals signs": {[]string{`Bearer error_description="no, \"scope=b\" = here\\", error="e"`},
			[]challenge{{"bearer", map[string]string{"error_description": `no, "scope=b" = here\`, "error": "e"}}}},
		// RFC 9110 section 11.6.1.
		"several in one field": {[]string{`Basic realm="simple", Newauth realm="apps", type=1, title="Login to \"apps\""`},
			[]challenge{{"basic", map[string]string{"realm": "simple"}}, {"newauth", map[string]string{"realm": "apps", "type": "1", "title": `Login to "apps"`}}}},
		"a scheme alone before another": {[]string{`Negotiate, Basic realm="x"`}, []challenge{{"negotiate", nil}, {"basic", map[string]string{"realm": "x"}}}},
		"token68":                       {[]string{`Negotiate YWJj/+Zg==, Bearer error="e"`}, []challenge{{"negotiate", nil}, {"bearer", map[string]string{"error": "e"}}}},
		"token68 without padding":       {[]string{`NTLM TlRMTVNTUAAC, Bearer error="e"`}, []challenge{{"ntlm", nil}, {"bearer", map[string]string{"error": "e"}}}},
		"several fields":                {[]string{`Basic realm="x"`, `Bearer error="e"`}, []challenge{{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"error": "e"}}}},
		"the first of two counts":       {[]string{`Bearer error="e", error="f"`}, []challenge{{"bearer", map[string]string{"error": "e"}}}},
		"a quote that never ends":       {[]string{`Bearer error="e, scope=a`}, []challenge{{"bearer", map[string]string{"error": "e, scope=a"}}}},
		"Facebook's":                    {[]string{`OAuth "Facebook Platform" "insufficient_scope" "(#200) no"`}, []challenge{{"oauth", nil}}},
		"no challenge":                  {[]string{`="x", Bearer error="e"`}, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := challenges(http.Header{"Www-Authenticate": c.fields})
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="x", error="insufficient_scope"`, `Negotiate abc==, Basic`, `a="\`, `a b=c=d,,e "f"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		for _, c := range challenges(http.Header{"Www-Authenticate": {field}}) { // it ends, whatever it is given
			if c.scheme == "" {
				t.Errorf("%q has a challenge without a scheme", field)
			}
		}
	})
}
