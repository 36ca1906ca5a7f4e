package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// replayed runs `worker try` on a recording.
func replayed(t *testing.T, folder, recording string, more ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("STEPWORKER_REDIS", "redis://127.0.0.1:1") // nothing asks it
	var out, log strings.Builder
	code = run(context.Background(), append([]string{"try", "--connectors", folder, "--replay", recording}, more...), strings.NewReader(""), &out, &log)
	return code, out.String(), log.String()
}

// The recordings are rehearsals that authors can copy; each comes out as it says.
func TestTry_recordings(t *testing.T) {
	for _, folder := range []string{"testdata/recordings", "../../deploy/connectors"} {
		files, err := filepath.Glob(folder + "/*.txtar")
		if err != nil || len(files) == 0 {
			t.Fatalf("no recordings in %s: %v", folder, err)
		}
		for _, file := range files {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
				code, stdout, stderr := replayed(t, folder, file)
				if code != 0 || !strings.HasSuffix(stdout, "Requests and result are the recorded ones.\n") {
					t.Errorf("exit %d\n%s\n%s", code, stdout, stderr)
				}
				if strings.Contains(stdout, "made-up-") {
					t.Errorf("a secret is shown:\n%s", stdout)
				}
			})
		}
	}
}

// A recording written by hand says of an error what matters to its author.
func TestTry_replayComparesWhatIsSaidOfAnError(t *testing.T) {
	whole, err := os.ReadFile("testdata/recordings/two_refusals.txtar")
	if err != nil {
		t.Fatal(err)
	}
	const said = `"message": "after_action at connector level: the API says maintenance", "at": "acme.yaml:7:13"`
	if strings.Count(string(whole), said) != 1 {
		t.Fatalf("%s", whole)
	}
	for now, want := range map[string]string{
		`"at": "acme.yaml:7:13"`: "",
		`"message": "after_action at connector level: the API says maintenance"`: "",
		`"at": "acme.yaml:8:1"`: `error.at is "acme.yaml:7:13", recorded is "acme.yaml:8:1"`,
		`"detail": "x"`:         `error.detail is missing, recorded is "x"`,
	} {
		file := filepath.Join(t.TempDir(), "r.txtar")
		if err := os.WriteFile(file, []byte(strings.Replace(string(whole), said, now, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := replayed(t, "testdata/recordings", file); (code == 0) != (want == "") || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d: %s", now, code, stderr)
		}
	}
}

// A request that is not the recorded one is told as what differs.
func TestTry_replayTellsWhatDiffers(t *testing.T) {
	whole, err := os.ReadFile("testdata/recordings/no_answer.txtar")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ old, new, want string }{
		"a method":         {"POST https", "PUT https", "request 2 is not the recorded one: its method is POST, recorded is PUT"},
		"a host":           {"GET https://acme.example", "GET https://acme.test", "request 1 is not the recorded one: its host is https://acme.example, recorded is https://acme.test"},
		"a query":          {"currency=EUR", "currency=USD&x=1", `request 1 is not the recorded one: in its query currency[0] is "EUR", recorded is "USD"; in its query x is missing, recorded is ["1"]`},
		"a header":         {"Content-Type: application/json", "Authorization: Bearer {{secret.other}}", `request 2 is not the recorded one: header Authorization is "Bearer {{secret.access_token}}", recorded is "Bearer {{secret.other}}"`},
		"a body":           {`{"rate": 1.1, "name"`, `{"rate": 1.2, "name"`, "request 2 is not the recorded one: in its body rate is 1.1, recorded is 1.2"},
		"one too few":      {"-- 2.request --\nPOST https://acme.example/api/things\nContent-Type: application/json\n\n{\"rate\": 1.1, \"name\": \"ball\"}\n-- 2.response --\nno answer: timeout\n", "", "the recording has no request 2: POST https://acme.example/api/things"},
		"one too many":     {"-- want --", "-- 3.request --\nGET /more\n-- 3.response --\n200\n-- want --", "request 3 of the recording was not made: GET /more"},
		"the result":       {`"attempts": 1`, `"attempts": 2`, "the result is not the recorded one: attempts is 1, recorded is 2"},
		"a missing answer": {"-- 1.response --\n200\n{\"rate\": 1.1}\n", "", "section 1.response is missing"},
		"a gap":            {"-- 1.request --\nGET https://acme.example/rates?currency=EUR\n-- 1.response --\n200\n{\"rate\": 1.1}\n", "", "section 1.request or 1.response is missing: exchanges are numbered from 1"},
		"a status":         {"-- 1.response --\n200", "-- 1.response --\nfine", `section 1.response: its first line is "fine", and a status such as 200 OK, or no answer: REASON, is needed`},
		"a first line":     {"GET https://acme.example/rates?currency=EUR", "https://acme.example/rates", `request 1 is not the recorded one: its first line is "https://acme.example/rates", and METHOD URL is needed`},
		"a section":        {"-- want --", "-- hopes --", `unknown section "hopes"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if strings.Count(string(whole), c.old) != 1 {
				t.Fatalf("%q stands there %d times", c.old, strings.Count(string(whole), c.old))
			}
			file := filepath.Join(t.TempDir(), "r.txtar")
			if err := os.WriteFile(file, []byte(strings.Replace(string(whole), c.old, c.new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			code, _, stderr := replayed(t, "testdata/recordings", file)
			if code == 0 || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d: %s, want %s", code, stderr, c.want)
			}
		})
	}
}

func TestPlaceholders(t *testing.T) {
	s := newSecretNames()
	s.add(connectors.NamedSecret{Name: "password", Value: "p&ss \"w/rd"}, connectors.NamedSecret{Name: "pin", Value: "12345678"},
		connectors.NamedSecret{Name: "access_token", Value: "first-token"}, connectors.NamedSecret{Name: "access_token", Value: "second-token"},
		connectors.NamedSecret{Name: "code", Value: "short"}, connectors.NamedSecret{Name: "word", Value: "access"})
	cases := map[string]struct{ text, hidden string }{
		"plain":              {`Bearer first-token`, `Bearer {{secret.access_token}}`},
		"a second one":       {`second-token`, `{{secret.access_token.2}}`},
		"in a query":         {`?a=p%26ss+%22w%2Frd&b=p%26ss%20%22w%2Frd`, `?a={{secret.password}}&b={{secret.password}}`},
		"in JSON":            {`{"a": "p&ss \"w/rd", "b": 12345678}`, `{"a": "{{secret.password}}", "b": {{secret.pin.number}}}`},
		"escaped in JSON":    {`{"a\/b": "p\u0026ss \u0022w\/rd", "c\/": "\u00e9"}`, `{"a\/b": "{{secret.password}}", "c\/": "\u00e9"}`},
		"in JSON in JSON":    {`{"body": "{\"a\":\"p&ss \\\"w/rd\"}"}`, `{"body": "{\"a\":\"{{secret.password}}\"}"}`},
		"in base64":          {`Basic YW5uOmZpcnN0LXRva2Vu`, `Basic {{base64 ann:{{secret.access_token}}}}`},
		"in base64 for URLs": {`YW5uYTpmaXJzdC10b2tlbg`, `{{base64url anna:{{secret.access_token}}}}`},
		"a member's name":    {`{"access": ["second-token"], "first-token": 1}`, `{"access": ["{{secret.access_token.2}}"], "{{secret.access_token}}": 1}`},
		"too short to hide":  {`a short text`, `a short text`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.hidden, s.hide(c.text)); d != "" {
				t.Error(d)
			}
		})
	}
	if got := s.fill("Basic {{base64 ann:{{secret.access_token}}}} {{secret.password}}", asItIs); got != "Basic YW5uOmZpcnN0LXRva2Vu p&ss \"w/rd" {
		t.Error(got)
	}
	if d := cmp.Diff([]string{"code"}, s.short); d != "" {
		t.Error(d)
	}
	s.addLikely(connectors.NamedSecret{Name: "cookie", Value: "SID=first-token"}, connectors.NamedSecret{Name: "cookie", Value: "SID=first-token; more=of-it"})
	if got := s.hide("SID=first-token, SID=first-token; more=of-it"); got != "SID={{secret.access_token}}, {{secret.cookie}}" {
		t.Error(got)
	}
	made := s.fill("{{secret.new}} {{secret.id.number}}", asItIs)
	if s.hide(made) != "{{secret.new}} {{secret.id.number}}" || len(strings.Fields(made)[1]) != 15 {
		t.Error(made)
	}
}

// What a body cannot be written as, it is written as base64, and reads as it was.
func TestRecording_bodies(t *testing.T) {
	for name, body := range map[string]string{"none": "", "text": "a\nb", "an end of line": "a\n", "blank lines": "\n\na\n\n", "what looks like a section": "-- want --\n",
		"no text": "\xff\x00\x01", "carriage returns": "a\r\nb", "what looks like a header": "X-A: b\n"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "r.txtar")
			e := &exchange{method: "PUT", url: "https://a.example/", status: "200 OK", resBody: []byte(body)}
			r := &recording{exchanges: []recordedExchange{e.record(1, newSecretNames())}}
			if err := r.write(file); err != nil {
				t.Fatal(err)
			}
			got, err := readRecording(file)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(got.exchanges[0].response, "\n")
			if _, read, _, err := parseMessage(rest); err != nil || read != body {
				t.Errorf("%q, %v: %q", read, err, got.exchanges[0].response)
			}
		})
	}
}

func TestWriteBack_keepsWhatItDoesNotKnow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	const before = `{"credential_id": "a", "oauth2": {"expires_in": 60, "access_token": "old", "scope": "all", "refresh_token": "r1"}, "connector": "acme", "properties": {"b": 1}}`
	if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := readCredential(file)
	if err != nil {
		t.Fatal(err)
	}
	r := &credentials.Renewal{Token: &credentials.Token{AccessToken: credentials.NewSecret("new")}, Session: map[string]string{"sid": "s1"}}
	if err := writeBack(file, r, &c.Renewed(r).Secrets); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "credential_id": "a",
  "oauth2": {
    "access_token": "new",
    "scope": "all",
    "refresh_token": "r1"
  },
  "connector": "acme",
  "properties": {
    "b": 1,
    "sid": "s1"
  }
}
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

func TestCaret(t *testing.T) {
	cases := map[string]struct {
		text      string
		line, col int
		want      string
	}{
		"tabs stay":       {"a\n\tb é c", 2, 6, "    \tb é c\n    \t    ^\n"},
		"behind the end":  {"ab", 1, 3, "    ab\n      ^\n"},
		"no such line":    {"ab", 2, 1, ""},
		"beyond the end":  {"ab", 1, 9, "    ab\n      ^\n"},
		"a cursor's code": {"a\x1b[2Jb", 1, 1, "    a?[2Jb\n    ^\n"},
		"a long line":     {strings.Repeat("a", 200) + "B" + strings.Repeat("c", 200), 1, 201, "    " + strings.Repeat("a", 60) + "B" + strings.Repeat("c", 59) + "\n    " + strings.Repeat(" ", 60) + "^\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, caret(c.text, c.line, c.col)); d != "" {
				t.Error(d)
			}
		})
	}
}

// An interrupt during a token request does not lose the new refresh token: the
// old one is spent.
func TestTry_interruptedRefreshIsKept(t *testing.T) {
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		interrupt()
		time.Sleep(100 * time.Millisecond)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token": "second-access", "refresh_token": "second-refresh"}`)
	}))
	defer api.Close()
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("a.yaml", "connector: a\nbase_url: "+api.URL+"\nauth: {type: oauth2, token_url: "+api.URL+"/token, refresh_on: [401]}\nmethods: [{method: m, endpoint: /m}]\n")
	file := write("account.json", `{"credential_id": "1", "connector": "a", "client_id": "c", "client_secret": "s", "oauth2": {"access_token": "first-access", "refresh_token": "first-refresh"}}`)
	t.Setenv("STEPWORKER_REDIS", "redis://127.0.0.1:1") // nothing asks it
	var out, log strings.Builder
	recorded := filepath.Join(folder, "interrupted.txtar")
	code := run(ctx, []string{"try", "a", "m", "--connectors", folder, "--credential-file", file, "--refresh", "--allow-private-network", "--record", recorded}, strings.NewReader(""), &out, &log)
	if got, _ := os.ReadFile(file); !strings.Contains(string(got), "second-refresh") {
		t.Errorf("the file is %s", got)
	}
	if code != 1 || !strings.Contains(log.String(), "interrupted") || !strings.Contains(out.String(), "renewed (oauth2)") {
		t.Errorf("exit %d\n%s\n%s", code, out.String(), log.String())
	}
	if _, err := os.Stat(recorded); err == nil {
		t.Error("half a try was recorded")
	}
}

