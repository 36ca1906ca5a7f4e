package connectors_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

var engine *hooks.Engine // shared: hosts keep nothing from one event to the next

func TestMain(m *testing.M) {
	hooks.HostMain()
	var err error
	if engine, err = hooks.New(hooks.Config{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = engine.Close()
	os.Exit(code)
}

// request is what the API saw.
type request struct {
	Method, URI, Host, Body string
	Header                  http.Header
}

// api is a provider's server, a connector for it and a caller.
type api struct {
	t      *testing.T
	URL    string
	Caller *connectors.Caller
	Def    *definition.Connector
	Cred   *credentials.Credential

	mu   sync.Mutex
	seen []request
}

// newAPI serves answer and reads the connector; BASE in the file is the
// server's URL and HOST its host and port.
func newAPI(t *testing.T, file string, answer http.HandlerFunc, configure ...func(*connectors.CallerConfig)) *api {
	t.Helper()
	a := &api{t: t}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		a.mu.Lock()
		a.seen = append(a.seen, request{r.Method, r.RequestURI, r.Host, string(body), r.Header.Clone()})
		a.mu.Unlock()
		if answer == nil {
			writeJSON(w, 200, `{}`)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	a.URL = srv.URL
	a.Def = definitiontest.Load(t, strings.NewReplacer("BASE", srv.URL, "HOST", strings.TrimPrefix(srv.URL, "http://")).Replace(file))
	cfg := connectors.CallerConfig{Engine: engine, AllowPrivate: true}
	for _, c := range configure {
		c(&cfg)
	}
	caller, err := connectors.NewCaller(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(caller.Close)
	a.Caller = caller
	a.Cred = &credentials.Credential{ID: "cust42-acme", Connector: "acme", AccountID: "42", ExternalAccountID: "cust-42", Version: 7}
	return a
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// answering serves the same answer to everything.
func answering(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) }
}

func (a *api) call(method string, change ...func(*connectors.Call)) (*connectors.Answer, error) {
	a.t.Helper()
	m, ok := a.Def.Method(method)
	if !ok {
		a.t.Fatalf("no method %s", method)
	}
	call := &connectors.Call{Definition: a.Def, Method: m, Credential: a.Cred, ExecutionID: "e1"}
	for _, c := range change {
		c(call)
	}
	return a.Caller.Call(a.t.Context(), call)
}

// must is a call that ends well.
func (a *api) must(method string, change ...func(*connectors.Call)) *connectors.Answer {
	a.t.Helper()
	answer, err := a.call(method, change...)
	if err != nil {
		a.t.Fatalf("%s: %v", method, describe(err))
	}
	return answer
}

// fails is a call that ends with a CallError.
func (a *api) fails(method string, change ...func(*connectors.Call)) *connectors.CallError {
	a.t.Helper()
	answer, err := a.call(method, change...)
	var ce *connectors.CallError
	if !errors.As(err, &ce) {
		a.t.Fatalf("%s: got %+v, %s; want a CallError", method, answer, describe(err))
	}
	return ce
}

// refused is a call that ends with an AuthError.
func (a *api) refused(method string, change ...func(*connectors.Call)) *connectors.AuthError {
	a.t.Helper()
	answer, err := a.call(method, change...)
	var ae *connectors.AuthError
	if !errors.As(err, &ae) {
		a.t.Fatalf("%s: got %+v, %s; want an AuthError", method, answer, describe(err))
	}
	return ae
}

func describe(err error) string {
	var ce *connectors.CallError
	if errors.As(err, &ce) {
		return fmt.Sprintf("kind %s at %q: %s (detail %s)", ce.Kind, ce.At, ce.Message, ce.Detail)
	}
	return fmt.Sprintf("%T: %v", err, err)
}

// requests are those that the API saw since the last look.
func (a *api) requests() []request {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.seen
	a.seen = nil
	return seen
}

// only is the one request that the API saw.
func (a *api) only() request {
	a.t.Helper()
	seen := a.requests()
	if len(seen) != 1 {
		a.t.Fatalf("the API saw %d requests, want 1: %+v", len(seen), seen)
	}
	return seen[0]
}

func withParameters(raw string) func(*connectors.Call) {
	return func(c *connectors.Call) {
		if err := json.Unmarshal([]byte(raw), &c.Parameters); err != nil {
			panic(err)
		}
	}
}

func withScript(source string) func(*connectors.Call) {
	return func(c *connectors.Call) { c.Script = source }
}

func properties(raw string) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(raw), &m); err != nil {
		panic(err)
	}
	return m
}

func withToken(c *credentials.Credential, access, refresh string) {
	c.Secrets.OAuth2 = &credentials.Token{AccessToken: credentials.NewSecret(access), RefreshToken: credentials.NewSecret(refresh)}
}

// sameJSON compares by value, so that member order and spaces do not count.
func sameJSON(t *testing.T, what string, got json.RawMessage, want string) {
	t.Helper()
	norm := func(raw []byte) string {
		var v any
		if len(raw) == 0 {
			return "(none)"
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%s is no JSON: %s", what, raw)
		}
		b, _ := json.Marshal(v)
		return string(b)
	}
	if g, w := norm(got), norm([]byte(want)); g != w {
		t.Errorf("%s is %s, want %s", what, g, w)
	}
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s is %q; it should say %q", what, text, part)
	}
}

func refresh(t *testing.T, a *api, kind credentials.Kind) (*credentials.Renewal, *credentials.RefreshError) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	renewal, err := a.Caller.Refresh(ctx, a.Def, a.Cred, kind)
	if err == nil {
		return renewal, nil
	}
	var re *credentials.RefreshError
	if !errors.As(err, &re) {
		t.Fatalf("refresh ended with %T %v, want a RefreshError", err, err)
	}
	return nil, re
}
