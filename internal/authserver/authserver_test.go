package authserver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// The server does what the tests that use it rely on.
func TestServer_rotatesAndRevokesTheFamilyOnReuse(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	access, first, err := s.Issue("a")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Alive(access) {
		t.Fatal("the first access token is dead")
	}
	refresh := func(token string) (status int, access, next string) {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
		req := httptest.NewRequest(http.MethodPost, "/oauth/token", strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(ClientID, ClientSecret)
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, req)
		var out struct {
			Access  string `json:"access_token"`
			Refresh string `json:"refresh_token"`
		}
		_ = json.Unmarshal(rec.Body.Bytes(), &out)
		return rec.Code, out.Access, out.Refresh
	}
	status, access2, second := refresh(first)
	if status != 200 || second == "" || second == first || s.Alive(access) || !s.Alive(access2) {
		t.Fatalf("no rotation: %d", status)
	}
	if status, _, _ := refresh(first); status == 200 {
		t.Fatal("a spent refresh token was accepted")
	}
	if status, _, _ := refresh(second); status == 200 {
		t.Error("the family was not revoked")
	}
	if s.Alive(access2) {
		t.Error("the family's access token is still alive")
	}
}
