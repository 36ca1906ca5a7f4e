package credentials

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/killpoint"
)

// sealedPlace is one kind of sealed record: which keys of Redis hold it, where
// in them it stands, and what its seal is bound to.
type sealedPlace struct {
	kind string
	key  *regexp.Regexp
	// field of a hash; "": the key is a string; every: each field of the hash,
	// whose value ends with the record.
	field string
	// beside are fields of the hash that the purpose is made of.
	beside  []string
	purpose func(key, beside []string, field string) string
}

const every = "*"

// sealedPlaces are all places of sealed records. What is sealed elsewhere is
// not sealed again by a rotation, and lost when its key goes.
//
// The check value comes first: a worker that has only an old key sees from
// then on that its keys are wrong, instead of taking the credentials for
// misconfigured that it cannot open any more.
var sealedPlaces = []sealedPlace{
	{"check value", regexp.MustCompile(`^stepworker:check$`), "", nil, func([]string, []string, string) string { return checkPurpose }},
	{"key that names stored data", regexp.MustCompile(`^stepworker:data_key$`), "", nil, func([]string, []string, string) string { return dataKeyPurpose }},
	{"key that opens what steps give", regexp.MustCompile(`^stepworker:step_key$`), "sealed", nil, func([]string, []string, string) string { return stepKeyPurpose }},
	{"credentials", regexp.MustCompile(`^stepworker:cred:\{([^}]*)\}$`), "sealed", []string{"connector", "v"},
		func(key, beside []string, _ string) string { return sealPurpose(key[1], beside[0], num(beside[1])) }},
	{"answers kept of failed refreshes", regexp.MustCompile(`^stepworker:cred:\{([^}]*)\}$`), "answer", []string{"connector", "v"},
		func(key, beside []string, _ string) string {
			return answerPurpose(&Credential{ID: key[1], Connector: beside[0], Version: num(beside[1])})
		}},
	{"action_data of waiting executions", regexp.MustCompile(`^stepworker:x:\{([^}]*)\}$`), "ad", nil,
		func(key, _ []string, _ string) string { return ActionDataPurpose(key[1]) }},
	{"pages of calls under way", regexp.MustCompile(`^stepworker:pages:\{([^}]*)\}$`), every, nil,
		func(key, _ []string, field string) string { return PagesPurpose(key[1], field) }},
	{"keys and values that scripts stored", regexp.MustCompile(`(?s)^stepworker:data:\{([^}]*)\}:(keys|values)(?::(.*))?$`), every, nil,
		func(key, _ []string, field string) string {
			return (&scriptData{id: key[1], cycle: key[3]}).purpose(key[2], field)
		}},
}

// ActionDataPurpose binds an execution's action_data to it.
func ActionDataPurpose(execution string) string { return "action_data:" + execution }

// PagesPurpose binds a page of an execution's call, or the bookmark behind them,
// to it and to its place.
func PagesPurpose(execution, field string) string { return "pages:" + execution + ":" + field }

const (
	rotatePage = 200 // records read, and written, at once
	// rotatePasses is how often everything is gone through: what others seal
	// meanwhile is found by the next pass.
	rotatePasses = 10
	// UnopenedMax is how many keys of Redis are named in which no key opens a record.
	UnopenedMax = 100
)

// RotateOptions say how to rotate. The zero value rotates.
type RotateOptions struct {
	// DryRun only looks which keys the records use.
	DryRun bool
	// Looked, if set, is told how many more records were looked at.
	Looked func(n int)
}

// Rotation tells which keys the records use, as the last pass found it.
type Rotation struct {
	Kinds    []RotatedKind // in the order of sealedPlaces, without those of which there is no record
	Unopened []Unopened    // the keys of records that no key opens, at most UnopenedMax
	// Sealing are the fingerprints of other keys than the first with which
	// workers seal that were alive a moment ago.
	Sealing []string
	// Unsteady says that records sealed with another key went on to appear.
	Unsteady bool
}

