package credentials

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/redis/go-redis/v9"
)

// Who enqueues a step has no sealing key, and yet some of what it gives is
// secret: the parameters that a connector marks sensitive. So workers offer a
// public key, and say which parameters those are; the client seals to it (HPKE,
// RFC 9180) and only workers open.
//
//	stepworker:step_key     hash: public, and sealed, the private key under the
//	                        sealing keys. It is of its own, so that those can be
//	                        replaced while steps wait
//	stepworker:step_sealed  set: "METHOD PARAMETER", of all connectors; one that
//	                        is no longer sensitive stays, which does no harm.
//	                        While there is none, all parameters are sealed: the
//	                        key is there from the first put of a credential on
const (
	stepKeyKey     = "stepworker:step_key"
	stepSealedKey  = "stepworker:step_sealed"
	stepKeyPurpose = "step key"

	offeredMark = "-" // in the set: a worker has said what is sensitive, perhaps nothing
)

// sealedMember is the only member of the object that stands in a sealed value's place.
const sealedMember = "stepworker:sealed"

var stepKEM, stepKDF, stepAEAD = hpke.DHKEM(ecdh.X25519()), hpke.HKDFSHA256(), hpke.AES256GCM()

// SensitiveParameters are a connector's, or several connectors', by method.
type SensitiveParameters map[string][]string

// OfferStepSealing lets clients seal the parameters of steps that are
// sensitive. Called again and again, it offers anew what Redis has lost.
func (s *Store) OfferStepSealing(ctx context.Context, sensitive SensitiveParameters) error {
	if _, err := s.stepKey(ctx); err != nil {
		return err
	}
	n, err := s.rdb.SCard(ctx, stepSealedKey).Result()
	if err != nil {
		return err
	}
	s.mu.Lock()
	whole := s.stepOffered > 0 && n >= s.stepOffered // it only grows
	if whole {
		s.stepOffered = n
	}
	s.mu.Unlock()
	if whole {
		return nil
	}
	members := []any{offeredMark}
	for method, names := range sensitive {
		for _, name := range names {
			members = append(members, method+" "+name)
		}
	}
	for few := range slices.Chunk(members, 1000) {
		if err := s.rdb.SAdd(ctx, stepSealedKey, few...).Err(); err != nil {
			return err
		}
	}
	if n, err = s.rdb.SCard(ctx, stepSealedKey).Result(); err != nil {
		return err
	}
	s.mu.Lock()
	s.stepOffered = n
	s.mu.Unlock()
	return nil
}

// ensureStepKey makes the key before the first worker does. Whether it opens is
// the workers' concern.
func (s *Store) ensureStepKey(ctx context.Context) error {
	s.mu.Lock()
	known := s.stepOpener.key != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	_, err := s.stepKey(ctx)
	var keys *StepKeyError
	var newer *NewerError
	if errors.As(err, &keys) || errors.As(err, &newer) {
		return nil
	}
	return err
}

