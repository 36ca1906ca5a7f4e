package jobs_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

const withAlternatives = `connector: own
base_url: "{{base}}"
authentications:
  - {name: Key, auth: {type: api_key, name: X-Key}}
  - {name: App, auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: m, endpoint: /m}]
`

// Each credential is called, refused and refreshed by the authentication that it names.
func TestAuthentications_eachCredentialByItsOwn(t *testing.T) {
	t.Parallel()
	h := newHouse(t, withConnector(t, withAlternatives))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = w.Write([]byte(`{"access_token":"new-access-token","expires_in":3600}`))
		case r.Header.Get("X-Key") != "the-api-key" && r.Header.Get("Authorization") != "Bearer new-access-token":
			w.WriteHeader(401)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	h.put(map[string]any{"credential_id": "k", "connector": "own", "api_key": "the-api-key"})
	h.put(map[string]any{"credential_id": "a", "connector": "own", "authentication": "App", "client_id": "c", "client_secret": "one-secret",
		"oauth2": map[string]any{"access_token": "old-access-token", "refresh_token": "refresh-token"}})
	h.put(map[string]any{"credential_id": "u", "connector": "own", "authentication": "Ap", "api_key": "the-api-key"})
	h.succeed(append(h.enqueue(3, jobs.Step{CredentialID: "k", Method: "m"}), h.enqueue(3, jobs.Step{CredentialID: "a", Method: "m"})...))

	// One that the connector does not have: another worker may know it.
	ids := h.enqueue(1, jobs.Step{CredentialID: "u", Method: "m"})
	h.until("the step is put back", func() bool {
		st, err := h.client.Status(context.Background(), ids[0])
		return err == nil && strings.Contains(st.WaitsFor, `this worker does not know authentication "Ap" of connector "own"; did you mean "App"?`)
	})
	if err := h.client.RequestRefresh(context.Background(), "u"); err != nil {
		t.Fatal(err)
	}
	h.until("who asked for a refresh is told", func() bool {
		st, err := h.store.Status(context.Background(), "u")
		return err == nil && st.LastRefresh != nil && st.LastRefresh.Verdict == credentials.VerdictMisconfigured && st.State == credentials.Active &&
			st.LastError == `connector "own" has no authentication "Ap", which the credential names; did you mean "App"?`
	})
	// Put right, it goes on by itself.
	h.put(map[string]any{"credential_id": "u", "connector": "own", "authentication": "Key", "api_key": "the-api-key"})
	h.succeed(ids)
}

// What a key cannot renew is not asked of it because the default could, and a
// token is renewed in time though the default has none.
func TestAuthentications_ofAnotherKindThanTheDefault(t *testing.T) {
	app := `  - {name: App, auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}}` + "\n"
	flipped := strings.Replace(strings.Replace(withAlternatives, app, "", 1), "authentications:\n", "authentications:\n"+app, 1)
	for _, file := range []string{withAlternatives, flipped} {
		h := newHouse(t, withConnector(t, file))
		doomed := make(chan string, 10)
		h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				_, _ = w.Write([]byte(`{"access_token":"new-access-token","expires_in":3600}`))
			case r.Header.Get("X-Key") != "the-api-key" && r.Header.Get("Authorization") != "Bearer new-access-token":
				doomed <- r.Header.Get("Authorization")
				w.WriteHeader(401)
			default:
				_, _ = w.Write([]byte(`{}`))
			}
		})
		h.put(map[string]any{"credential_id": "k", "connector": "own", "authentication": "Key", "api_key": "the-api-key"})
		h.put(map[string]any{"credential_id": "a", "connector": "own", "authentication": "App", "client_id": "c", "client_secret": "one-secret",
			"oauth2": map[string]any{"access_token": "old-access-token", "refresh_token": "refresh-token", "expiry": "2020-01-01T00:00:00Z"}})
		h.succeed(append(h.enqueue(1, jobs.Step{CredentialID: "k", Method: "m"}), h.enqueue(1, jobs.Step{CredentialID: "a", Method: "m"})...))
		if len(doomed) > 0 {
			t.Errorf("a token whose expiry is past was sent: %s", <-doomed)
		}
	}
}

// A credential that names what its worker does not have says so at once, and no
// longer once a worker has run it that knows the name.
func TestUnknownHere_theCredentialTellsUntilAWorkerKnowsIt(t *testing.T) {
	t.Parallel()
	var cfg jobs.PoolConfig
	older := withConnector(t, strings.Replace(withAlternatives, "App", "Apps", 1))
	h := newHouse(t, func(c *jobs.PoolConfig) { older(c); cfg = *c })
	h.url = serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	h.put(map[string]any{"credential_id": "a", "connector": "own", "authentication": "App", "client_id": "c", "client_secret": "one-secret",
		"oauth2": map[string]any{"access_token": "an-access-token", "expires_in": 3600}})
	h.put(map[string]any{"credential_id": "n", "connector": "new", "api_key": "the-api-key"})
	ids := append(h.enqueue(1, jobs.Step{CredentialID: "a", Method: "m"}), h.enqueue(1, jobs.Step{CredentialID: "n", Method: "m"})...)
	tells := func(id, text string) func() bool {
		return func() bool {
			st, err := h.store.Status(context.Background(), id)
			return err == nil && st.LastError == text && st.State == credentials.Active
		}
	}
	h.until("the credential tells that its authentication is unknown",
		tells("a", `connector "own" has no authentication "App", which the credential names; did you mean "Apps"?`))
	h.until("the credential tells that its connector is unknown", tells("n", `there is no connector "new", which the credential names`))

	// A person who asks for a refresh is told the same, and it is forgotten likewise.
	if err := h.client.RequestRefresh(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	h.until("the refresh is answered", func() bool {
		st, err := h.store.Status(context.Background(), "a")
		return err == nil && st.LastRefresh != nil
	})
	h.until("and the text stands", tells("a", `connector "own" has no authentication "App", which the credential names; did you mean "Apps"?`))

	h.pool.Shutdown()
	dir := t.TempDir()
	for name, text := range map[string]string{"own.yaml": withAlternatives, "new.yaml": strings.Replace(withAlternatives, "connector: own", "connector: new", 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	cfg.Catalog = catalog
	h.another(cfg)
	h.succeed(ids)
	for _, id := range []string{"a", "n"} {
		if st, err := h.store.Status(context.Background(), id); err != nil || st.LastError != "" {
			t.Errorf("a worker knows it, and %s still tells %q", id, st.LastError)
		}
	}
}