// RotatedKind counts the records of one kind. Where Redis enlarges its tables
// meanwhile, a few may be counted twice.
type RotatedKind struct {
	Kind     string
	Records  int
	Resealed int            // in all passes
	By       map[string]int // by the fingerprint of the key that opens them
	Unopened int
	Newer    int // of a newer build's, which this one cannot read
}

// Unopened is where records stand that no key opens: their key is lost, or they were
// moved, set back or damaged.
type Unopened struct {
	Kind, Key   string
	Fingerprint string // of the key that they say they were sealed with
	Newer       bool   // it is not the keys: a newer build sealed them, which this one cannot read
}

// InUse are the fingerprints of keys beside the first that records, or workers
// that seal, still need.
func (r *Rotation) InUse(first string) []string {
	all := slices.Clone(r.Sealing)
	for _, k := range r.Kinds {
		for f := range k.By {
			all = append(all, f)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(f string) bool { return f == first })
}

// Sealed says that a record opens with this key.
func (r *Rotation) Sealed(fingerprint string) bool {
	return slices.ContainsFunc(r.Kinds, func(k RotatedKind) bool { return k.By[fingerprint] > 0 })
}

// Rotate seals every record again that another key than the first sealed.
// Versions and states stay as they are. Each record is replaced only if it
// still is the one that was read, so whoever writes meanwhile wins; passes go
// on until one has found nothing to do while no worker sealed with another
// key. It may end at any point, and be run again. A *KeyError says that these
// keys are others than those of this Redis, a *NewerError that a newer build sealed it.
func (s *Store) Rotate(ctx context.Context, o RotateOptions) (*Rotation, error) {
	if s.keys == nil {
		return nil, errNoKeys
	}
	sealed, err := s.rdb.Get(ctx, checkKey).Bytes()
	if err == nil {
		err = s.opensCheck(sealed)
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	resealed := map[string]int{}
	for pass := 1; ; pass++ {
		sealing, err := s.sealing(ctx)
		if err != nil {
			return nil, err
		}
		p := &rotation{s: s, o: o, kinds: map[string]*RotatedKind{}}
		if err := p.pass(ctx); err != nil {
			return nil, err
		}
		r := &Rotation{Unopened: p.unopened, Sealing: sealing}
		left := p.moved
		for _, place := range sealedPlaces {
			if k := p.kinds[place.kind]; k != nil {
				resealed[k.Kind] += k.Resealed
				left += k.Resealed
				k.Resealed = resealed[k.Kind]
				r.Kinds = append(r.Kinds, *k)
			}
		}
		switch r.Unsteady = left > 0; {
		case o.DryRun, left == 0 && len(sealing) == 0, pass >= rotatePasses:
			return r, nil
		case left == 0:
			// A worker that was just restarted is thought to live a little longer.
			if sealing, err = s.sealingEnds(ctx); err != nil {
				return nil, err
			} else if len(sealing) > 0 {
				r.Sealing = sealing
				return r, nil
			}
		}
	}
}

// rotation is one pass over everything.
type rotation struct {
	s        *Store
	o        RotateOptions
	kinds    map[string]*RotatedKind
	unopened []Unopened
	moved    int // records that somebody else wrote meanwhile, or that changed servers
}

// record is a sealed record as it was read.
type record struct {
	place      *sealedPlace
	key, field string
	whole      string // as it stands in Redis: what stands before the record in an entry, too
	sealed     string // the record
	purpose    string
}

func (p *rotation) pass(ctx context.Context) error {
	if err := p.keys(ctx, []string{checkKey}); err != nil {
		return err
	}
	before, err := layout(ctx, p.s.rdb)
	if err != nil {
		return err
	}
	all, err := masters(ctx, p.s.rdb)
	if err != nil {
		return err
	}
	for _, master := range all {
		if err := p.server(ctx, master); err != nil {
			return err
		}
	}
	after, err := layout(ctx, p.s.rdb)
	if before != after { // keys may have gone from a server that was still to come to one that was through
		p.moved++
	}
	return err
}

// server goes through the keys of one server.
func (p *rotation) server(ctx context.Context, rdb redis.UniversalClient) error {
	for cursor := uint64(0); ; {
		keys, next, err := rdb.Scan(ctx, cursor, "stepworker:*", rotatePage).Result()
		if err != nil {
			return err
		}
		keys = slices.DeleteFunc(keys, func(k string) bool { return k == checkKey })
		if err := p.keys(ctx, keys); err != nil {
			return err
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// keys goes through the records that some keys of Redis hold.
func (p *rotation) keys(ctx context.Context, keys []string) error {
	type reading struct {
		place *sealedPlace
		match []string
		text  *redis.StringCmd
		hash  *redis.SliceCmd
	}
	var reads []reading
	pipe := p.s.rdb.Pipeline()
	for _, key := range keys {
		for i := range sealedPlaces {
			place := &sealedPlaces[i]
			match := place.key.FindStringSubmatch(key)
			switch {
			case match == nil:
				continue
			case place.field == every:
				if err := p.entries(ctx, place, match); err != nil {
					return err
				}
			case place.field == "":
				reads = append(reads, reading{place: place, match: match, text: pipe.Get(ctx, key)})
			default:
				reads = append(reads, reading{place: place, match: match, hash: pipe.HMGet(ctx, key, append([]string{place.field}, place.beside...)...)})
			}
		}
	}
	if len(reads) == 0 {
		return nil
	}
	if err := exec(ctx, pipe); err != nil {
		return err
	}
	var records []record
	for _, r := range reads {
		rec := record{place: r.place, key: r.match[0], field: r.place.field}
		var beside []string
		if r.text != nil {
			rec.sealed = r.text.Val()
		} else if fields := r.hash.Val(); len(fields) > 0 {
			rec.sealed, _ = fields[0].(string)
			for _, f := range fields[1:] {
				text, _ := f.(string)
				beside = append(beside, text)
			}
		}
		if rec.sealed == "" { // gone, or of this kind without one: a deleted credential, an execution without action_data
			continue
		}
		rec.whole, rec.purpose = rec.sealed, r.place.purpose(r.match, beside, rec.field)
		records = append(records, rec)
	}
	return p.reseal(ctx, records)
}

// entries goes through a hash of entries, page by page.
func (p *rotation) entries(ctx context.Context, place *sealedPlace, match []string) error {
	for cursor := uint64(0); ; {
		page, next, err := p.s.rdb.HScan(ctx, match[0], cursor, "", rotatePage).Result()
		if err != nil {
			return err
		}
		records := make([]record, 0, len(page)/2)
		for pair := range slices.Chunk(page, 2) {
			_, rest, _ := strings.Cut(pair[1], " ") // SEQUENCE LENGTH SEALED
			_, sealed, _ := strings.Cut(rest, " ")
			records = append(records, record{place, match[0], pair[0], pair[1], sealed, place.purpose(match, nil, pair[0])})
		}
		for few := range slices.Chunk(records, rotatePage) { // a small hash comes as a whole
			if err := p.reseal(ctx, few); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// reseal seals those of the records again that another key than the first
// opens, and counts them all.
func (p *rotation) reseal(ctx context.Context, records []record) error {
	ring := p.s.keys
	pipe := p.s.rdb.Pipeline()
	type write struct {
		kind *RotatedKind
		by   string
		done *redis.Cmd
	}
	var writes []write
	for _, r := range records {
		kind := p.kinds[r.place.kind]
		if kind == nil {
			kind = &RotatedKind{Kind: r.place.kind, By: map[string]int{}}
			p.kinds[r.place.kind] = kind
		}
		kind.Records++
		plain, key := ring.openedBy(r.purpose, []byte(r.sealed))
		by := sealedBy([]byte(r.sealed))
		switch {
		case key < 0:
			u := Unopened{r.place.kind, r.key, by, newerSeal([]byte(r.sealed))}
			if u.Newer {
				kind.Newer++
			} else {
				kind.Unopened++
			}
			if len(p.unopened) < UnopenedMax && !slices.Contains(p.unopened, u) { // a hash of many is named once
				p.unopened = append(p.unopened, u)
			}
		case key == 0 || p.o.DryRun:
			kind.By[by]++
		default:
			before := strings.TrimSuffix(r.whole, r.sealed)
			fresh := before + string(ring.seal(r.purpose, plain))
			writes = append(writes, write{kind, by, resealScript.Eval(ctx, pipe, []string{r.key}, r.field, r.whole, fresh)})
		}
	}
	if len(writes) > 0 {
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		for _, w := range writes {
			if done, _ := w.done.Int(); done == 1 {
				w.kind.Resealed++
				w.kind.By[ring.Fingerprints()[0]]++
			} else { // the next pass reads what stands there now
				p.moved++
				w.kind.By[w.by]++
			}
		}
		killpoint.KillPoint("rotated-page")
	}
	if p.o.Looked != nil && len(records) > 0 {
		p.o.Looked(len(records))
	}
	return ctx.Err()
}

// resealScript replaces a record that still is the one that was read. Every
// seal has a nonce of its own, so equal bytes are the same record of the same
// version. What is gone does not come back.
//
//	KEYS  key
//	ARGV  field ('' : the key is a string), as it was, as it shall be
//	returns 1, or 0 if it has changed
var resealScript = redis.NewScript(`
if ARGV[1] == '' then
  if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
  redis.call('SET', KEYS[1], ARGV[3], 'KEEPTTL')
else
  if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 1
`)

// sealingKey tells with which keys workers seal: fingerprints, by when such a
// worker was last alive (ms, by the clock of Redis).
const sealingKey = "stepworker:sealing"

// SealingEvery is how often a worker says with which key it seals. One that
// says nothing more is thought to go on for three times as long.
const SealingEvery = 5 * time.Second

// NoteSealing says that a process seals with this store's first key, and will
// go on to: a rotation is not complete as long as that is another one than its
// own. It lasts a moment only, see SealingEvery.
func (s *Store) NoteSealing(ctx context.Context) error {
	if s.keys == nil {
		return errNoKeys
	}
	return sealingScript.Run(ctx, s.rdb, []string{sealingKey}, s.keys.Fingerprints()[0], s.sealingLasts.Milliseconds()).Err()
}

// sealing are the fingerprints of other keys than the first that workers seal with.
func (s *Store) sealing(ctx context.Context) ([]string, error) {
	all, err := sealingScript.Run(ctx, s.rdb, []string{sealingKey}, "", s.sealingLasts.Milliseconds()).StringSlice()
	if i := slices.Index(all, s.keys.Fingerprints()[0]); i >= 0 {
		all = slices.Delete(all, i, i+1)
	}
	return all, err
}

// sealingEnds waits until no worker seals with another key, at most for as
// long as one that has ended is thought to.
func (s *Store) sealingEnds(ctx context.Context) ([]string, error) {
	for deadline := time.Now().Add(s.sealingLasts + time.Second); ; {
		all, err := s.sealing(ctx)
		if err != nil || len(all) == 0 || time.Now().After(deadline) {
			return all, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// sealingScript notes a fingerprint, and tells which there are.
//
//	KEYS  sorted set
//	ARGV  fingerprint ('' : only tell), how long one lasts (ms)
//	returns fingerprints
var sealingScript = redis.NewScript(luaNow + `
local t = now()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', t - ARGV[2]))
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], string.format('%d', t), ARGV[1]) end
return redis.call('ZRANGE', KEYS[1], 0, -1)
`)
