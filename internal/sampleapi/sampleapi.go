// Package sampleapi is the provider at the other end in `worker demo` and in
// tests: an API whose tokens and sessions die on command and which shows it in
// the four ways that real ones do, and a token endpoint whose refresh tokens
// rotate and whose families are revoked when a spent one is used again.
package sampleapi

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Client that the token endpoint accepts.
const (
	ClientID     = "sample-client"
	ClientSecret = "sample-client-secret"
	Username     = "sample-user"
	Password     = "sample-password"
)

// Provider is the sample provider. It is an http.Handler.
type Provider struct {
	mux *http.ServeMux

	mu        sync.Mutex
	families  map[string]*family // by account
	access    map[string]*family // live access tokens
	refresh   map[string]*family // every refresh token ever given out
	sessions  map[string]bool    // live sessions
	tokens    map[string]int     // token requests by account
	reused    int                // spent refresh tokens that were presented
	logins    int
	served    int
	refused   int
	perKey    map[string]int // answered calls by Idempotency-Key
	delay     time.Duration
	failures  int
	expiresIn int
	refuseAll bool
	authority func(token string) bool
	asking    map[string]int       // token requests under way, by account
	answered  map[string]time.Time // when the last one ended, by account
}

type family struct {
	account string
	current string // the refresh token that is not spent
	access  string
	revoked bool
}

// New returns a provider without accounts.
func New() *Provider {
	p := &Provider{mux: http.NewServeMux(), families: map[string]*family{}, access: map[string]*family{}, refresh: map[string]*family{},
		sessions: map[string]bool{}, tokens: map[string]int{}, perKey: map[string]int{}, expiresIn: 3600,
		asking: map[string]int{}, answered: map[string]time.Time{}}
	p.mux.HandleFunc("POST /oauth/token", p.token)
	p.mux.HandleFunc("GET /plain", func(w http.ResponseWriter, r *http.Request) {
		p.count(r, true)
		answer(w, 200, map[string]any{"ok": true, "text": strings.Repeat("x", 1000)})
	})
	p.mux.HandleFunc("GET /orders", p.api(p.bearer, 200, map[string]any{"error": "invalid_grant"}))
	p.mux.HandleFunc("GET /crm/contacts", p.api(p.bearer, 403, map[string]any{"message": "forbidden"}))
	p.mux.HandleFunc("GET /strict", p.api(p.bearer, 401, map[string]any{"message": "unauthorized"}))
	p.mux.HandleFunc("POST /ledger/login", p.login)
	p.mux.HandleFunc("GET /ledger/entries", p.api(p.session, 200, map[string]any{"error_code": "You are not logged on."}))
	p.mux.HandleFunc("POST /helpdesk/login", p.login)
	p.mux.HandleFunc("GET /helpdesk/tickets", p.api(p.session, 403, map[string]any{"message": "no session"}))
	return p
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

// Issue gives an account a token, as an authorization would.
func (p *Provider) Issue(account string) (access, refresh string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &family{account: account}
	p.families[account] = f
	return p.rotate(f)
}

func (p *Provider) rotate(f *family) (access, refresh string) {
	delete(p.access, f.access)
	f.access, f.current = "access-"+rand.Text(), "refresh-"+rand.Text()
	p.access[f.access], p.refresh[f.current] = f, f
	return f.access, f.current
}

// KillToken lets an account's access token die without notice.
func (p *Provider) KillToken(account string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.access, p.families[account].access)
}

// Revoke takes an account's authorization away.
func (p *Provider) Revoke(account string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoke(p.families[account])
}

func (p *Provider) revoke(f *family) {
	f.revoked = true
	delete(p.access, f.access)
}

// KillSessions ends every session.
func (p *Provider) KillSessions() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.sessions)
}

// SlowTokens makes the token endpoint take its time; FailTokens makes it
// answer 503 that many times first; ExpiresIn sets the life it tells, in
// seconds (0: it tells none).
func (p *Provider) SlowTokens(d time.Duration) { p.mu.Lock(); p.delay = d; p.mu.Unlock() }
func (p *Provider) FailTokens(n int)           { p.mu.Lock(); p.failures = n; p.mu.Unlock() }
func (p *Provider) ExpiresIn(s int)            { p.mu.Lock(); p.expiresIn = s; p.mu.Unlock() }