// What was recorded is replayed: from any moment, whatever the secrets are.
func TestTry_recordedIsReplayed(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch auth := r.Header.Get("Authorization"); {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"access_token": "second-access-token", "expires_in": 3600}`)
		case strings.HasSuffix(auth, " second-access-token"):
			// A secret in a longer text in base64, at each of the three places in a group.
			for shift := range 3 {
				w.Header().Set(fmt.Sprintf("X-%d", shift), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift)+auth)))
			}
			fmt.Fprintf(w, `{"seen": %q, "again": %q}`, base64.StdEncoding.EncodeToString([]byte(auth)), base64.StdEncoding.EncodeToString([]byte("x"+auth)))
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer api.Close()
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("a.yaml", `connector: a
base_url: `+api.URL+`
auth: {type: oauth2, token_url: `+api.URL+`/token, refresh_on: [401]}
script: |
  function before_action() { method_request_parameters.q = btoa('user:' + method_auth_value); }
methods:
  - {method: m, endpoint: /m}
  - {method: fails, endpoint: /m, script: "function after_action() { throw 'no'; }"}
`)
	t.Setenv("STEPWORKER_REDIS", "redis://127.0.0.1:1") // nothing asks it
	for name, c := range map[string]struct {
		method, expiry string
		refresh        bool
	}{
		"refused":                  {"m", "", true},
		"refused, and not renewed": {"m", "", false},
		"expired":                  {"m", `, "expiry": "2020-01-01T00:00:00Z"`, true},
		"expired, and not renewed": {"m", `, "expiry": "2020-01-01T00:00:00Z"`, false},
		"a script fails":           {"fails", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			file := write("account.json", `{"credential_id": "1", "connector": "a", "client_id": "c", "client_secret": "sécret/1", "oauth2": {"access_token": "first-access-token", "refresh_token": "first-refresh"`+c.expiry+`}}`)
			recorded := filepath.Join(t.TempDir(), "r.txtar")
			var out, log strings.Builder
			run(context.Background(), []string{"try", "a", c.method, "--connectors", folder, "--credential-file", file, fmt.Sprintf("--refresh=%t", c.refresh),
				"--allow-private-network", "--record", recorded}, strings.NewReader(""), &out, &log)
			code, stdout, stderr := replayed(t, folder, recorded)
			raw, _ := os.ReadFile(recorded)
			if code != 0 || !strings.HasSuffix(stdout, "Requests and result are the recorded ones.\n") || strings.Contains(string(raw), `"at":`) {
				t.Errorf("exit %d: %s\n%s", code, stderr, raw)
			}
		})
	}
}

// Bodies of each kind are recorded so that people can read them, and replay
// though their boundary is another each time.
func TestTry_bodiesAreReplayed(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<r><token n="1">from-the-answer-1</token></r>`)
	}))
	defer api.Close()
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("a.yaml", `connector: a
base_url: `+api.URL+`
auth: {type: api_key, in: body, name: key}
methods:
  - {method: form, verb: POST, endpoint: /m, data_type: file, body: {note: "one\ntwo"}}
  - {method: bytes, verb: POST, endpoint: /m, data_type: file, body: {f: {content: AP8=, content_encoding: base64}}}
  - {method: related, verb: POST, endpoint: /m, data_type: multipart_related, body: {meta: {a: 1}}}
  - {method: xml, verb: POST, endpoint: /m, data_type: xml, xml_root: r, body: {a: 1}}
`)
	account := write("account.json", `{"credential_id": "1", "connector": "a", "api_key": "<é>&'\"the-api-key-1"}`)
	t.Setenv("STEPWORKER_REDIS", "redis://127.0.0.1:1") // nothing asks it
	for method, want := range map[string]string{
		"form":    "--stepworker-boundary\nContent-Disposition: form-data; name=\"note\"\n\none\ntwo\n--stepworker-boundary\nContent-Disposition: form-data; name=\"key\"\n\n{{secret.api_key}}\n--stepworker-boundary--\n",
		"bytes":   "boundary=stepworker-boundary\n", // the body is base64
		"related": "Content-Id: <meta>\nContent-Type: application/json\n\n{\"a\":1}\n--stepworker-boundary\n",
		"xml":     `<r><a>1</a><key>{{secret.api_key}}</key></r>`,
	} {
		t.Run(method, func(t *testing.T) {
			recorded := filepath.Join(t.TempDir(), "r.txtar")
			var out, log strings.Builder
			code := run(context.Background(), []string{"try", "a", method, "--connectors", folder, "--credential-file", account,
				"--allow-private-network", "--record", recorded}, strings.NewReader(""), &out, &log)
			raw, err := os.ReadFile(recorded)
			if code != 0 || err != nil || strings.Contains(out.String(), "the-api-key-1") {
				t.Fatalf("exit %d, %v: %s\n%s", code, err, log.String(), out.String())
			}
			if !strings.Contains(string(raw), want) || strings.Contains(string(raw), "the-api-key-1") || strings.Contains(string(raw), "from-the-answer-1") {
				t.Errorf("want %q in\n%s", want, raw)
			}
			code, stdout, stderr := replayed(t, folder, recorded)
			if code != 0 || !strings.HasSuffix(stdout, "Requests and result are the recorded ones.\n") {
				t.Errorf("exit %d: %s\n%s", code, stderr, raw)
			}
			other := write("other.txtar", strings.Replace(strings.Replace(string(raw), "\none\n", "\nother\n", 1), `<a>1<`, `<a>2<`, 1))
			if code, _, stderr := replayed(t, folder, other); method == "form" || method == "xml" {
				told := map[string]string{"form": "its body is", "xml": "in its body r.a is \"1\", recorded is \"2\""}[method]
				if code != 1 || !strings.Contains(stderr, told) {
					t.Errorf("another body: exit %d: %s", code, stderr)
				}
			}
		})
	}
}

