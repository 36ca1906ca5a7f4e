package upgrade

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Addr is where the provider listens: connector files name it, and so do the
// records that were made with them.
const Addr = "127.83.84.87:8383"

// Provider is the API at the other end of all fixtures. An access token is
// ACCOUNT.N, its refresh token ACCOUNT.rN, a session ACCOUNT.sN, with N raised
// at each renewal. While it is failing, accounts named fails-…, revoked-… and
// club-… get no other token, and have lost the one they have.
type Provider struct {
	mu       sync.Mutex
	failing  bool
	calls    map[string]int    // by method, path, page and account
	renewals map[string]int    // by what was sent for a token or session
	notices  map[string]int    // by type and credential
	seen     map[string]string // marks and pins, by account
	hanging  int
	release  chan struct{}
}

// Listen serves a new provider at Addr until close is called.
func Listen(failing bool) (p *Provider, stop func(), err error) {
	p = &Provider{failing: failing, calls: map[string]int{}, renewals: map[string]int{}, notices: map[string]int{}, seen: map[string]string{}, release: make(chan struct{})}
	l, err := net.Listen("tcp", Addr)
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("POST /notices", p.notice)
	mux.HandleFunc("GET /desk", p.desk)
	mux.HandleFunc("GET /shelf", p.shelf)
	mux.HandleFunc("GET /since", p.since)
	mux.HandleFunc("GET /open", func(w http.ResponseWriter, _ *http.Request) { say(w, 200, map[string]any{"ok": true}) })
	mux.HandleFunc("GET /key", func(w http.ResponseWriter, r *http.Request) { own(w, r.Header.Get("X-Key") == "key-of-an-account") })
	mux.HandleFunc("GET /basic", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		own(w, user == "ann" && password == "password-of-ann")
	})
	mux.HandleFunc("POST /fields", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Tenant, Secret string }
		own(w, json.NewDecoder(r.Body).Decode(&body) == nil && body.Tenant == "t1" && body.Secret == "secret-of-t1")
	})
	mux.HandleFunc("GET /oauth1", func(w http.ResponseWriter, r *http.Request) {
		own(w, strings.Contains(r.Header.Get("Authorization"), `oauth_token="token-of-ann"`))
	})
	mux.HandleFunc("GET /{path}", p.bearer)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	return p, func() { close(p.release); _ = server.Close() }, nil
}

func say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func own(w http.ResponseWriter, right bool) {
	if !right {
		say(w, 401, map[string]any{"error": "unauthorized"})
		return
	}
	say(w, 200, map[string]any{"ok": true})
}

// account of a token, and how often it was renewed.
func account(token string) (name string, n int) {
	name, count, _ := strings.Cut(token, ".")
	n, _ = strconv.Atoi(strings.TrimLeft(count, "rs"))
	return name, n
}

// lost says that the token or session an account began with is not taken.
func lost(name string, n int) bool {
	kind, _, _ := strings.Cut(name, "-")
	return n == 0 && (kind == "fails" || kind == "revoked" || kind == "club" || kind == "dead")
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	sent := r.Form.Get("refresh_token")
	name, n := account(sent)
	kind, _, _ := strings.Cut(name, "-")
	p.mu.Lock()
	p.renewals[sent]++
	failing := p.failing
	p.mu.Unlock()
	switch {
	case failing && kind == "fails":
		say(w, 503, map[string]any{"error": "temporarily_unavailable"})
	case kind == "revoked" && n == 0: // a person has to put another
		say(w, 400, map[string]any{"error": "invalid_grant"})
	case kind == "club" && r.Form.Get("client_secret") != "right":
		say(w, 401, map[string]any{"error": "invalid_client"})
	default:
		say(w, 200, map[string]any{"access_token": fmt.Sprintf("%s.%d", name, n+1), "refresh_token": fmt.Sprintf("%s.r%d", name, n+1), "expires_in": 3600})
	}
}