// UseAuthority lets somebody else say which access tokens are alive.
func (p *Provider) UseAuthority(alive func(token string) bool) {
	p.mu.Lock()
	p.authority = alive
	p.mu.Unlock()
}

// RefuseAll makes the API refuse every token, renewed ones too.
func (p *Provider) RefuseAll(b bool) { p.mu.Lock(); p.refuseAll = b; p.mu.Unlock() }

// TokenRequests counts token requests of an account, failed ones included.
func (p *Provider) TokenRequests(account string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tokens[account]
}

// Asking are the accounts with token requests under way, or answered within the
// last while: what a client that dies now may not have stored.
func (p *Provider) Asking(within time.Duration) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var accounts []string
	for account, at := range p.answered {
		if p.asking[account] > 0 || time.Since(at) < within {
			accounts = append(accounts, account)
		}
	}
	for account, n := range p.asking {
		if _, ended := p.answered[account]; n > 0 && !ended {
			accounts = append(accounts, account)
		}
	}
	return accounts
}

// Reused counts spent refresh tokens that were presented.
func (p *Provider) Reused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reused
}

// Counts are how many logins were answered, calls served, calls refused.
func (p *Provider) Counts() (logins, served, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logins, p.served, p.refused
}

// ServedTwice counts executions (by Idempotency-Key) that were served more than once.
func (p *Provider) ServedTwice() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.perKey {
		if c > 1 {
			n++
		}
	}
	return n
}

func (p *Provider) count(r *http.Request, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok {
		p.refused++
		return
	}
	p.served++
	if k := r.Header.Get("Idempotency-Key"); k != "" {
		p.perKey[k]++
	}
}

func (p *Provider) api(alive func(*http.Request) bool, status int, dead any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !alive(r) {
			p.count(r, false)
			answer(w, status, dead)
			return
		}
		p.count(r, true)
		answer(w, 200, map[string]any{"records": []any{map[string]any{"id": 1, "name": "Ada"}, map[string]any{"id": 2, "name": "Grace"}}})
	}
}

func (p *Provider) bearer(r *http.Request) bool {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	p.mu.Lock()
	alive, known := p.authority, p.access[token] != nil && !p.refuseAll
	p.mu.Unlock()
	if alive != nil {
		return alive(token)
	}
	return known
}

func (p *Provider) session(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions[r.Header.Get("X-Session")]
}

func (p *Provider) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ User, Password string }
	_ = json.NewDecoder(r.Body).Decode(&in)
	if in.User != Username || in.Password != Password {
		answer(w, 401, map[string]any{"message": "wrong user or password"})
		return
	}
	id := "session-" + rand.Text()
	p.mu.Lock()
	clear(p.sessions) // a new login ends the previous one
	p.sessions[id] = true
	p.logins++
	p.mu.Unlock()
	w.Header().Set("X-Session-Id", id)
	answer(w, 200, map[string]any{"session": map[string]any{"id": id}})
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if id != ClientID || secret != ClientSecret {
		answer(w, 401, map[string]any{"error": "invalid_client"})
		return
	}
	spent := r.PostForm.Get("refresh_token")
	p.mu.Lock()
	f := p.refresh[spent]
	if f != nil {
		p.tokens[f.account]++
		p.asking[f.account]++
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.asking[f.account]--
			p.answered[f.account] = time.Now()
		}()
	}
	delay, fail := p.delay, p.failures > 0
	if fail {
		p.failures--
	}
	p.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
		}
	}
	if fail {
		answer(w, 503, map[string]any{"message": "try later"})
		return
	}
	p.mu.Lock()
	if f == nil || f.revoked || f.current != spent {
		if f != nil { // a spent token was used again: the family is revoked (RFC 9700 section 4.14.2)
			if f.current != spent {
				p.reused++
			}
			p.revoke(f)
		}
		p.mu.Unlock()
		answer(w, 400, map[string]any{"error": "invalid_grant", "error_description": "the refresh token is spent, revoked or unknown"})
		return
	}
	access, refresh := p.rotate(f)
	out := map[string]any{"access_token": access, "refresh_token": refresh, "token_type": "Bearer"}
	if p.expiresIn > 0 {
		out["expires_in"] = p.expiresIn
	}
	p.mu.Unlock()
	answer(w, 200, out)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
