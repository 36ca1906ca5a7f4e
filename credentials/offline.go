package credentials

import (
	"maps"
	"time"
)

// Credential is the credential that an input says, without a store.
func (in *Input) Credential() (*Credential, error) {
	c := &Credential{ID: in.CredentialID, Version: 1, Meta: Meta{State: Active}}
	if err := in.apply(c, false, time.Now()); err != nil {
		return nil, err
	}
	c.Meta.Token.Expiry, c.Meta.Session.Expiry = c.Secrets.tokenExpiry(), c.Secrets.sessionExpiry(0)
	return c, nil
}

// Renewed is the credential's next version, as a store would save it.
func (c *Credential) Renewed(r *Renewal) *Credential {
	next := *c
	next.Version++
	next.Secrets = c.Secrets.renewed(r)
	next.Meta = Meta{State: Active}
	next.Meta.Token.Expiry, next.Meta.Session.Expiry = next.Secrets.tokenExpiry(), next.Secrets.sessionExpiry(r.Skew)
	return &next
}

// renewed lays a renewal over secrets. A provider that sends no new refresh
// token means the old one to go on.
func (s *Secrets) renewed(r *Renewal) Secrets {
	next := s.clone()
	if r.Token != nil {
		t := *r.Token
		if old := next.OAuth2; t.RefreshToken.Empty() && old != nil {
			t.RefreshToken = old.RefreshToken
		}
		next.OAuth2, next.TokenRaw = &t, r.TokenRaw
	}
	if len(r.Session) > 0 {
		if next.Session == nil {
			next.Session = map[string]string{}
		}
		maps.Copy(next.Session, r.Session)
	}
	next.Opened = next.Opened || r.Opened
	return next
}