// What is signed anew in each request replays too, and neither key nor
// signature stands in the recording.
func TestTry_signedRequestsAreReplayed(t *testing.T) {
	var mu sync.Mutex
	var signed []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		for _, s := range []string{r.FormValue("assertion"), r.FormValue("client_assertion"), r.Header.Get("Authorization")} {
			if s != "" {
				signed = append(signed, s)
			}
		}
		if r.URL.Path == "/token" {
			fmt.Fprintf(w, `{"access_token": "access-token-%d"}`, len(signed))
			return
		}
		if r.Header.Get("Authorization") == "Bearer access-token-2" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{}`)
	}))
	defer api.Close()
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const methods = "\nmethods: [{method: m, endpoint: /m, verb: POST, data_type: form, body: {a: b}}]\n"
	write("jwt.yaml", "connector: jwt\nbase_url: "+api.URL+"\nauth: {type: oauth2, grant: jwt_bearer, auth_style: private_key_jwt, token_url: "+api.URL+"/token, refresh_on: [401]}"+methods)
	write("one.yaml", "connector: one\nbase_url: "+api.URL+"\nauth: {type: oauth1, signature: RSA-SHA1}"+methods)
	key := madeUpKey()
	account := write("account.json", string(compact(map[string]any{"credential_id": "1", "client_id": "c", "private_key": key, "basic": map[string]string{"username": "anna", "password": ""}, "connector": "jwt", "oauth2": map[string]any{}})))
	signer := write("signer.json", string(compact(map[string]any{"credential_id": "1", "connector": "one", "private_key": key, "oauth1": map[string]string{"consumer_key": "ck", "token": "token-of-one"}})))
	t.Setenv("STEPWORKER_REDIS", "redis://127.0.0.1:1") // nothing asks it
	for connector, file := range map[string]string{"jwt": account, "one": signer} {
		t.Run(connector, func(t *testing.T) {
			recorded := filepath.Join(t.TempDir(), "r.txtar")
			var out, log strings.Builder
			if code := run(context.Background(), []string{"try", connector, "m", "--connectors", folder, "--credential-file", file, fmt.Sprintf("--refresh=%t", connector == "jwt"),
				"--allow-private-network", "--record", recorded}, strings.NewReader(""), &out, &log); code != 0 {
				t.Fatalf("exit %d: %s\n%s", code, out.String(), log.String())
			}
			code, stdout, stderr := replayed(t, folder, recorded)
			raw, _ := os.ReadFile(recorded)
			if code != 0 || !strings.HasSuffix(stdout, "Requests and result are the recorded ones.\n") {
				t.Errorf("exit %d: %s\n%s", code, stderr, raw)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, secret := range append(signed, strings.Split(key, "\n")[1], "oauth_signature") {
				if strings.Contains(string(raw)+out.String(), secret) {
					t.Errorf("%q is shown", secret)
				}
			}
		})
	}
}

// A token that the connector does not find in the answer is a secret as well.
func TestTry_tokenThatIsNotFoundIsHidden(t *testing.T) {
	folder := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":  "connector: a\nbase_url: https://a.example\nauth: {type: oauth2, token_url: https://a.example/token, refresh_on: [401]}\nmethods: [{method: m, endpoint: /m}]\n",
		"b.yaml":  "connector: b\nbase_url: https://b.example\nauth: {type: none, refresh_on: [401]}\npost_install: {property_lookup_method: login}\nparameters: [{name: sid, target: http_header, property: session}]\nmethods:\n  - {method: m, endpoint: /m}\n  - {method: login, endpoint: /login, response: {fields: [{field: sesion.id, system: sid}]}}\n",
		"a.txtar": "-- try --\n{\"connector\": \"a\", \"method\": \"m\"}\n-- credential --\n{\"credential_id\": \"1\", \"connector\": \"a\", \"client_id\": \"c\", \"client_secret\": \"s\", \"oauth2\": {\"access_token\": \"1\", \"refresh_token\": \"2\"}}\n-- 1.response --\n401\n-- 2.response --\n200\n{\"AccessToken\": \"plain-to-see\"}\n",
		"b.txtar": "-- try --\n{\"connector\": \"b\", \"method\": \"m\"}\n-- credential --\n{\"credential_id\": \"1\", \"connector\": \"b\"}\n-- 1.response --\n200\n{\"session\": {\"id\": \"plain-to-see\"}}\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a.txtar", "b.txtar"} {
		code, stdout, stderr := replayed(t, folder, filepath.Join(folder, name))
		if code != 1 || !strings.Contains(stdout, "the refresh failed") || strings.Contains(stdout, "plain-to-see") {
			t.Errorf("%s: exit %d\n%s\n%s", name, code, stdout, stderr)
		}
	}
}

// Bodies are shown as scripts get them.
func TestScreen_bodies(t *testing.T) {
	for name, c := range map[string]struct{ contentType, body, want string }{
		"UTF-8":        {"text/plain", "Zürich", "    Zürich\n"},
		"its charset":  {"text/plain; charset=iso-8859-2", "\xb3\xf3d\xbc", "    łódź\n"},
		"none told":    {"text/xml", "Z\xfcrich", "    Zürich\n"},
		"what is none": {"image/png", "\xff\x00\x01", "    [3 bytes that are no text]\n"},
		"parts": {"multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\nContent-Type: image/png\r\n\r\n\xff\x00\r\n--b--\r\n",
			"    --b\n    Content-Disposition: form-data; name=\"a\"\n    \n    1\n    --b\n    Content-Type: image/png\n    \n    [2 bytes that are no text]\n    --b--\n"},
		"parts that are none": {"multipart/form-data; boundary=b", "a=1", "    a=1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var w strings.Builder
			(&screen{}).message(credentials.NewRedactor(nil, 1), &w, http.Header{"Content-Type": {c.contentType}}, []byte(c.body))
			if !strings.HasSuffix(w.String(), "\n\n"+c.want) {
				t.Errorf("got %q", w.String())
			}
		})
	}
}

// A place within the message moves as the script does.
func TestTry_aMovedPlaceInTheMessageIsNoDifference(t *testing.T) {
	for now, same := range map[string]bool{"no (a.yaml:7:3)": true, "no (a.yaml:17:30)": true, "no": true, "yes (a.yaml:7:3)": false} {
		r := &try{names: newSecretNames(), replayFile: "r", want: `{"status": "failed", "attempts": 1, "refreshes": 0, "error": {"kind": "auth", "message": "` + now + `"}}`}
		err := r.compareResult(&outcome{Status: jobs.Failed, Attempts: 1, Error: &jobs.ResultError{Kind: "auth", Message: "no (a.yaml:7:3)"}})
		if (err == nil) != same {
			t.Errorf("%s: %v", now, err)
		}
	}
}
