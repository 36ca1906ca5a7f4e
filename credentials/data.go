package credentials

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"
)

// DataRequest is one call of a storage function by a script.
type DataRequest struct {
	CredentialID string
	CycleID      string // "": what all cycles share
	Op           string // list_values list_keys get set append delete delete_all increment decrement
	Key          string
	Value        string  // set, append
	Amount       float64 // increment, decrement
}

// DataError is a storage function's complaint about what a script asked.
type DataError struct{ Text string }

func (e *DataError) Error() string { return e.Text }

// Limits of one store. Characters are UTF-16 code units, as a script's length
// counts them.
const (
	maxDataItems = 1_000_000
	maxDataKey   = 128
	maxDataValue = 50_000
	maxDataList  = 8 << 20 // bytes of a list's JSON
)

// dataPatience is how long one item may be fought for.
const dataPatience = 10 * time.Second

// ScriptData answers one storage function: a JSON list, text or null. A
// *DataError is the script's fault; ErrNotFound says that the credential is
// gone, and with it its data.
func (s *Store) ScriptData(ctx context.Context, r DataRequest) (json.RawMessage, error) {
	if s.keys == nil {
		return nil, errNoKeys
	}
	d := &scriptData{s: s, id: r.CredentialID, cycle: r.CycleID}
	null := json.RawMessage("null")
	switch r.Op {
	case "list_values":
		return d.list(ctx, "values")
	case "list_keys":
		return d.list(ctx, "keys")
	case "delete_all":
		return null, d.clear(ctx)
	}
	if n := characters(r.Key); n < 1 || n > maxDataKey {
		return nil, &DataError{fmt.Sprintf("a key has 1 to %d characters, not %d", maxDataKey, n)}
	}
	field, err := d.field(ctx, r.Key)
	if err != nil {
		return nil, err
	}
	amount := r.Amount
	switch r.Op {
	case "get":
		_, value, found, err := d.read(ctx, field)
		if err != nil || !found {
			return null, err
		}
		return jsonText(value), nil
	case "set":
		_, err := d.write(ctx, field, r.Key, r.Value, nil)
		return null, err
	case "append":
		_, err := d.update(ctx, field, r.Key, func(old string, _ bool) (string, error) { return old + r.Value, nil })
		return null, err
	case "delete":
		return null, deleteDataScript.Run(ctx, s.rdb, d.keys()[1:], field, d.cycle).Err()
	case "decrement":
		amount = -amount
		fallthrough
	case "increment":
		value, err := d.update(ctx, field, r.Key, func(old string, found bool) (string, error) { return addTo(old, found, amount) })
		if err != nil {
			return nil, err
		}
		return jsonText(value), nil
	}
	return nil, fmt.Errorf("unknown storage operation %q", r.Op)
}

// scriptData is one store: what all cycles of a credential share, or what one
// cycle has.
type scriptData struct {
	s         *Store
	id, cycle string
}

// Keys of one credential's data, all with its hash tag. An entry of the two
// hashes is "SEQUENCE LENGTH SEALED": the order in which keys were created, the
// length of its JSON with a comma, and what is sealed. A field is the key's
// HMAC.
//
//	stepworker:data:{ID}                set of the cycles that have a store, "" for what all share
//	stepworker:data:{ID}:keys[:CYCLE]   hash of keys
//	stepworker:data:{ID}:values[:CYCLE] hash of values
//	stepworker:data:{ID}:size[:CYCLE]   hash: last sequence number, length of all keys, of all values
func dataIndexKey(id string) string { return "stepworker:data:{" + id + "}" }

func (d *scriptData) key(kind string) string {
	k := dataIndexKey(d.id) + ":" + kind
	if d.cycle != "" {
		k += ":" + d.cycle
	}
	return k
}

func (d *scriptData) keys() []string {
	return []string{credKey(d.id), dataIndexKey(d.id), d.key("size"), d.key("keys"), d.key("values")}
}

// dataKeyKey holds the key that names fields, sealed. It is of its own, and not
// a sealing key, so that those can be replaced.
const (
	dataKeyKey     = "stepworker:data_key"
	dataKeyPurpose = "data key"
)

