package connectors_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

func loginConnector(login string) string {
	return `
connector: acme
base_url: BASE
post_install: {property_lookup_method: login}
parameters:
  - {name: username, target: merge_field, property: account}
  - {name: password, target: merge_field, property: account, sensitive: true}
  - {name: session_id, target: http_header, as: X-Session, property: session, sensitive: true}
  - {name: tagged, target: http_header, as: X-Tagged, value: "v={{session_id}}"}
headers: {X-Again: "{{tagged}}"}
methods:
  - method: login
    verb: POST
    endpoint: /login
    body: {user: "{{username}}", password: "{{password}}", old: "{{session_id}}"}
` + login + `
  - {method: get, endpoint: /a}
`
}

func newLoginAPI(t *testing.T, file string, answer http.HandlerFunc, configure ...func(*connectors.CallerConfig)) *api {
	t.Helper()
	a := newAPI(t, file, answer, configure...)
	a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "me", credentials.NewSecret("the-pass-word")
	a.Cred.Secrets.Opened = true
	return a
}

func TestLogin_findsTheSession(t *testing.T) {
	cases := map[string]struct {
		login string
		want  map[string]string
	}{
		"body":   {"    response: {fields: [{field: session.id, system: session_id}]}", map[string]string{"session_id": "in-body"}},
		"number": {"    response: {fields: [{field: session.n, system: Session_ID}]}", map[string]string{"session_id": "12345678901234567890"}},
		"header": {"    response: {fields: [{header: x-session-id, system: session_id}]}", map[string]string{"session_id": "in-header"}},
		"cookie": {"    response: {fields: [{cookie: SID, system: session_id}]}", map[string]string{"session_id": `a=b%20"c"`}},
		"hook":   {"    script: function after_action() { session_properties.session_id = 'H' + method_response.session.n }", map[string]string{"session_id": "H12345678901234567000"}},
		"hook before the answer": {"    script: \"function before_action() { session_properties.session_id = http_request({url: 'BASE/challenge'}).headers['X-Session-Id'] }\"",
			map[string]string{"session_id": "in-header"}},
		"expiry too": {"    response: {fields: [{field: session.id, system: session_id}, {field: session.until, system: session_expires}]}",
			map[string]string{"session_id": "in-body", "session_expires": "2030-01-02T03:04:05Z"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newLoginAPI(t, loginConnector(c.login), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Add("Set-Cookie", "OTHER=1; Path=/")
				w.Header().Add("Set-Cookie", "SID=first")
				w.Header().Add("Set-Cookie", `SID=a=b%20"c"; Path=/; HttpOnly`)
				w.Header().Add("Set-Cookie", "SID=; Max-Age=0; Path=/old")
				w.Header().Set("X-Session-Id", "in-header")
				writeJSON(w, 200, `{"session":{"id":"in-body","n":12345678901234567890,"until":"2030-01-02T03:04:05Z"}}`)
			})
			got, re := refresh(t, a, credentials.Session)
			if re != nil {
				t.Fatal(re)
			}
			if d := cmp.Diff(c.want, got.Session); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLogin_goesOutWithoutTheOldSession(t *testing.T) {
	a := newLoginAPI(t, loginConnector("    response: {fields: [{field: id, system: session_id}]}\n    script: function before_action() { method_request.seen = Object.keys(session_properties) }"), answering(200, `{"id":"s-2"}`))
	a.Cred.Secrets.Session = map[string]string{"session_id": "s-1"}
	if _, re := refresh(t, a, credentials.Session); re != nil {
		t.Fatal(re)
	}
	r := a.only()
	for _, h := range []string{"X-Session", "X-Tagged", "X-Again"} {
		if v, there := r.Header[h]; there {
			t.Errorf("%s was sent: %q", h, v)
		}
	}
	if r.Body != `{"user":"me","password":"the-pass-word","seen":[]}` {
		t.Errorf("sent %s", r.Body)
	}
	a.must("get")
	if r := a.only(); r.Header.Get("X-Session") != "s-1" || r.Header.Get("X-Tagged") != "v=s-1" || r.Header.Get("X-Again") != "v=s-1" {
		t.Errorf("another method sent %v", r.Header)
	}
}

func TestLogin_verdicts(t *testing.T) {
	const field = "    response: {fields: [{field: id, system: session_id}]}\n"
	cases := map[string]struct {
		login       string
		status      int
		contentType string
		body        string
		verdict     credentials.Verdict
		after       time.Duration
	}{
		"400":                           {field, 400, "application/json", `{}`, credentials.VerdictRevoked, 0},
		"401":                           {field, 401, "text/html", `<html>`, credentials.VerdictRevoked, 0},
		"403":                           {field, 403, "application/json", `{}`, credentials.VerdictRevoked, 0},
		"403 with a page":               {field, 403, "text/html; charset=utf-8", `<html>`, credentials.Transient, 0},
		"400 with a page":               {field, 400, "text/html", `<html>`, credentials.Transient, 0},
		"404":                           {field, 404, "", ``, credentials.VerdictMisconfigured, 0},
		"405":                           {field, 405, "", ``, credentials.VerdictMisconfigured, 0},
		"409":                           {field, 409, "", ``, credentials.Transient, 0},
		"429":                           {field, 429, "", ``, credentials.Transient, 0},
		"500":                           {field, 500, "", ``, credentials.Transient, 0},
		"thrown at 200":                 {field + "    script: function after_action() { throw 'wrong password' }", 200, "application/json", `{"id":"s"}`, credentials.VerdictRevoked, 0},
		"false":                         {field + "    script: function after_action() { return false }", 200, "application/json", `{"id":"s"}`, credentials.VerdictRevoked, 0},
		"thrown at 401":                 {field + "    script: function after_error() { throw 'wrong password' }", 401, "", ``, credentials.VerdictRevoked, 0},
		"thrown at 503":                 {field + "    script: function after_error() { throw 'whatever it was' }", 503, "", ``, credentials.Transient, 0},
		"its own exception":             {field + "    script: function after_error() { throw new AuthSessionException() }", 403, "application/json", `{}`, credentials.VerdictRevoked, 0},
		"its own exception, at a page":  {field + "    script: function after_error() { throw new AuthSessionException() }", 403, "text/html", `<html>`, credentials.Transient, 0},
		"its own exception, at a 502":   {field + "    script: function after_error() { throw new AuthSessionException() }", 502, "", ``, credentials.Transient, 0},
		"later":                         {field + "    script: function after_action() { throw new RetryLaterException(40) }", 200, "application/json", `{"id":"s"}`, credentials.Transient, 40 * time.Second},
		"engine error":                  {field + "    script: function after_action() { nothing.here }", 200, "application/json", `{"id":"s"}`, credentials.VerdictMisconfigured, 0},
		"fills nothing":                 {field, 200, "application/json", `{"other":1}`, credentials.VerdictMisconfigured, 0},
		"fills nothing, empty":          {field, 200, "application/json", `{"id":""}`, credentials.VerdictMisconfigured, 0},
		"resolved, and thrown after":    {field + "    script: function after_error() { method_error.isSuccess = true } function action_condition() { throw 'wrong password' }", 500, "text/xml", `<Fault/>`, credentials.VerdictRevoked, 0},
		"resolved, but without session": {field + "    script: function after_error() { method_error.isSuccess = true }", 409, "application/json", `{}`, credentials.VerdictMisconfigured, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newLoginAPI(t, loginConnector(c.login), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.contentType)
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			})
			_, re := refresh(t, a, credentials.Session)
			if re == nil || re.Verdict != c.verdict || re.RetryAfter != c.after || re.Status != c.status {
				t.Fatalf("got %+v, want %s", re, c.verdict)
			}
			if n := len(a.requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
	lost := newLoginAPI(t, loginConnector(field), dropping)
	if _, re := refresh(t, lost, credentials.Session); re == nil || re.Verdict != credentials.Unknown {
		t.Errorf("no answer: got %+v", re)
	}
	away := newLoginAPI(t, loginConnector(field), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://maintenance.example/")
		w.WriteHeader(302)
	})
	if _, re := refresh(t, away, credentials.Session); re == nil || re.Verdict != credentials.Transient || !strings.Contains(re.Text, "maintenance.example") {
		t.Errorf("led to a stranger: got %+v", re)
	}
	shy := newLoginAPI(t, strings.ReplaceAll(loginConnector(field), "BASE", "http://127.0.0.1:1"), nil)
	if _, re := refresh(t, shy, credentials.Session); re == nil || re.Verdict != credentials.Transient {
		t.Errorf("nobody listens: got %+v", re)
	}
}

func TestLogin_mayComeOutOfAnError(t *testing.T) {
	a := newLoginAPI(t, loginConnector("    response: {fields: [{field: id, system: session_id}]}\n    script: function after_error() { method_error.isSuccess = true }"), answering(409, `{"id":"s-2"}`))
	got, re := refresh(t, a, credentials.Session)
	if re != nil || got.Session["session_id"] != "s-2" {
		t.Errorf("got %+v, %+v", got, re)
	}
}

func TestLogin_newSessionIsMasked(t *testing.T) {
	a := newLoginAPI(t, loginConnector("    response: {fields: [{field: id, system: session_id}]}\n    script: function after_action() { throw 'saw ' + method_response.id + ' for the-pass-word' }"), answering(200, `{"id":"canary-session"}`))
	_, re := refresh(t, a, credentials.Session)
	if re == nil || strings.Contains(re.Text, "canary") || strings.Contains(re.Text, "pass-word") {
		t.Errorf("got %+v", re)
	}
}

func TestLogin_opensACredentialWithItsTestMethod(t *testing.T) {
	file := strings.Replace(loginConnector("    response: {fields: [{field: id, system: session_id}]}"), "property_lookup_method: login", "property_lookup_method: login, test_auth_method: get", 1)
	status := 200
	a := newLoginAPI(t, file, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			writeJSON(w, 200, `{"id":"canary-session"}`)
			return
		}
		writeJSON(w, status, `{"saw":"`+r.Header.Get("X-Session")+`"}`)
	})
	uris := func() (all []string) {
		for _, r := range a.requests() {
			all = append(all, r.URI)
		}
		return all
	}
	a.Cred.Secrets.Opened = false
	got, re := refresh(t, a, credentials.Session)
	if re != nil || !got.Opened {
		t.Fatalf("got %+v, %+v", got, re)
	}
	if d := cmp.Diff([]string{"/login", "/a"}, uris()); d != "" {
		t.Error(d)
	}
	status = 403
	if _, re = refresh(t, a, credentials.Session); re == nil || re.Verdict != credentials.VerdictRevoked || strings.Contains(re.Text, "canary") {
		t.Errorf("a refused test: got %+v", re)
	}
	status = 503
	if _, re = refresh(t, a, credentials.Session); re == nil || re.Verdict != credentials.Transient {
		t.Errorf("a test without an answer: got %+v", re)
	}
	a.requests()
	status = 200
	a.Cred.Secrets.Opened = true // a token was put, and this is the first session
	if _, re = refresh(t, a, credentials.Session); re != nil {
		t.Errorf("got %+v", re)
	}
	if d := cmp.Diff([]string{"/login", "/a"}, uris()); d != "" {
		t.Error("first session: ", d)
	}
	a.Cred.Secrets.Session = map[string]string{"session_id": "an-old-one"}
	if _, re = refresh(t, a, credentials.Session); re != nil {
		t.Errorf("got %+v", re)
	}
	if d := cmp.Diff([]string{"/login"}, uris()); d != "" {
		t.Error("opened before: ", d)
	}
}

func TestTest_cannotCauseARefresh(t *testing.T) {
	a := newLoginAPI(t, `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token, refresh_on: [401]}
post_install: {test_auth_method: me}
methods: [{method: me, endpoint: /me}]
`, answering(401, `{}`))
	withToken(a.Cred, "the-access-token", "the-refresh-token")
	err := a.Caller.Test(t.Context(), a.Def, a.Cred)
	re, ok := err.(*credentials.RefreshError)
	if !ok || re.Verdict != credentials.VerdictRevoked || re.Status != 401 {
		t.Errorf("got %T %v", err, err)
	}
	if n := len(a.requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// A time that a login's answer tells is by the clock that its Date shows.
func TestLogin_expiryIsByTheProvidersClock(t *testing.T) {
	const ahead = 20 * time.Minute
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	fields := "    response: {fields: [{field: id, system: session_id}, {field: until, system: session_expires}]}\n"
	for name, c := range map[string]struct {
		login, date string
		want        time.Time
	}{
		"of a clock that is ahead":   {fields, "ahead", until.Add(-ahead)},
		"without a Date":             {fields, "", until},
		"set by a script":            {fields + "    script: function after_action() { session_properties.session_expires = method_response.until }", "ahead", until},
		"of a clock nobody keeps":    {fields, time.Unix(0, 0).UTC().Format(http.TimeFormat), until},
		"of a clock that is as ours": {fields, time.Now().UTC().Format(http.TimeFormat), until},
	} {
		t.Run(name, func(t *testing.T) {
			a := newLoginAPI(t, loginConnector(c.login), func(w http.ResponseWriter, _ *http.Request) {
				switch w.Header()["Date"] = nil; c.date {
				case "":
				case "ahead":
					w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
				default:
					w.Header().Set("Date", c.date)
				}
				writeJSON(w, 200, `{"id":"s-2","until":"2030-01-02T03:04:05Z"}`)
			})
			got, re := refresh(t, a, credentials.Session)
			if re != nil {
				t.Fatal(re)
			}
			if at := a.Cred.Renewed(got).Meta.Session.Expiry; at.Sub(c.want).Abs() > 2*time.Second {
				t.Errorf("the session is taken to end at %s, want %s", at, c.want)
			}
			if got.Session["session_expires"] != "2030-01-02T03:04:05Z" {
				t.Errorf("stored as %q", got.Session["session_expires"])
			}
		})
	}
}

func TestLogout(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
auth: {type: none, refresh_on: [401]}
post_install: {property_lookup_method: login, logout_method: logout}
parameters:
  - {name: session_id, target: http_header, as: X-Session, property: session, sensitive: true}
  - {name: csrf, target: merge_field, property: session, sensitive: true}
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: id, system: session_id}, {field: csrf, system: csrf}]}}
  - method: logout
    verb: DELETE
    endpoint: /session
    body: {csrf: "{{csrf}}"}
    script: function after_error() { throw method_error.content }
