package connectors

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Settings is a connector's file, scripts and partner settings in short: when
// the provider has refused the connector, another Settings means that it may
// have been put right.
func (c *Caller) Settings(d *Definition) string {
	h := sha256.New()
	h.Write(d.digest[:])
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
	h.Write([]byte(p.ClientID + "\x00" + p.ClientSecret))
	return hex.EncodeToString(h.Sum(nil)[:8])
}