func (p *Provider) login(w http.ResponseWriter, r *http.Request) {
	var body struct{ User, Password string }
	_ = json.NewDecoder(r.Body).Decode(&body)
	kind, _, _ := strings.Cut(body.User, "-")
	p.mu.Lock()
	p.renewals["login "+body.User]++
	failing := p.failing
	p.mu.Unlock()
	switch {
	case failing && kind == "fails":
		say(w, 503, map[string]any{"error": "try later"})
	case body.Password != "password-of-"+body.User:
		say(w, 401, map[string]any{"error": "unknown user or password"})
	default:
		say(w, 200, map[string]any{"session": body.User + ".s1"})
	}
}

func (p *Provider) desk(w http.ResponseWriter, r *http.Request) {
	if name, n := account(r.Header.Get("X-Session")); name == "" || n == 0 {
		say(w, 403, map[string]any{"error": "no session"})
		return
	}
	say(w, 200, map[string]any{"ok": true})
}

// admit counts a call, and answers one whose token is not taken.
func (p *Provider) admit(w http.ResponseWriter, r *http.Request, what string) (name string, ok bool) {
	name, n := account(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	p.mu.Lock()
	p.calls[what+" "+name]++
	p.mu.Unlock()
	if name == "" || lost(name, n) {
		say(w, 401, map[string]any{"error": "invalid_token"})
		return name, false
	}
	return name, true
}

// shelf has five books on three pages. The first page is shown to everybody.
func (p *Provider) shelf(w http.ResponseWriter, r *http.Request) {
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	if page == 1 {
		name, _ := account(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		p.mu.Lock()
		p.calls["shelf 1 "+name]++
		p.mu.Unlock()
		say(w, 200, []int{1, 2})
		return
	}
	name, ok := p.admit(w, r, fmt.Sprint("shelf ", page))
	if !ok {
		return
	}
	if p.isFailing() && strings.HasPrefix(name, "hangs-") {
		p.mu.Lock()
		p.hanging++
		p.mu.Unlock()
		select {
		case <-p.release:
		case <-r.Context().Done():
		}
		return
	}
	say(w, 200, map[int][]int{2: {3, 4}, 3: {5}}[page])
}

func (p *Provider) since(w http.ResponseWriter, r *http.Request) {
	p.see("since", r.URL.Query().Get("after"))
	say(w, 200, map[string]any{"ok": true})
}

// bearer answers all other paths.
func (p *Provider) bearer(w http.ResponseWriter, r *http.Request) {
	path := r.PathValue("path")
	if mark := r.Header.Get("X-Mark"); mark != "" {
		p.see("mark", mark)
	}
	name, ok := p.admit(w, r, path)
	if !ok {
		return
	}
	if path == "vault" {
		p.see("pin of "+name, r.Header.Get("X-Pin"))
	}
	if p.isFailing() {
		switch path {
		case "broken":
			say(w, 400, map[string]any{"error": "there is no such book"})
			return
		case "flaky":
			say(w, 500, map[string]any{"error": "out of order"})
			return
		case "busy":
			w.Header().Set("Retry-After", "300")
			say(w, 429, map[string]any{"error": "not so fast"})
			return
		}
	}
	say(w, 200, map[string]any{"path": path, "account": name})
}

func (p *Provider) notice(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	var n struct {
		Type string
		Data struct {
			CredentialID string `json:"credential_id"`
		}
	}
	_ = json.Unmarshal(raw, &n)
	if p.isFailing() {
		say(w, 503, map[string]any{})
		return
	}
	p.mu.Lock()
	p.notices[n.Type+" "+n.Data.CredentialID]++
	p.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (p *Provider) see(what, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[what] = value
}

func (p *Provider) isFailing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failing
}

// Calls is how often the API was called: PATH ACCOUNT, or shelf PAGE ACCOUNT.
func (p *Provider) Calls(what string) int { p.mu.Lock(); defer p.mu.Unlock(); return p.calls[what] }

// Notices is how often a notice was told: TYPE CREDENTIAL.
func (p *Provider) Notices(what string) int { p.mu.Lock(); defer p.mu.Unlock(); return p.notices[what] }

// Renewals is how often each refresh token, or login, was sent.
func (p *Provider) Renewals() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.renewals)
}

// Seen is what was sent last: mark, since, pin of ACCOUNT.
func (p *Provider) Seen() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.seen)
}

// Hanging is how many calls hang.
func (p *Provider) Hanging() int { p.mu.Lock(); defer p.mu.Unlock(); return p.hanging }
