package credentials

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepworker/stepworker/internal/strictjson"
)

// Input is a credential as a person or program puts it.
type Input struct {
	CredentialID      string                     `json:"credential_id"`
	Connector         string                     `json:"connector"`
	AccountID         *string                    `json:"account_id"`
	ExternalAccountID *string                    `json:"external_account_id"`
	Properties        map[string]json.RawMessage `json:"properties"`
	ClientID          *string                    `json:"client_id"`
	ClientSecret      *string                    `json:"client_secret"`
	OAuth2            *TokenInput                `json:"oauth2"`
	APIKey            *string                    `json:"api_key"`
	Basic             *struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"basic"`
	OAuth1     *OAuth1Input       `json:"oauth1"`
	PrivateKey *string            `json:"private_key"`
	Fields     map[string]*string `json:"fields"` // null takes one away
	// Authentication is the connector's named alternative; "" is the default one.
	Authentication *string `json:"authentication"`
	IfVersion      *int64  `json:"if_version"`
	// Unopened says that the token is the account's first: the pool is to call
	// the login and the test method before anybody else calls with it.
	Unopened bool `json:"-"`
	// Check, if set, may refuse the credential as it would be stored.
	Check func(*Credential) error `json:"-"`
}

// OAuth1Input are OAuth 1.0a's credentials; a merge lays over what is given.
type OAuth1Input struct {
	ConsumerKey    *string `json:"consumer_key"`
	ConsumerSecret *string `json:"consumer_secret"`
	Token          *string `json:"token"`
	TokenSecret    *string `json:"token_secret"`
	Realm          *string `json:"realm"`
}

// TokenInput is a token endpoint's answer as it is (RFC 6749 section 5.1), or
// the same with an absolute expiry. Members it does not know are kept.
type TokenInput struct {
	AccessToken  string
	RefreshToken string
	TokenType    string
	Expiry       time.Time
	ExpiresIn    *time.Duration // from now
	raw          json.RawMessage
}

// UnmarshalJSON reads a token tolerantly: providers differ.
func (t *TokenInput) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil || m == nil {
		return errors.New("an object is needed, as the token endpoint answers it")
	}
	text := func(k string) (string, error) {
		v, ok := m[k]
		if !ok || string(v) == "null" {
			return "", nil
		}
		var s string
		if err := json.Unmarshal(v, &s); err != nil {
			return "", &strictjson.MemberError{Member: k, Text: "text is needed"}
		}
		return s, nil
	}
	var err error
	if t.AccessToken, err = text("access_token"); err != nil {
		return err
	}
	if t.RefreshToken, err = text("refresh_token"); err != nil {
		return err
	}
	if t.TokenType, err = text("token_type"); err != nil {
		return err
	}
	if e, ok := m["expiry"]; ok && string(e) != "null" {
		var s string
		_ = json.Unmarshal(e, &s)
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return &strictjson.MemberError{Member: "expiry", Text: "an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z"}
		}
		if !at.IsZero() && at.Year() > 1 {
			t.Expiry = at
		}
	}
	if d, ok := ExpiresIn(m["expires_in"]); ok {
		t.ExpiresIn = &d
	}
	t.raw = slices.Clone(b)
	return nil
}

// ExpiresIn reads expires_in (seconds) as providers send it: 3600, 3600.0,
// "3600". Anything else, and what is not positive, is not known.
func ExpiresIn(raw json.RawMessage) (time.Duration, bool) {
	s := strings.Trim(strings.TrimSpace(string(raw)), `"`)
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(f) || f <= 0 || f > 1e10 {
		return 0, false
	}
	return time.Duration(f * float64(time.Second)), true
}

// ParseExpiry reads session_expires: RFC 3339, or Unix seconds.
func ParseExpiry(s string) (time.Time, bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return time.Time{}, false
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, true
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && f > 0 && f < 1e11 {
		return time.UnixMilli(int64(f * 1000)), true
	}
	return time.Time{}, false
}

