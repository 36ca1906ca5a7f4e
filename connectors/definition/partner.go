package definition

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// PartnerSettings are what an operator supplies for one connector.
type PartnerSettings struct {
	ClientID     string
	ClientSecret string
	PrivateKey   credentials.Secret
	Properties   map[string]json.RawMessage

	Sealed []string // members that were sealed, and so are masked whatever the connector says of them
}

var partnerMembers = []string{"client_id", "client_secret", "private_key", "properties"}

// PartnerProperty begins the name of a property's place in the settings.
const PartnerProperty = "properties."

// CheckPartnerMember says whether a sealed value can stand at a member of a
// connector's settings: client_id, client_secret, private_key, properties.NAME.
func CheckPartnerMember(member string) error {
	if name, ok := strings.CutPrefix(member, PartnerProperty); ok && name != "" || slices.Contains(partnerMembers[:3], member) {
		return nil
	}
	return fmt.Errorf("%q is none of client_id, client_secret, private_key and properties.NAME%s", member, strictjson.DidYouMean(member, partnerMembers[:3]))
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
	r := &partnerReader{all: &Partners{Settings: map[string]PartnerSettings{}}, keys: keys, text: raw}
	var whole json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(raw, &whole); errors.As(err, &syntax) {
		r.all.Mistakes = []string{"malformed JSON at " + r.place(max(int(syntax.Offset)-1, 0))}
		return r.all
	}
	file, ok := r.object(settingValue{raw, 0}, "connector")
	if !ok {
		r.all.Mistakes = []string{`an object of objects is needed: {"acme": {"client_id": "…", "client_secret": "…", "properties": {}}}`}
		return r.all
	}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		r.connector, r.into = name, PartnerSettings{}
		r.read(file[name])
		r.all.Settings[name] = r.into
	}
	return r.all
}

// partnerReader reads the settings of one connector after the other.
type partnerReader struct {
	all       *Partners
	keys      *credentials.Keyring
	text      []byte // of the file
	connector string
	into      PartnerSettings
}

// settingValue is a value, and where in the file it begins.
type settingValue struct {
	raw json.RawMessage
	at  int
}

func (r *partnerReader) place(at int) string {
	head := r.text[:min(at, len(r.text))]
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(head, []byte("\n")), len(head)-bytes.LastIndexByte(head, '\n'))
}

func (r *partnerReader) wrong(format string, args ...any) {
	r.all.Mistakes = append(r.all.Mistakes, r.connector+fmt.Sprintf(format, args...))
}

// object are an object's members; what begins the text about one that is given
// twice: the later would win, and who reads the file sees the first.
func (r *partnerReader) object(v settingValue, what string) (members map[string]settingValue, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(v.raw))
	if token, err := dec.Token(); err != nil || token != json.Delim('{') {
		return nil, false
	}
	members = map[string]settingValue{}
	for dec.More() {
		before := int(dec.InputOffset())
		token, _ := dec.Token()
		name, _ := token.(string)
		var member json.RawMessage
		if dec.Decode(&member) != nil {
			return nil, false
		}
		if _, twice := members[name]; twice {
			at := v.at + before + bytes.IndexByte(v.raw[before:], '"')
			r.wrong("%s %q is given twice, again at %s", what, name, r.place(at))
		}
		members[name] = settingValue{member, v.at + int(dec.InputOffset()) - len(member)}
	}
	return members, true
}

func (r *partnerReader) read(v settingValue) {
	members, ok := r.object(v, ": member")
	if !ok {
		r.wrong(": an object is needed")
	}
	for _, member := range slices.Sorted(maps.Keys(members)) {
		v := members[member]
		switch member {
		case "client_id":
			r.into.ClientID = r.textOf(member, v)
		case "client_secret":
			r.into.ClientSecret = r.textOf(member, v)
		case "private_key":
			r.into.PrivateKey = credentials.NewSecret(r.textOf(member, v))
			if r.into.PrivateKey.Empty() {
				continue
			}
			if _, err := credentials.ParsePrivateKey(r.into.PrivateKey); err != nil {
				r.wrong(".private_key: %v", err)
			}
		case "properties":
			properties, ok := r.object(v, ".properties: member")
			if !ok && string(v.raw) != "null" {
				r.wrong(".properties has the wrong type")
			}
			r.into.Properties = map[string]json.RawMessage{}
			for _, name := range slices.Sorted(maps.Keys(properties)) {
				r.into.Properties[name] = properties[name].raw
				if text, ok := r.opened(PartnerProperty+name, properties[name]); ok {
					r.into.Properties[name] = jsontree.Quote(text)
				}
			}
		default:
			r.wrong(": unknown member %q%s", member, strictjson.DidYouMean(member, partnerMembers))
		}
	}
}

// textOf is a member that is text, or sealed.
func (r *partnerReader) textOf(member string, v settingValue) (text string) {
	if text, ok := r.opened(member, v); ok {
		return text
	}
	if json.Unmarshal(v.raw, &text) != nil {
		r.wrong(".%s has the wrong type", member)
	}
	return text
}

// opened is a sealed value; ok is false for anything else. Without a key that
// opens it, it is empty and a mistake, and so is what is sealed by its name alone.
func (r *partnerReader) opened(member string, v settingValue) (text string, ok bool) {
	box, _ := r.object(v, "."+member+": member")
	inside, ok := box["sealed"]
	if !ok {
		return "", false
	}
	if len(box) > 1 || inside.raw[0] != '"' {
		r.wrong(".%s: a sealed value is {\"sealed\": \"…\"}, a text and nothing beside it; `worker key seal` makes one", member)
		return "", true
	}
	r.into.Sealed = append(r.into.Sealed, member)
	value, first, err := r.keys.OpenSetting(r.connector, member, jsontree.TextIn(inside.raw))
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
			all = append(all, fmt.Sprintf("the partner settings name connector %q, which does not exist%s", name, strictjson.DidYouMean(name, c.Names())))
		}
	}
	return all
}
