package connectors_test

import (
	"bufio"
	"bytes"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/stepworker/stepworker/credentials"
)

// A file of the corpus is one provider's: its name and where it documents, or
// somebody shows, the answers that stand below, each named "what = verdict".
func TestVerdicts_corpus(t *testing.T) {
	files, err := filepath.Glob("testdata/verdicts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no corpus: ", err)
	}
	answers := 0
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(ar.Comment, []byte("https://")) {
			t.Errorf("%s names no source", file)
		}
		for _, f := range ar.Files {
			what, want, ok := strings.Cut(f.Name, " = ")
			if !ok {
				t.Fatalf("%s: %q names no verdict", file, f.Name)
			}
			answers++
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar")+"/"+what, func(t *testing.T) { judge(t, f.Data, credentials.Verdict(want)) })
		}
	}
	if answers < 60 {
		t.Errorf("the corpus holds %d answers", answers)
	}
}

func judge(t *testing.T, answer []byte, want credentials.Verdict) {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		maps.Copy(w.Header(), res.Header)
		w.WriteHeader(res.StatusCode)
		_, _ = w.Write(body)
	})
	_, re := refresh(t, a, credentials.OAuth2)
	if re == nil || re.Verdict != want || re.Status != res.StatusCode {
		t.Fatalf("got %+v, want %s", re, want)
	}
	wait, _ := strconv.Atoi(res.Header.Get("Retry-After"))
	if re.RetryAfter != time.Duration(wait)*time.Second {
		t.Errorf("waits %s, and was told %d s", re.RetryAfter, wait)
	}
	advice := map[credentials.Verdict]string{credentials.Transient: "it is asked again", credentials.VerdictRevoked: "authorize it again", credentials.VerdictMisconfigured: "check "}[want]
	contains(t, "text", re.Text, advice)
	if strings.Contains(re.Text, "(:") {
		t.Errorf("a text that quotes no code: %s", re.Text)
	}
	if n := len(a.requests()); n != 1 {
		t.Errorf("%d token requests", n)
	}
}

// A time of day that a server tells is by its own clock.
func TestVerdicts_retryAfterAsADate(t *testing.T) {
	for name, off := range map[string]time.Duration{"right": 0, "fast": 40 * time.Minute, "slow": -3 * time.Hour} {
		for _, status := range []int{429, 503, 400} {
			a := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
				theirs := time.Now().Add(off).UTC()
				w.Header().Set("Date", theirs.Format(http.TimeFormat))
				w.Header().Set("Retry-After", theirs.Add(90*time.Second).Format(http.TimeFormat))
				w.WriteHeader(status)
			})
			if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient || re.RetryAfter != 90*time.Second {
				t.Errorf("a clock that is %s, %d: got %+v", name, status, re)
			}
		}
	}
}

func TestVerdicts_aCertificateNobodyKnowsIsTransient(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	a := newTokenAPI(t, strings.ReplaceAll(tokenConnector, "BASE/token", srv.URL+"/token"), nil)
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient || re.Status != 0 {
		t.Errorf("got %+v", re)
	}
}

// A server that is out of order is no fault of the account or the connector,
// whatever the script makes of its page.
func TestVerdicts_aScriptThatStumblesOverAPageIsNoVerdict(t *testing.T) {
	for _, status := range []int{408, 409, 423, 425, 429, 500, 502, 503} {
		for _, script := range []string{"JSON.parse(method_error.content)", "throw 'wrong password'", "throw new AuthSessionException()", "return false"} {
			a := newLoginAPI(t, loginConnector("    response: {fields: [{field: id, system: session_id}]}\n    script: function after_error() { "+script+" }"),
				func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "text/html")
					w.WriteHeader(status)
					_, _ = io.WriteString(w, "<html>")
				})
			if _, re := refresh(t, a, credentials.Session); re == nil || re.Verdict != credentials.Transient || re.Status != status {
				t.Errorf("%d, %s: got %+v", status, script, re)
			}
		}
	}
}

// Which failed logins count as a password that the server heard.
func TestVerdicts_loginsThatCount(t *testing.T) {
	field := "    response: {fields: [{field: id, system: session_id}]}\n"
	for name, c := range map[string]struct {
		login  string
		answer http.HandlerFunc
		counts bool
	}{
		"409":                     {field, answering(409, `{}`), true},
		"423, the account locked": {field, answering(423, `{}`), true},
		"402":                     {field, answering(402, `{}`), true},
		"a firewall's page": {field, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(403)
		}, true},
		"408":                    {field, answering(408, `{}`), false},
		"425":                    {field, answering(425, `{}`), false},
		"429":                    {field, answering(429, `{}`), false},
		"503":                    {field, answering(503, `{}`), false},
		"no answer":              {field, dropping, false},
		"refused":                {field, answering(401, `{}`), false},
		"no session":             {field, answering(200, `{}`), false},
		"asks to wait":           {field + "    script: function after_action() { throw new RetryLaterException(40) }", answering(200, `{"id":"s"}`), false},
		"asks at a 409":          {field + "    script: function after_error() { throw new RetryLaterException(40) }", answering(409, `{}`), false},
		"its http_request broke": {field + "    script: \"function after_action() { http_request({url: 'http://127.0.0.1:1/'}) }\"", answering(200, `{"id":"s"}`), true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newLoginAPI(t, loginConnector(c.login), c.answer)
			if _, re := refresh(t, a, credentials.Session); re == nil || re.Counts != c.counts {
				t.Errorf("got %+v", re)
			}
		})
	}
	for grant, counts := range map[string]bool{"password": true, "authorization_code": false, "client_credentials": false} {
		a := newTokenAPI(t, strings.Replace(tokenConnector, "type: oauth2", "type: oauth2, grant: "+grant, 1), answering(400, `{}`))
		a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "me", credentials.NewSecret("the-pass-word")
		if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Counts != counts {
			t.Errorf("grant %s: got %+v", grant, re)
		}
	}
}