`
	status, body := 204, ""
	a := newAPI(t, file, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) })
	old := func(session map[string]string) *credentials.Credential {
		c := *a.Cred
		c.Secrets.Session = session
		return &c
	}
	before := old(map[string]string{"session_id": "old-session", "csrf": "old-csrf"})
	now := map[string]string{"session_id": "new-session", "csrf": "new-csrf"}
	if err := a.Caller.Logout(t.Context(), a.Def, before, now); err != nil {
		t.Fatal(err)
	}
	if r := a.only(); r.Method != "DELETE" || r.URI != "/session" || r.Header.Get("X-Session") != "old-session" || r.Body != `{"csrf":"old-csrf"}` {
		t.Errorf("sent %+v", r)
	}
	// What comes of it is an error at most, and masked, the new session too.
	for _, status = range []int{401, 500} {
		body = `{"old":"old-session","new":"new-session"}`
		err := a.Caller.Logout(t.Context(), a.Def, before, now)
		if err == nil || strings.Contains(err.Error(), "old-session") || strings.Contains(err.Error(), "new-session") {
			t.Errorf("%d: got %v", status, err)
		}
		if n := len(a.requests()); n != 1 {
			t.Errorf("%d: %d requests", status, n)
		}
	}
	put := old(nil)
	put.Secrets.Properties = properties(`{"session_id":"put-session","csrf":"put-csrf"}`)
	if _ = a.Caller.Logout(t.Context(), a.Def, put, now); a.only().Header.Get("X-Session") != "put-session" {
		t.Error("a session that was put is one too")
	}
	for name, c := range map[string]struct {
		old *credentials.Credential
		now map[string]string
	}{
		"there was no session": {old(nil), now},
		"the same again":       {before, map[string]string{"session_id": "old-session", "csrf": "old-csrf"}},
		"the same, as it was":  {before, map[string]string{"session_id": "old-session", "session_expires": "2030-01-02T03:04:05Z"}},
		"the same as was put":  {put, map[string]string{"session_id": "put-session"}},
	} {
		if err := a.Caller.Logout(t.Context(), a.Def, c.old, c.now); err != nil || len(a.requests()) != 0 {
			t.Errorf("%s: it was called, %v", name, err)
		}
	}
	a.Def.LogoutMethod = ""
	if err := a.Caller.Logout(t.Context(), a.Def, before, now); err != nil || len(a.requests()) != 0 {
		t.Errorf("without a logout method: %v", err)
	}
}
