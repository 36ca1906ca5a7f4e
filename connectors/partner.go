package connectors

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepworker/stepworker/credentials"
)

// PartnerSettings are what an operator supplies for one connector.
type PartnerSettings struct {
	ClientID     string
	ClientSecret string
	PrivateKey   credentials.Secret
	Properties   map[string]json.RawMessage

	secret []string // members that were sealed, and so are masked whatever the connector says of them
}

var partnerMembers = []string{"client_id", "client_secret", "private_key", "properties"}

// partnerProperty begins the name of a property's place in the settings.
const partnerProperty = "properties."

// CheckPartnerMember says whether a sealed value can stand at a member of a
// connector's settings: client_id, client_secret, private_key, properties.NAME.
func CheckPartnerMember(member string) error {
	if name, ok := strings.CutPrefix(member, partnerProperty); ok && name != "" || slices.Contains(partnerMembers[:3], member) {
		return nil
	}
	return fmt.Errorf("%q is none of client_id, client_secret, private_key and properties.NAME%s", member, didYouMean(member, partnerMembers[:3]))
}

// sealed are the values that were sealed, with their names.
func (p PartnerSettings) sealed() (all []NamedSecret) {
	for _, member := range p.secret {
		if name, ok := strings.CutPrefix(member, partnerProperty); ok {
			all = append(all, NamedSecret{name, textOf(p.Properties[name])})
		} else if member == "client_id" {
			all = append(all, NamedSecret{member, p.ClientID})
		}
	}
	return all
}

// Partners are partner settings as a file says them.
type Partners struct {
	Settings map[string]PartnerSettings // by connector
	// Aged are the places of values that are not sealed with the first key, as
	// CONNECTOR MEMBER: that key cannot go before they are sealed again.
	Aged []string
	// Mistakes are all of the file. None holds a value.
	Mistakes []string
}

// ParsePartnerSettings reads what an operator supplies for connectors. In place
// of any text there may be {"sealed": "…"}, which one of the keys opens; nil:
// there are no keys.
func ParsePartnerSettings(raw []byte, keys *credentials.Keyring) *Partners {
	all := &Partners{Settings: map[string]PartnerSettings{}}
	var file map[string]map[string]json.RawMessage
	if err := json.Unmarshal(raw, &file); err != nil {
		text := `an object of objects is needed: {"acme": {"client_id": "…", "client_secret": "…", "properties": {}}}`
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			text = fmt.Sprintf("malformed JSON at line %d", 1+strings.Count(string(raw[:min(int(syntax.Offset), len(raw))]), "\n"))
		}
		all.Mistakes = []string{text}
		return all
	}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		r := &partnerReader{all: all, keys: keys, connector: name}
		r.read(file[name])
		all.Settings[name] = r.into
	}
	return all
}

// partnerReader reads the settings of one connector.
type partnerReader struct {
	all       *Partners
	keys      *credentials.Keyring
	connector string
	into      PartnerSettings
}

func (r *partnerReader) wrong(format string, args ...any) {
	r.all.Mistakes = append(r.all.Mistakes, r.connector+fmt.Sprintf(format, args...))
}

func (r *partnerReader) read(members map[string]json.RawMessage) {
	for _, member := range slices.Sorted(maps.Keys(members)) {
		raw := members[member]
		switch member {
		case "client_id":
			r.into.ClientID = r.text(member, raw)
		case "client_secret":
			r.into.ClientSecret = r.text(member, raw)
		case "private_key":
			r.into.PrivateKey = credentials.NewSecret(r.text(member, raw))
			if r.into.PrivateKey.Empty() {
				continue
			}
			if _, err := credentials.ParsePrivateKey(r.into.PrivateKey); err != nil {
				r.wrong(".private_key: %v", err)
			}
		case "properties":
			if json.Unmarshal(raw, &r.into.Properties) != nil {
				r.wrong(".properties has the wrong type")
			}
			for _, name := range slices.Sorted(maps.Keys(r.into.Properties)) {
				if text, ok := r.opened(partnerProperty+name, r.into.Properties[name]); ok {
					r.into.Properties[name] = quote(text)
				}
			}
		default:
			r.wrong(": unknown member %q%s", member, didYouMean(member, partnerMembers))
		}
	}
}

// text is a member that is text, or sealed.
func (r *partnerReader) text(member string, raw json.RawMessage) (text string) {
	if text, ok := r.opened(member, raw); ok {
		return text
	}
	if json.Unmarshal(raw, &text) != nil {
		r.wrong(".%s has the wrong type", member)
	}
	return text
}

// opened is a sealed value; ok is false for anything else. Without a key that
// opens it, it is empty and a mistake.
func (r *partnerReader) opened(member string, raw json.RawMessage) (text string, ok bool) {
	var box map[string]json.RawMessage
	var sealed string
	if json.Unmarshal(raw, &box) != nil || len(box) != 1 || json.Unmarshal(box["sealed"], &sealed) != nil {
		return "", false
	}
	r.into.secret = append(r.into.secret, member)
	value, first, err := r.keys.OpenSetting(r.connector, member, sealed)
	if err != nil {
		r.wrong(".%s: %v", member, err)
	} else if !first {
		r.all.Aged = append(r.all.Aged, r.connector+" "+member)
	}
	return value.Reveal(), true
}

// UnknownPartners says of partner settings which connectors they name that
// there are none of: settings that nobody will ever use.
func UnknownPartners(settings map[string]PartnerSettings, c *Catalog) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if _, ok := c.Get(name); !ok {
			all = append(all, fmt.Sprintf("the partner settings name connector %q, which does not exist%s", name, didYouMean(name, c.Names())))
		}
	}
	return all
}
