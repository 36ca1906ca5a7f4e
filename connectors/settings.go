package connectors

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
)

// whoAsks is the client of this credential's token endpoint; nobody, where there is
// no client.
func (c *Caller) whoAsks(d *definition.Connector, cred *credentials.Credential) credentials.Client {
	id, secret := c.clientOf(d, cred)
	if d.Auth.Type != "oauth2" || id == "" {
		return credentials.Client{}
	}
	endpoint, err := mergefields.URL(d.Auth.TokenURL, func(name string) (any, bool, bool) { return c.ownField(d, cred, name) })
	if err != nil {
		return credentials.Client{} // nothing will be asked
	}
	h := sha256.Sum256([]byte(endpoint + "\x00" + id))
	return credentials.Client{Key: d.Name + ":" + hex.EncodeToString(h[:8]), Settings: c.Settings(d) + "\x00" + secret + "\x00" + c.privateKeyOf(d, cred).Reveal()}
}

// Settings is a connector's file, scripts and partner settings in short: when
// the provider has refused the connector, another Settings means that it may
// have been put right.
func (c *Caller) Settings(d *definition.Connector) string {
	h := sha256.New()
	h.Write(d.Digest[:])
	if d.Script != nil {
		h.Write([]byte(d.Script.Source))
	}
	for _, name := range d.MethodNames {
		if s := d.Methods[name].Script; s != nil {
			h.Write([]byte(s.Source))
		}
	}
	p := c.cfg.Partner[d.Name]
	_ = json.NewEncoder(h).Encode(p.Properties) // a map's keys are written in order
	h.Write([]byte(p.ClientID + "\x00" + p.ClientSecret + "\x00" + p.PrivateKey.Reveal()))
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// RefreshRequest asks for a refresh of a credential as it is stored.
func (c *Caller) RefreshRequest(d *definition.Connector, cred *credentials.Credential, kind credentials.Kind) credentials.RefreshRequest {
	r := credentials.RefreshRequest{ID: cred.ID, Version: cred.Version, Kind: kind, Settings: c.Settings(d)}
	if kind == credentials.OAuth2 {
		r.Client = func(cred *credentials.Credential) credentials.Client { return c.whoAsks(d, cred) }
	}
	return r
}