var (
	idPattern        = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,128}$`)
	connectorPattern = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
)

// DecodeInput reads one credential strictly. No error text holds a value.
func DecodeInput(raw []byte) (*Input, error) {
	var in Input
	if err := strictjson.Decode(raw, &in, strictjson.Options{What: "a credential", Secret: true}); err != nil {
		return nil, err
	}
	switch {
	case in.CredentialID == "":
		return nil, errors.New("credential_id is missing")
	case !idPattern.MatchString(in.CredentialID):
		return nil, errors.New("credential_id: 1 to 128 of A-Z a-z 0-9 _ . : @ - are allowed")
	case in.Connector != "" && !connectorPattern.MatchString(in.Connector):
		return nil, errors.New("connector: a name like acme-crm is needed (a-z, 0-9, -)")
	}
	ways := []string{}
	if in.OAuth2 != nil {
		ways = append(ways, "oauth2")
	}
	if in.APIKey != nil {
		ways = append(ways, "api_key")
	}
	if in.OAuth1 != nil {
		ways = append(ways, "oauth1")
	}
	if len(ways) > 1 {
		return nil, fmt.Errorf("%s: a credential has one of them", strings.Join(ways, " and "))
	}
	if in.PrivateKey != nil && *in.PrivateKey != "" {
		if _, err := ParsePrivateKey(Secret{*in.PrivateKey}); err != nil {
			return nil, fmt.Errorf("private_key: %w", err)
		}
	}
	return &in, nil
}

// apply lays the input over a credential, or replaces it.
func (in *Input) apply(c *Credential, merge bool, now time.Time) error {
	old := c.Connector
	if in.Connector != "" {
		c.Connector = in.Connector
	}
	if c.Connector == "" {
		return errors.New("connector is missing")
	}
	if merge && old != "" && c.Connector != old {
		return fmt.Errorf("connector: a merge cannot turn a credential of %q into one of %q", old, c.Connector)
	}
	if in.AccountID != nil {
		c.AccountID = *in.AccountID
	}
	if in.ExternalAccountID != nil {
		c.ExternalAccountID = *in.ExternalAccountID
	}
	s := &c.Secrets
	if len(in.Properties) > 0 && s.Properties == nil {
		s.Properties = map[string]json.RawMessage{}
	}
	for k, v := range in.Properties {
		if string(v) == "null" {
			delete(s.Properties, k)
			continue
		}
		s.Properties[k] = v
		delete(s.Session, k) // a session value put by hand wins
	}
	if in.ClientID != nil {
		s.ClientID = *in.ClientID
	}
	if in.ClientSecret != nil {
		s.ClientSecret = Secret{*in.ClientSecret}
	}
	if in.APIKey != nil {
		s.APIKey = Secret{*in.APIKey}
	}
	if in.Basic != nil {
		s.Username, s.Password, s.HasBasic = in.Basic.Username, Secret{in.Basic.Password}, true
	}
	if in.PrivateKey != nil {
		s.PrivateKey = Secret{*in.PrivateKey}
	}
	if in.OAuth1 != nil {
		if s.OAuth1 == nil {
			s.OAuth1 = &OAuth1{}
		}
		in.OAuth1.over(s.OAuth1)
	}
	if in.Authentication != nil {
		if c.Authentication != *in.Authentication { // another's token must not reach its token endpoint
			s.OAuth2, s.TokenRaw, s.Session, s.Opened = nil, nil, nil, false
		}
		c.Authentication = *in.Authentication
	}
	for k, v := range in.Fields {
		if v == nil {
			delete(s.Fields, k)
			continue
		}
		if s.Fields == nil {
			s.Fields = map[string]Secret{}
		}
		s.Fields[k] = Secret{*v}
	}
	if t := in.OAuth2; t != nil {
		tok := &Token{AccessToken: Secret{t.AccessToken}, RefreshToken: Secret{t.RefreshToken}, TokenType: t.TokenType, Expiry: t.Expiry}
		if t.ExpiresIn != nil {
			tok.Expiry = now.Add(*t.ExpiresIn)
		}
		if merge && s.OAuth2 != nil {
			if tok.AccessToken.Empty() {
				tok.AccessToken, tok.Expiry = s.OAuth2.AccessToken, s.OAuth2.Expiry
			}
			if tok.RefreshToken.Empty() {
				tok.RefreshToken = s.OAuth2.RefreshToken
			}
		}
		s.OAuth2, s.TokenRaw = tok, t.raw
		// A token that is put was obtained elsewhere: nothing is left to open.
		s.Opened = !tok.AccessToken.Empty() && !in.Unopened
	}
	return nil
}

func (in *OAuth1Input) over(o *OAuth1) {
	for given, secret := range map[*string]*Secret{in.ConsumerSecret: &o.ConsumerSecret, in.Token: &o.Token, in.TokenSecret: &o.TokenSecret} {
		if given != nil {
			*secret = Secret{*given}
		}
	}
	if in.ConsumerKey != nil {
		o.ConsumerKey = *in.ConsumerKey
	}
	if in.Realm != nil {
		o.Realm = *in.Realm
	}
}

// Over is a credential, or the beginning of one, with the input laid over it.
// Nothing is stored.
func (in *Input) Over(c *Credential) (*Credential, error) {
	laid := *c
	laid.ID, laid.Secrets = in.CredentialID, c.Secrets.clone()
	if err := in.apply(&laid, true, time.Now()); err != nil {
		return nil, err
	}
	return &laid, nil
}

// Input is what a token just obtained is put with.
func (r *Renewal) Input() *TokenInput {
	t := r.Token
	return &TokenInput{AccessToken: t.AccessToken.Reveal(), RefreshToken: t.RefreshToken.Reveal(), TokenType: t.TokenType, Expiry: t.Expiry, raw: r.TokenRaw}
}
