// Package authserver is a real OAuth 2 authorization server for tests: ory's
// fosite, whose refresh tokens rotate and which revokes the whole family when
// a spent one is used again (RFC 9700 section 4.14.2).
package authserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v3"
	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/storage"
)

// The client that the server knows.
const (
	ClientID     = "real-client"
	ClientSecret = "real-client-secret"
)

// Redirect is where the client's codes go: on a loopback address any port will
// do (RFC 8252 section 7.3).
const Redirect = "http://127.0.0.1/callback"

// Server is the authorization server. As an http.Handler it serves
// /oauth/token and /oauth/authorize, which wants PKCE. A person is signed in
// there as the user of Basic authentication, and consents; who is not signed in
// declines.
type Server struct {
	provider fosite.OAuth2Provider
	store    *storage.MemoryStore
	config   *fosite.Config

	mu       sync.Mutex
	requests int
	granted  int
	dead     map[string]bool
}

// New returns a server that knows its client.
func New() (*Server, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	config := &fosite.Config{GlobalSecret: secret, AccessTokenLifespan: time.Hour, RefreshTokenLifespan: 24 * time.Hour, RefreshTokenScopes: []string{}, EnforcePKCE: true,
		GrantTypeJWTBearerCanSkipClientAuth: true}
	hasher := &fosite.BCrypt{Config: config}
	hashed, err := hasher.Hash(context.Background(), []byte(ClientSecret))
	if err != nil {
		return nil, err
	}
	store := storage.NewMemoryStore()
	store.Clients[ClientID] = &fosite.DefaultClient{ID: ClientID, Secret: hashed, Scopes: []string{"api"},
		GrantTypes: []string{"authorization_code", "password", "refresh_token", "client_credentials"}, ResponseTypes: []string{"code"}, RedirectURIs: []string{Redirect}}
	s := &Server{store: store, config: config, dead: map[string]bool{}}
	// The password grant is only how this server is asked for first tokens.
	passwordGrant := compose.OAuth2ResourceOwnerPasswordCredentialsFactory //nolint:staticcheck // SA1019: there is no shorter way to a first refresh token
	s.provider = compose.Compose(config, store, &compose.CommonStrategy{CoreStrategy: compose.NewOAuth2HMACStrategy(config)},
		compose.OAuth2AuthorizeExplicitFactory, compose.OAuth2PKCEFactory, passwordGrant, compose.OAuth2ClientCredentialsGrantFactory, compose.OAuth2RefreshTokenGrantFactory,
		compose.RFC7523AssertionGrantFactory,
		compose.OAuth2TokenIntrospectionFactory)
	return s, nil
}

// KeyClientID is a client that has a key in place of a secret.
const KeyClientID = "key-client"

// Trust has the server know a key: of the client KeyClientID, which proves itself
// by private_key_jwt (OpenID Connect Core section 9) and may have all the other
// client may, and of an account in whose name that client may ask for tokens by
// assertions (RFC 7523 section 2.1). Their audience is tokenURL.
func (s *Server) Trust(key crypto.PublicKey, account, tokenURL string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	jwk := jose.JSONWebKey{Key: key, KeyID: "key-1", Algorithm: "RS256", Use: "sig"}
	if _, ok := key.(*ecdsa.PublicKey); ok {
		jwk.Algorithm = "ES256"
	}
	s.config.TokenURL = tokenURL
	client := *s.store.Clients[ClientID].(*fosite.DefaultClient)
	client.ID, client.Secret = KeyClientID, nil
	s.store.Clients[KeyClientID] = &fosite.DefaultOpenIDConnectClient{DefaultClient: &client, JSONWebKeys: &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk}},
		TokenEndpointAuthMethod: "private_key_jwt", TokenEndpointAuthSigningAlgorithm: jwk.Algorithm}
	s.store.IssuerPublicKeys[KeyClientID] = storage.IssuerPublicKeys{Issuer: KeyClientID, KeysBySub: map[string]storage.SubjectPublicKeys{
		account: {Subject: account, Keys: map[string]storage.PublicKeyScopes{jwk.KeyID: {Key: &jwk, Scopes: []string{"api"}}}}}}
}

// Issue authorizes an account and returns its first tokens.
func (s *Server) Issue(account string) (access, refresh string, err error) {
	s.mu.Lock()
	s.store.Users[account] = storage.MemoryUserRelation{Username: account, Password: "pw"}
	s.mu.Unlock()
	form := url.Values{"grant_type": {"password"}, "username": {account}, "password": {"pw"}, "scope": {"api"}}
	req := httptest.NewRequest(http.MethodPost, "/oauth/token", strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(ClientID, ClientSecret)
	rec := httptest.NewRecorder()
	s.serve(rec, req)
	var out struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil || out.Refresh == "" {
		return "", "", fmt.Errorf("no tokens: %d %s", rec.Code, rec.Body)
	}
	return out.Access, out.Refresh, nil
}

// Kill lets an access token die without notice.
func (s *Server) Kill(access string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead[access] = true
}

// Alive introspects an access token.
func (s *Server) Alive(access string) bool {
	s.mu.Lock()
	dead := s.dead[access]
	s.mu.Unlock()
	if dead || access == "" {
		return false
	}
	_, _, err := s.provider.IntrospectToken(context.Background(), access, fosite.AccessToken, &fosite.DefaultSession{})
	return err == nil
}

// Counts are the token requests that came from outside, and those granted.
func (s *Server) Counts() (requests, granted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.granted
}

// ServeHTTP answers persons and token requests.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/oauth/authorize" {
		s.authorize(w, r)
		return
	}
	s.mu.Lock()
	s.requests++
	s.mu.Unlock()
	if s.serve(w, r) {
		s.mu.Lock()
		s.granted++
		s.mu.Unlock()
	}
}

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	request, err := s.provider.NewAuthorizeRequest(ctx, r)
	account, _, signedIn := r.BasicAuth()
	if err == nil && !signedIn {
		err = fosite.ErrAccessDenied.WithHint("The person declined.")
	}
	if err != nil {
		s.provider.WriteAuthorizeError(ctx, w, request, err)
		return
	}
	for _, scope := range request.GetRequestedScopes() {
		request.GrantScope(scope)
	}
	response, err := s.provider.NewAuthorizeResponse(ctx, request, &fosite.DefaultSession{Subject: account})
	if err != nil {
		s.provider.WriteAuthorizeError(ctx, w, request, err)
		return
	}
	s.provider.WriteAuthorizeResponse(ctx, w, request, response)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) bool {
	ctx := r.Context()
	request, err := s.provider.NewAccessRequest(ctx, r, &fosite.DefaultSession{})
	if err != nil {
		s.provider.WriteAccessError(ctx, w, request, err)
		return false
	}
	for _, scope := range request.GetRequestedScopes() {
		request.GrantScope(scope)
	}
	response, err := s.provider.NewAccessResponse(ctx, request)
	if err != nil {
		s.provider.WriteAccessError(ctx, w, request, err)
		return false
	}
	s.provider.WriteAccessResponse(ctx, w, request, response)
	return true
}