// field is the name of a key's entry: equal keys of different stores have
// different names.
func (d *scriptData) field(ctx context.Context, key string) (string, error) {
	naming, err := d.s.dataKey(ctx)
	if err != nil {
		return "", err
	}
	h := hmac.New(sha256.New, naming)
	for _, part := range []string{d.id, d.cycle, key} { // the lengths tell where each ends
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return string(h.Sum(nil)), nil
}

// dataKey is the naming key; the first who needs it makes it.
func (s *Store) dataKey(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	known := s.naming
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var fresh [32]byte
	_, _ = rand.Read(fresh[:])
	if err := s.rdb.SetNX(ctx, dataKeyKey, s.keys.seal(dataKeyPurpose, fresh[:]), 0).Err(); err != nil {
		return nil, err
	}
	sealed, err := s.rdb.Get(ctx, dataKeyKey).Bytes()
	if err != nil {
		return nil, err
	}
	plain, ok := s.keys.open(dataKeyPurpose, sealed)
	if !ok {
		return nil, unopened("the key that names stored data", sealed)
	}
	s.mu.Lock()
	s.naming = plain
	s.mu.Unlock()
	return plain, nil
}

// purpose binds what is sealed to its place.
func (d *scriptData) purpose(kind, field string) string {
	return "data\x00" + d.id + "\x00" + d.cycle + "\x00" + kind + "\x00" + field
}

// open opens an entry of one of the two hashes.
func (d *scriptData) open(kind, field, entry string) (seq int64, text string, err error) {
	first, rest, _ := strings.Cut(entry, " ")
	_, sealed, _ := strings.Cut(rest, " ")
	plain, ok := d.s.keys.open(d.purpose(kind, field), []byte(sealed))
	if !ok {
		return 0, "", unopened(fmt.Sprintf("an item of the data stored with credential %q", d.id), []byte(sealed))
	}
	return num(first), string(plain), nil
}

// read returns an entry and its value.
func (d *scriptData) read(ctx context.Context, field string) (entry, value string, found bool, err error) {
	entry, err = d.s.rdb.HGet(ctx, d.key("values"), field).Result()
	if errors.Is(err, redis.Nil) {
		return "", "", false, nil
	} else if err != nil {
		return "", "", false, err
	}
	_, value, err = d.open("values", field, entry)
	return entry, value, true, err
}

// write stores an item; was, if given, is the entry that must still be there.
func (d *scriptData) write(ctx context.Context, field, key, value string, was *string) (done bool, err error) {
	if n := characters(value); n > maxDataValue {
		return false, &DataError{fmt.Sprintf("a value has at most %d characters, not %d", maxDataValue, n)}
	}
	compare, entry := 0, ""
	if was != nil {
		compare, entry = 1, *was
	}
	out, err := writeDataScript.Run(ctx, d.s.rdb, d.keys(), field, compare, entry, d.cycle,
		d.s.keys.seal(d.purpose("keys", field), []byte(key)), len(jsonText(key))+1,
		d.s.keys.seal(d.purpose("values", field), []byte(value)), len(jsonText(value))+1, maxDataItems).Text()
	switch {
	case err != nil:
		return false, err
	case out == "gone":
		return false, ErrNotFound
	case out == "full":
		return false, &DataError{fmt.Sprintf("the store holds %d items, and takes no more", maxDataItems)}
	}
	return out == "done", nil
}

var errMoved = &DataError{"the item is written by too many at once"}

// update reads, changes and writes an item, unless somebody else has written
// it meanwhile: then again.
func (d *scriptData) update(ctx context.Context, field, key string, change func(old string, found bool) (string, error)) (string, error) {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval = 2*time.Millisecond, 200*time.Millisecond
	return backoff.Retry(ctx, func() (string, error) {
		entry, old, found, err := d.read(ctx, field)
		if err != nil {
			return "", backoff.Permanent(err)
		}
		value, err := change(old, found)
		if err != nil {
			return "", backoff.Permanent(err)
		}
		done, err := d.write(ctx, field, key, value, &entry)
		if err != nil {
			return "", backoff.Permanent(err)
		} else if !done {
			return "", errMoved
		}
		return value, nil
	}, backoff.WithBackOff(waits), backoff.WithMaxElapsedTime(dataPatience))
}

// list returns all keys or all values as they were created.
func (d *scriptData) list(ctx context.Context, kind string) (json.RawMessage, error) {
	length, err := d.s.rdb.HGet(ctx, d.key("size"), kind).Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	tooLong := func() error {
		return &DataError{fmt.Sprintf("all %s of the store together are more than %d MiB, and cannot be listed", kind, maxDataList>>20)}
	}
	if length+1 > maxDataList { // nothing is read
		return nil, tooLong()
	}
	type item struct {
		seq  int64
		text json.RawMessage
	}
	found, length := map[string]item{}, 1
	for cursor := uint64(0); ; {
		page, next, err := d.s.rdb.HScan(ctx, d.key(kind), cursor, "", 1000).Result()
		if err != nil {
			return nil, err
		}
		for pair := range slices.Chunk(page, 2) {
			field := pair[0]
			if _, again := found[field]; again { // a scan may return one twice
				continue
			}
			seq, text, err := d.open(kind, field, pair[1])
			if err != nil {
				return nil, err
			}
			found[field] = item{seq, jsonText(text)}
			if length += int64(len(found[field].text)) + 1; length > maxDataList { // it grows meanwhile
				return nil, tooLong()
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	items := make([]item, 0, len(found))
	for _, i := range found {
		items = append(items, i)
	}
	slices.SortFunc(items, func(a, b item) int { return int(a.seq - b.seq) })
	out := make([]byte, 1, length+1)
	out[0] = '['
	for i, it := range items {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, it.text...)
	}
	return append(out, ']'), nil
}

// clear forgets the store.
func (d *scriptData) clear(ctx context.Context) error {
	_, err := d.s.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Unlink(ctx, d.key("size"), d.key("keys"), d.key("values"))
		p.SRem(ctx, dataIndexKey(d.id), d.cycle)
		return nil
	})
	return err
}

// forgetData forgets all stores of a credential that is gone: without it none
// can come.
func (s *Store) forgetData(ctx context.Context, id string) error {
	for {
		cycles, err := s.rdb.SRandMemberN(ctx, dataIndexKey(id), 1000).Result()
		if err != nil || len(cycles) == 0 {
			return err
		}
		for _, cycle := range cycles {
			if err := (&scriptData{s: s, id: id, cycle: cycle}).clear(ctx); err != nil {
				return err
			}
		}
	}
}

// writeDataScript stores an item at its place.
//
//	KEYS  credential, cycles with a store, size, keys, values
//	ARGV  field, compare (0/1), the entry that must be there ('' : none), cycle,
//	      sealed key, its length, sealed value, its length, most items
//	returns done, moved, full or gone
var writeDataScript = redis.NewScript(`
if redis.call('HEXISTS', KEYS[1], 'v') == 0 or redis.call('HEXISTS', KEYS[1], 'deleted') == 1 then return 'gone' end
local old = redis.call('HGET', KEYS[5], ARGV[1])
if ARGV[2] == '1' and (old or '') ~= ARGV[3] then return 'moved' end
local seq, was = nil, 0
if old then
  seq, was = string.match(old, '^(%d+) (%d+) ')
else
  if redis.call('HLEN', KEYS[5]) >= tonumber(ARGV[9]) then return 'full' end
  seq = string.format('%d', redis.call('HINCRBY', KEYS[3], 'last', 1))
  redis.call('HSET', KEYS[4], ARGV[1], seq .. ' ' .. ARGV[6] .. ' ' .. ARGV[5])
  redis.call('HINCRBY', KEYS[3], 'keys', ARGV[6])
  redis.call('SADD', KEYS[2], ARGV[4])
end
redis.call('HSET', KEYS[5], ARGV[1], seq .. ' ' .. ARGV[8] .. ' ' .. ARGV[7])
redis.call('HINCRBY', KEYS[3], 'values', string.format('%d', tonumber(ARGV[8]) - tonumber(was)))
return 'done'
`)

// deleteDataScript forgets an item, and with the last one the store.
//
//	KEYS  cycles with a store, size, keys, values
//	ARGV  field, cycle
var deleteDataScript = redis.NewScript(`
for i, kind in ipairs({'keys', 'values'}) do
  local old = redis.call('HGET', KEYS[2 + i], ARGV[1])
  if not old then return 0 end
  redis.call('HINCRBY', KEYS[2], kind, '-' .. string.match(old, '^%d+ (%d+) '))
  redis.call('HDEL', KEYS[2 + i], ARGV[1])
end
if redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('SREM', KEYS[1], ARGV[2])
end
return 1
`)

// addTo adds to a number that is kept as text, and writes it as JavaScript does.
func addTo(old string, found bool, amount float64) (string, error) {
	var n float64
	if found {
		text := strings.TrimSpace(old)
		var err error
		// ParseFloat also takes hexadecimal, inf and nan, which are no decimal numbers.
		if n, err = strconv.ParseFloat(text, 64); err != nil || strings.ContainsAny(text, "xXnNiI_") {
			return "", &DataError{"the stored value is no number"}
		}
	}
	n += amount
	if math.IsNaN(n) || math.IsInf(n, 0) {
		return "", &DataError{"the sum is no number that can be stored"}
	}
	if n == 0 {
		n = 0 // not minus zero
	}
	text, err := json.Marshal(n) // writes a number as ECMAScript does
	return string(text), err
}

// characters counts as a script's length does.
func characters(s string) int {
	n := 0
	for _, r := range s {
		n += max(utf16.RuneLen(r), 1)
	}
	return n
}

// jsonText is a text's JSON.
func jsonText(s string) json.RawMessage {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // text cannot fail
	return json.RawMessage(strings.TrimSuffix(b.String(), "\n"))
}
