package credentials

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
)

// A partner setting stands sealed in a file beside connectors, not in Redis: a
// rotation of keys does not reach it, so who opens one is told of its key.

func settingPurpose(connector, member string) string {
	return "partner setting\x00" + connector + "\x00" + member
}

// SealSetting seals a partner setting with the first key, for one member of
// one connector alone.
func (r *Keyring) SealSetting(connector, member string, value Secret) string {
	return base64.StdEncoding.EncodeToString(r.seal(settingPurpose(connector, member), []byte(value.text)))
}

// OpenSetting opens what SealSetting sealed for that place. first says that it
// was sealed with the first key. A nil keyring opens nothing.
func (r *Keyring) OpenSetting(connector, member, sealed string) (value Secret, first bool, err error) {
	raw, err := base64.StdEncoding.DecodeString(sealed)
	by := sealedBy(raw)
	switch {
	case err != nil || by == "":
		return Secret{}, false, errors.New("it is no sealed value; `worker key seal` makes one")
	case r == nil:
		return Secret{}, false, errors.New("it is sealed, and there is no key to open it: give STEPWORKER_KEYS or --keys-file")
	}
	plain, key := r.openedBy(settingPurpose(connector, member), raw)
	switch {
	case key >= 0:
		return Secret{string(plain)}, key == 0, nil
	case slices.Contains(r.Fingerprints(), by):
		return Secret{}, false, errors.New("it was sealed for another connector or member, or was changed; seal it again with `worker key seal`")
	}
	return Secret{}, false, fmt.Errorf("no key opens it: it was sealed with %s, which is none of the keys", by)
}
