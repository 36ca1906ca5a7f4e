package credentials

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Keyring seals with its first key and opens with all: AES-256-GCM, a random
// nonce, and what the record is (purpose, id, connector, version) as
// additional data, so that one moved elsewhere or set back does not open.
type Keyring struct{ keys []sealKey }

type sealKey struct {
	id   [4]byte // first bytes of the key's SHA-256, to find it again
	aead cipher.AEAD
}

// KeyError says that these keys are not the ones that sealed this Redis.
type KeyError struct{}

func (*KeyError) Error() string {
	return "the keys do not open the check value that was sealed at first start: use the keys of the other workers"
}

// SealError says that no key opens a record.
type SealError struct{ What string }

func (e *SealError) Error() string { return "no key opens " + e.What }

// NewerError says that something stored has a form that this build does not
// know. A newer build wrote it and reads it: here it tells nothing, least of all
// that a key is missing, and is to be left as it is.
type NewerError struct{ What string }

func (e *NewerError) Error() string {
	return e.What + " was stored by a newer build, in a form that this one cannot read: upgrade this worker"
}

// A sealed record begins with a byte that is its format: how it is sealed, and
// how that is written which stands in it. A build that changes either for one
// kind of record writes those, and no others, with the next number, and reads
// both. What begins with a byte that can never be a format is no sealed record.
const (
	sealFormat     = 1
	newestPossible = 0x1f // text and JSON begin above it
)

func newerSeal(sealed []byte) bool {
	return len(sealed) > 0 && sealed[0] > sealFormat && sealed[0] <= newestPossible
}

// unopened is what it means that no key opens a record.
func unopened(what string, sealed []byte) error {
	if newerSeal(sealed) {
		return &NewerError{What: what}
	}
	return &SealError{What: what}
}

// NewKey returns a fresh sealing key: 32 random bytes in base64.
func NewKey() string {
	var k [32]byte
	_, _ = rand.Read(k[:]) // never fails, crypto/rand's documentation says
	return base64.StdEncoding.EncodeToString(k[:])
}

// ParseKeys reads comma- or line-separated base64 keys of 32 bytes.
func ParseKeys(text string) (*Keyring, error) {
	r := &Keyring{}
	for i, part := range strings.FieldsFunc(text, func(c rune) bool { return c == ',' || c == '\n' || c == '\r' }) {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(part)
		if err != nil || len(raw) != 32 {
			return nil, fmt.Errorf("key %d is not 32 bytes in base64; `worker key new` makes one", i+1)
		}
		block, err := aes.NewCipher(raw)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		k := sealKey{aead: aead}
		sum := sha256.Sum256(raw)
		copy(k.id[:], sum[:])
		r.keys = append(r.keys, k)
	}
	if len(r.keys) == 0 {
		return nil, errors.New("there is no key; `worker key new` makes one")
	}
	return r, nil
}

func (r *Keyring) seal(purpose string, plain []byte) []byte {
	k := r.keys[0]
	out := make([]byte, 0, 1+4+k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	out = append(append(out, sealFormat), k.id[:]...)
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce)
	out = append(out, nonce...)
	return k.aead.Seal(out, nonce, plain, []byte(purpose))
}

func (r *Keyring) open(purpose string, sealed []byte) ([]byte, bool) {
	plain, key := r.openedBy(purpose, sealed)
	return plain, key >= 0
}

// openedBy opens, and says which key did; -1: none.
func (r *Keyring) openedBy(purpose string, sealed []byte) (plain []byte, key int) {
	for i, k := range r.keys {
		n := k.aead.NonceSize()
		if len(sealed) < 5+n || sealed[0] != sealFormat || string(sealed[1:5]) != string(k.id[:]) {
			continue
		}
		if plain, err := k.aead.Open(nil, sealed[5:5+n], sealed[5+n:], []byte(purpose)); err == nil {
			return plain, i
		}
	}
	return nil, -1
}

// Fingerprints name the keys in their order: the first bytes of the SHA-256 of
// each, as every record carries them. A key that is given twice is named once.
func (r *Keyring) Fingerprints() []string {
	var all []string
	for _, k := range r.keys {
		if f := hex.EncodeToString(k.id[:]); !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

// sealedBy is the fingerprint of the key that sealed a record; "" if it is no
// sealed record.
func sealedBy(sealed []byte) string {
	if len(sealed) < 5 || sealed[0] != sealFormat {
		return ""
	}
	return hex.EncodeToString(sealed[1:5])
}