// stepKey is the private key, as Redis has it now; who first needs one makes it.
func (s *Store) stepKey(ctx context.Context) (hpke.PrivateKey, error) {
	if s.keys == nil {
		return nil, errNoKeys
	}
	sealed, err := s.rdb.HGet(ctx, stepKeyKey, "sealed").Result()
	if errors.Is(err, redis.Nil) {
		sealed, err = s.newStepKey(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := s.stepOpener
	s.mu.Unlock()
	if known.sealed == sealed {
		return known.key, nil
	}
	raw, ok := s.keys.open(stepKeyPurpose, []byte(sealed))
	if !ok && newerSeal([]byte(sealed)) {
		return nil, &NewerError{What: stepKeyKey}
	} else if !ok {
		return nil, &StepKeyError{}
	}
	key, err := stepKEM.NewPrivateKey(raw)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.stepOpener = stepOpener{sealed: sealed, key: key}
	s.stepOffered = 0 // perhaps to a Redis that was emptied since
	s.mu.Unlock()
	return key, nil
}

// StepKeyError says that no key of this process opens the one that opens what
// steps give.
type StepKeyError struct{}

func (*StepKeyError) Error() string {
	return "the keys do not open " + stepKeyKey + ", which opens the sensitive parameters of steps: add the key that sealed it; if that is lost, delete " + stepKeyKey
}

// stepOpener is a private key, and the record that it was opened from.
type stepOpener struct {
	sealed string
	key    hpke.PrivateKey
}

func (s *Store) newStepKey(ctx context.Context) (sealed string, err error) {
	key, err := stepKEM.GenerateKey()
	if err != nil {
		return "", err
	}
	raw, err := key.Bytes()
	if err != nil {
		return "", err
	}
	public := base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
	return stepKeyScript.Run(ctx, s.rdb, []string{stepKeyKey}, public, s.keys.seal(stepKeyPurpose, raw)).Text()
}

// stepKeyScript stores a pair of keys unless there is one.
//
//	KEYS  hash
//	ARGV  public, sealed private
//	returns the sealed private key that stands there now
var stepKeyScript = redis.NewScript(`
local sealed = redis.call('HGET', KEYS[1], 'sealed')
if sealed then return sealed end
redis.call('HSET', KEYS[1], 'public', ARGV[1], 'sealed', ARGV[2])
return ARGV[2]
`)

// StepSealer seals what is sensitive of steps. The zero value seals nothing.
type StepSealer struct {
	key       hpke.PublicKey
	sensitive map[string]bool // "METHOD PARAMETER"
	all       bool            // no worker has said yet what is sensitive
}

// StepSealer returns what workers offer; it needs no key. As long as no worker
// has run on this Redis it seals everything, or nothing where no credential was
// put either.
func (s *Store) StepSealer(ctx context.Context) (*StepSealer, error) {
	pipe := s.rdb.Pipeline()
	public, members := pipe.HGet(ctx, stepKeyKey, "public"), pipe.SMembers(ctx, stepSealedKey)
	if err := exec(ctx, pipe); err != nil {
		return nil, err
	}
	z := &StepSealer{sensitive: map[string]bool{}}
	if public.Val() == "" {
		return z, nil
	}
	raw, err := base64.StdEncoding.DecodeString(public.Val())
	if err == nil {
		z.key, err = stepKEM.NewPublicKey(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: the public key cannot be read: %w", stepKeyKey, err)
	}
	z.all = len(members.Val()) == 0
	for _, m := range members.Val() {
		z.sensitive[m] = true
	}
	return z, nil
}

// Seal returns the parameters of an execution with the sensitive ones sealed,
// each to its execution and name: moved elsewhere it does not open. What was
// given is left as it is; anything says whether something was sealed.
func (z *StepSealer) Seal(execution, method string, given map[string]json.RawMessage) (out map[string]json.RawMessage, anything bool, err error) {
	for name, value := range given {
		if !z.all && !z.sensitive[method+" "+name] || !json.Valid(value) { // what is no JSON is refused by who writes the payload
			continue
		}
		sealed, err := hpke.Seal(z.key, stepKDF, stepAEAD, stepInfo(execution, name), value)
		if err != nil {
			return nil, false, err
		}
		if out == nil {
			out = maps.Clone(given)
		}
		out[name], err = json.Marshal(map[string][]byte{sealedMember: sealed})
		if err != nil {
			return nil, false, err
		}
	}
	if out == nil {
		return given, false, nil
	}
	return out, true, nil
}

// IsSealed says that a value, as encoding/json decodes it, is a sealed one.
func IsSealed(v any) bool {
	_, ok := sealedText(v)
	return ok
}

func sealedText(v any) (text string, ok bool) {
	if m, _ := v.(map[string]any); len(m) == 1 {
		text, ok = m[sealedMember].(string)
	}
	return text, ok
}

// OpenStep opens those of an execution's parameters that were sealed, in place.
// A *SealError names one that does not open; a *StepKeyError says that the keys
// are at fault, and not the parameters, a *NewerError that this build is.
func (s *Store) OpenStep(ctx context.Context, execution string, parameters map[string]json.RawMessage) error {
	for name, value := range parameters {
		if !bytes.Contains(value, []byte(sealedMember)) { // as good as all
			continue
		}
		var v any
		if json.Unmarshal(value, &v) != nil {
			continue
		}
		sealed, ok := sealedText(v)
		if !ok { // a flow's own text
			continue
		}
		plain, err := s.openParameter(ctx, sealed, stepInfo(execution, name))
		if err != nil {
			return err
		}
		if plain == nil {
			return &SealError{What: fmt.Sprintf("parameter %q", name)}
		}
		parameters[name] = plain
	}
	return nil
}

// openParameter tries the key that is known, then the one that Redis has: it
// is another one after Redis was emptied. It returns nil if neither opens.
func (s *Store) openParameter(ctx context.Context, text string, info []byte) ([]byte, error) {
	sealed, _ := base64.StdEncoding.DecodeString(text) // what is none does not open
	s.mu.Lock()
	key := s.stepOpener.key
	s.mu.Unlock()
	if key != nil {
		if plain, err := hpke.Open(key, stepKDF, stepAEAD, info, sealed); err == nil {
			return plain, nil
		}
	}
	key, err := s.stepKey(ctx)
	if err != nil {
		return nil, err
	}
	plain, _ := hpke.Open(key, stepKDF, stepAEAD, info, sealed)
	return plain, nil
}

func stepInfo(execution, parameter string) []byte { return []byte(execution + "\x00" + parameter) }
