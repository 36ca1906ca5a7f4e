package credentials

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"strings"
)

const redacted = "[redacted]"

// Secret is text that cannot be printed: fmt, log/slog and encoding/json all
// show [redacted]. Only Reveal gives it out.
type Secret struct{ text string }

// NewSecret wraps a secret.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal gives the text out, for the wire and for sealing.
func (s Secret) Reveal() string { return s.text }

// Empty says that there is no text.
func (s Secret) Empty() bool { return s.text == "" }

func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }

func (Secrets) String() string               { return redacted }
func (Secrets) GoString() string             { return redacted }
func (Secrets) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (Secrets) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secrets) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (Secrets) LogValue() slog.Value         { return slog.StringValue(redacted) }

// sealedForm is how Secrets stand inside the sealed part; nothing else
// encodes them. A newer build may add members here, at the top: one that does
// not know them keeps them as they are.
type sealedForm struct {
	Properties   map[string]json.RawMessage `json:"properties,omitempty"`
	Session      map[string]string          `json:"session,omitempty"`
	ClientID     string                     `json:"client_id,omitempty"`
	ClientSecret string                     `json:"client_secret,omitempty"`
	OAuth2       *sealedToken               `json:"oauth2,omitempty"`
	APIKey       string                     `json:"api_key,omitempty"`
	Username     string                     `json:"username,omitempty"`
	Password     string                     `json:"password,omitempty"`
	HasBasic     bool                       `json:"has_basic,omitempty"`
	OAuth1       *sealedOAuth1              `json:"oauth1,omitempty"`
	PrivateKey   string                     `json:"private_key,omitempty"`
	Fields       map[string]string          `json:"fields,omitempty"`
	TokenRaw     json.RawMessage            `json:"token_raw,omitempty"`
	Opened       bool                       `json:"opened,omitempty"`
}

type sealedToken struct {
	AccessToken  string `json:"access_token,omitempty"`
	RefreshToken string `json:"refresh_token,omitempty"`
	TokenType    string `json:"token_type,omitempty"`
	Expiry       int64  `json:"expiry,omitempty"` // ms
}

type sealedOAuth1 struct {
	ConsumerKey    string `json:"consumer_key,omitempty"`
	ConsumerSecret string `json:"consumer_secret,omitempty"`
	Token          string `json:"token,omitempty"`
	TokenSecret    string `json:"token_secret,omitempty"`
	Realm          string `json:"realm,omitempty"`
}

func (s *Secrets) encode() ([]byte, error) {
	f := sealedForm{
		Properties: s.Properties, Session: s.Session, ClientID: s.ClientID, ClientSecret: s.ClientSecret.text, APIKey: s.APIKey.text,
		Username: s.Username, Password: s.Password.text, HasBasic: s.HasBasic, PrivateKey: s.PrivateKey.text, TokenRaw: s.TokenRaw, Opened: s.Opened,
	}
	if t := s.OAuth2; t != nil {
		f.OAuth2 = &sealedToken{t.AccessToken.text, t.RefreshToken.text, t.TokenType, millis(t.Expiry)}
	}
	if o := s.OAuth1; o != nil {
		f.OAuth1 = &sealedOAuth1{o.ConsumerKey, o.ConsumerSecret.text, o.Token.text, o.TokenSecret.text, o.Realm}
	}
	if s.Fields != nil {
		f.Fields = map[string]string{}
		for k, v := range s.Fields {
			f.Fields[k] = v.text
		}
	}
	raw, err := json.Marshal(f)
	if err != nil || len(s.unknown) == 0 {
		return raw, err
	}
	all := maps.Clone(s.unknown)
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// sealedMembers are the members that this build knows.
var sealedMembers = func() map[string]bool {
	known := map[string]bool{}
	form := reflect.TypeFor[sealedForm]()
	for i := range form.NumField() {
		name, _, _ := strings.Cut(form.Field(i).Tag.Get("json"), ",")
		known[name] = true
	}
	return known
}()

func decodeSecrets(raw []byte) (Secrets, error) {
	var f sealedForm
	if err := json.Unmarshal(raw, &f); err != nil {
		return Secrets{}, err
	}
	s := Secrets{
		Properties: f.Properties, Session: f.Session, ClientID: f.ClientID, ClientSecret: Secret{f.ClientSecret}, APIKey: Secret{f.APIKey},
		Username: f.Username, Password: Secret{f.Password}, HasBasic: f.HasBasic, PrivateKey: Secret{f.PrivateKey}, TokenRaw: f.TokenRaw, Opened: f.Opened,
	}
	if t := f.OAuth2; t != nil {
		s.OAuth2 = &Token{Secret{t.AccessToken}, Secret{t.RefreshToken}, t.TokenType, fromMillis(t.Expiry)}
	}
	if o := f.OAuth1; o != nil {
		s.OAuth1 = &OAuth1{o.ConsumerKey, Secret{o.ConsumerSecret}, Secret{o.Token}, Secret{o.TokenSecret}, o.Realm}
	}
	if f.Fields != nil {
		s.Fields = map[string]Secret{}
		for k, v := range f.Fields {
			s.Fields[k] = Secret{v}
		}
	}
	if err := json.Unmarshal(raw, &s.unknown); err != nil {
		return Secrets{}, err
	}
	maps.DeleteFunc(s.unknown, func(name string, _ json.RawMessage) bool { return sealedMembers[name] })
	if len(s.unknown) == 0 {
		s.unknown = nil
	}
	return s, nil
}

// SecretValues are all texts of a credential that must never be shown:
// passwords, tokens, keys, client_secret, fields, session values. Properties
// are secret only where the connector marks them so, which it must add.
func (c *Credential) SecretValues() []string {
	s := &c.Secrets
	var all []string
	add := func(v string) {
		if v != "" {
			all = append(all, v)
		}
	}
	add(s.ClientSecret.text)
	add(s.APIKey.text)
	add(s.Password.text)
	if t := s.OAuth2; t != nil {
		add(t.AccessToken.text)
		add(t.RefreshToken.text)
	}
	if o := s.OAuth1; o != nil {
		add(o.ConsumerSecret.text)
		add(o.Token.text)
		add(o.TokenSecret.text)
	}
	for _, v := range KeyParts(s.PrivateKey) {
		add(v)
	}
	for _, v := range s.Fields {
		add(v.text)
	}
	for _, v := range s.Session {
		add(v)
	}
	return all
}
