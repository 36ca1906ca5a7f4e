package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/authserver"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
)

const authorizeConnectors = `
connector: crm
base_url: "{{base}}/api"
auth: {type: oauth2, grant: authorization_code, authorize_url: "{{base}}/oauth/authorize", token_url: "{{base}}/oauth/token", scopes: [api]}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: me, endpoint: /me}]
SCRIPT
`

// provider is a real authorization server, a Redis, and what a command line
// names.
type provider struct {
	t       *testing.T
	url     string
	auth    *authserver.Server
	store   *credentials.Store
	folder  string
	partner string
	seen    chan url.Values // queries of those who came to authorize
}

func newProvider(t *testing.T, rest string) *provider {
	t.Helper()
	auth, err := authserver.New()
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, auth: auth, folder: t.TempDir(), seen: make(chan url.Values, 10)}
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth/authorize" {
			p.seen <- r.URL.Query()
		}
		auth.ServeHTTP(w, r)
	})
	mux.HandleFunc("/api/me", func(w http.ResponseWriter, r *http.Request) {
		if !auth.Alive(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	p.url = server.URL
	p.write("crm.yaml", strings.Replace(authorizeConnectors, "SCRIPT", rest, 1))
	p.partner = p.write("partner.json", `{"crm":{"client_id":"`+authserver.ClientID+`","client_secret":"`+authserver.ClientSecret+`"}}`)
	redis := redistest.New(t)
	key := credentials.NewKey()
	t.Setenv("STEPWORKER_REDIS", redis.URL)
	t.Setenv("STEPWORKER_KEYS", key)
	keys, err := credentials.ParseKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	p.store = credentials.NewStore(redis.Client(t), keys)
	return p
}

func (p *provider) write(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.folder, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// running is an authorization that waits for a person.
type running struct {
	t              *testing.T
	url            string // that the person is to open
	stdout, stderr programtest.Log
	exit           chan int
}

var toOpen = regexp.MustCompile(`(?m)^open this: (\S+)$`)

func (p *provider) authorize(args ...string) *running {
	p.t.Helper()
	r := &running{t: p.t, exit: make(chan int, 1)}
	args = append([]string{"credential", "authorize", "crm", "c", "--connectors", p.folder, "--partner-settings", p.partner, "--allow-private-network"}, args...)
	ctx, cancel := context.WithCancel(p.t.Context())
	ended := make(chan struct{})
	go func() { r.exit <- run(ctx, args, strings.NewReader(""), &r.stdout, &r.stderr); close(ended) }()
	p.t.Cleanup(func() { cancel(); <-ended })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if m := toOpen.FindStringSubmatch(r.stderr.String()); m != nil {
			r.url = m[1]
			return r
		}
		if time.Now().After(deadline) || len(r.exit) > 0 {
			p.t.Fatalf("nobody is sent anywhere: %s", r.stderr.String())
		}
	}
}

// visit is what a browser does with a URL; the person is signed in at the
// provider, or declines.
func (r *running) visit(address string, signedIn bool) (status int, header http.Header, body string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, address, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if signedIn {
		req.SetBasicAuth("anna", "")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(raw)
}

// ends checks how the command ended.
func (r *running) ends(code int, stdout, stderr string) {
	r.t.Helper()
	if got := <-r.exit; got != code || r.stdout.String() != stdout || !strings.Contains(r.stderr.String(), stderr) {
		r.t.Errorf("exit %d, want %d\nstdout %s\nstderr %s", got, code, r.stdout.String(), r.stderr.String())
	}
}

func (r *running) query(name string) string {
	u, err := url.Parse(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	return u.Query().Get(name)
}

func TestAuthorize_storesTheFirstToken(t *testing.T) {
	p := newProvider(t, `script: |
  function before_oauth2_authorise() { method_endpoint += '&prompt=x' }`)
	r := p.authorize("--property", "base="+p.url, "--account-id", "42", "--external-account-id", "cust-42")
	status, header, body := r.visit(r.url, true)
	if status != 200 || !strings.Contains(body, "The account is connected") || header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v %s", status, header, body)
	}
	r.ends(0, `{"credential_id":"c","status":"stored","version":1,"released":0}`+"\n", "")
	if q := <-p.seen; q.Get("prompt") != "x" || q.Get("scope") != "api" {
		t.Errorf("the provider was asked %v", q)
	}
	c, err := p.store.Get(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	token := c.Secrets.OAuth2
	if !p.auth.Alive(token.AccessToken.Reveal()) || token.RefreshToken.Empty() || token.Expiry.IsZero() || !c.Secrets.Opened || c.Meta.Refused ||
		c.AccountID != "42" || c.ExternalAccountID != "cust-42" || c.Secrets.ClientID != "" {
		t.Errorf("stored %+v", c.Meta)
	}
	for _, secret := range []string{token.AccessToken.Reveal(), token.RefreshToken.Reveal(), authserver.ClientSecret} {
		if strings.Contains(r.stdout.String()+r.stderr.String()+body, secret) {
			t.Error("a secret is shown")
		}
	}
	// Once more: over what is stored.
	again := p.authorize("--partner-settings", p.partner)
	again.visit(again.url, true)
	again.ends(0, `{"credential_id":"c","status":"stored","version":2,"released":0}`+"\n", "")
	if c, err = p.store.Get(t.Context(), "c"); err != nil || c.AccountID != "42" || c.Secrets.OAuth2.AccessToken == token.AccessToken {
		t.Errorf("stored %+v, %v", c, err)
	}
}

// The client's secret may come with the credential, by a file.
func TestAuthorize_credentialFile(t *testing.T) {
	p := newProvider(t, "")
	file := p.write("c.json", `{"credential_id":"c","connector":"crm","client_id":"`+authserver.ClientID+`","client_secret":"`+authserver.ClientSecret+`","properties":{"base":"`+p.url+`"}}`)
	r := p.authorize("--credential-file", file, "--partner-settings", "")
	r.visit(r.url, true)
	r.ends(0, `{"credential_id":"c","status":"stored","version":1,"released":0}`+"\n", "")
	if c, err := p.store.Get(t.Context(), "c"); err != nil || c.Secrets.ClientSecret.Reveal() != authserver.ClientSecret {
		t.Errorf("%+v, %v", c, err)
	}
}

// The pool opens the credential: until then nobody calls with it.
func TestAuthorize_thePoolOpensIt(t *testing.T) {
	p := newProvider(t, `post_install: {test_auth_method: me}`)
	r := p.authorize("--property", "base="+p.url)
	r.visit(r.url, true)
	r.ends(0, `{"credential_id":"c","status":"stored","version":1,"released":0}`+"\n", `The pool calls the test method "me"`)
	if u, err := p.store.Usable(t.Context(), "c"); err != nil || u.Usable || u.Meta.RefusedKind != credentials.Opening {
		t.Fatalf("usable %+v, %v", u, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var log programtest.Log
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, []string{"run", "--connectors", p.folder, "--allow-private-network", "--http", ""}, strings.NewReader(""), io.Discard, &log)
	}()
	defer func() { cancel(); <-exit }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if u, err := p.store.Usable(t.Context(), "c"); err == nil && u.Usable {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it was not opened: %s", log.String())
		}
	}
}

func TestAuthorize_refusalsAreToldAndChangeNothing(t *testing.T) {
	p := newProvider(t, "")
	for name, c := range map[string]struct {
		come   func(*testing.T, *running)
		stderr string
	}{
		"the person declines": {func(t *testing.T, r *running) {
			if status, _, body := r.visit(r.url, false); status != 200 || !strings.Contains(body, "The provider refused: access_denied") {
				t.Errorf("%d %s", status, body)
			}
		}, "the provider refused: access_denied: "},
		"a description of anybody's": {func(t *testing.T, r *running) {
			_, _, body := r.visit(r.query("redirect_uri")+"?error=x&error_description="+url.QueryEscape("<script>\x1b[2J")+"&state="+r.query("state"), false)
			if !strings.Contains(body, "x: &lt;script&gt;[2J") {
				t.Error(body)
			}
		}, "the provider refused: x: <script>[2J\n"},
		"a code that is none": {func(t *testing.T, r *running) {
			_, _, body := r.visit(r.query("redirect_uri")+"?code=made-up&state="+r.query("state"), true)
			if !strings.Contains(body, "The terminal says why.") {
				t.Error(body)
			}
		}, "the provider refused the account (invalid_grant"},
	} {
		t.Run(name, func(t *testing.T) {
			r := p.authorize("--property", "base="+p.url)
			c.come(t, r)
			r.ends(1, "", c.stderr)
			if _, err := p.store.Get(t.Context(), "c"); err == nil {
				t.Error("a credential was stored")
			}
		})
	}
}

func TestAuthorize_otherAnswersAreRefusedAndTheWaitingGoesOn(t *testing.T) {
	p := newProvider(t, "")
	r := p.authorize("--property", "base="+p.url)
	back := r.query("redirect_uri")
	got := map[string]int{}
	for name, address := range map[string]string{
		"another state":       back + "?code=theirs&state=another",
		"no state":            back + "?code=theirs",
		"another's refusal":   back + "?error=access_denied&state=another",
		"neither":             back + "?state=" + r.query("state"),
		"another path":        strings.Replace(back, "/callback", "/", 1) + "?code=theirs&state=" + r.query("state"),
		"the way a form goes": "",
	} {
		if address != "" {
			got[name], _, _ = r.visit(address, true)
			continue
		}
		res, err := http.PostForm(back+"?code=theirs&state="+r.query("state"), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		got[name] = res.StatusCode
	}
	want := map[string]int{"another state": 403, "no state": 403, "another's refusal": 403, "neither": 400, "another path": 404, "the way a form goes": 404}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if requests, _ := p.auth.Counts(); requests != 0 {
		t.Errorf("%d token requests", requests)
	}
	r.visit(r.url, true)
	r.ends(0, `{"credential_id":"c","status":"stored","version":1,"released":0}`+"\n", "another state was refused")
}

func TestAuthorize_nobodyComes(t *testing.T) {
	p := newProvider(t, "")
	p.authorize("--property", "base="+p.url, "--timeout", "50ms").ends(1, "", "nobody came back from the provider within 50ms")
}

// The redirect URL may be given: the address of this machine that is
// registered with the provider.
func TestAuthorize_redirectURL(t *testing.T) {
	p := newProvider(t, "")
	r := p.authorize("--property", "base="+p.url, "--redirect-url", "http://localhost:0")
	if back := r.query("redirect_uri"); !regexp.MustCompile(`^http://localhost:[1-9][0-9]*$`).MatchString(back) {
		t.Errorf("the redirect URL is %s", back)
	}
	r.visit(r.query("redirect_uri")+"?error=access_denied&state="+r.query("state"), false)
	r.ends(1, "", "access_denied")
}

// A hook after the exchange that fails does not lose the token.
func TestAuthorize_aTokenWhoseHookFailed(t *testing.T) {
	p := newProvider(t, `script: |
  function after_oauth2_token() { nothing.at.all }`)
	r := p.authorize("--property", "base="+p.url)
	r.visit(r.url, true)
	r.ends(1, `{"credential_id":"c","status":"stored","version":1,"released":0}`+"\n", "the token is stored, but after_oauth2_token")
	if c, err := p.store.Get(t.Context(), "c"); err != nil || !p.auth.Alive(c.Secrets.OAuth2.AccessToken.Reveal()) || !strings.Contains(c.Meta.LastError, "after_oauth2_token") {
		t.Errorf("%+v, %v", c, err)
	}
}
