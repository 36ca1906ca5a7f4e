package upgrade

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// Fixture is a Redis as a build left it.
type Fixture struct {
	Build      string   `json:"build"`       // what its `worker version` says
	RecordedAt int64    `json:"recorded_at"` // ms
	SealingKey string   `json:"sealing_key"` // made for the fixture: it seals nothing else
	Connectors []string `json:"connectors"`  // those that the build knows, of testdata/connectors
	// Executions as the build told of them: their results, or where they stood.
	Executions map[string]json.RawMessage `json:"executions"`
	// Seen is what the provider was sent, by kind and name.
	Seen map[string]string `json:"seen"`
	Keys []Key             `json:"keys"`
}

// Key is a key of Redis with its value.
type Key struct {
	Key  string `json:"key"`
	Type string `json:"type"`
	TTL  int64  `json:"ttl,omitempty"` // ms
	// Of a string one value, of a list or set each, of a hash fields and their
	// values, of a sorted set members and their scores by turns.
	Values []Text `json:"values"`
}

// Text is any bytes; in JSON those that no text has stand in base64.
type Text string

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) {
	if readable(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString([]byte(t))})
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = Text(s)
		return nil
	}
	var binary struct{ Base64 []byte }
	err := json.Unmarshal(b, &binary)
	*t = Text(binary.Base64)
	return err
}

func readable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' && c != '\n' })
}

// Dump reads everything but the heartbeats of asynq's servers.
func Dump(ctx context.Context, rdb redis.UniversalClient) ([]Key, error) {
	names, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []Key
	for _, name := range names {
		if strings.HasPrefix(name, "asynq:servers") || strings.HasPrefix(name, "asynq:workers") {
			continue
		}
		k := Key{Key: name}
		if k.Type, err = rdb.Type(ctx, name).Result(); err != nil {
			return nil, err
		}
		ttl, err := rdb.PTTL(ctx, name).Result()
		if err != nil {
			return nil, err
		}
		k.TTL = max(ttl.Milliseconds(), 0)
		values, err := read(ctx, rdb, k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, v := range values {
			k.Values = append(k.Values, Text(v))
		}
		all = append(all, k)
	}
	return all, nil
}

func read(ctx context.Context, rdb redis.UniversalClient, k Key) (values []string, err error) {
	switch k.Type {
	case "string":
		v, err := rdb.Get(ctx, k.Key).Result()
		return []string{v}, err
	case "list":
		return rdb.LRange(ctx, k.Key, 0, -1).Result()
	case "set":
		values, err = rdb.SMembers(ctx, k.Key).Result()
		slices.Sort(values)
		return values, err
	case "hash":
		h, err := rdb.HGetAll(ctx, k.Key).Result()
		for f, v := range h {
			values = append(values, f+"\x00"+v)
		}
		slices.Sort(values)
		var flat []string
		for _, pair := range values {
			f, v, _ := strings.Cut(pair, "\x00")
			if h[f] != v { // a field with a zero byte in it: scripts' data
				for f, v := range h {
					if pair == f+"\x00"+v {
						flat = append(flat, f, v)
					}
				}
				continue
			}
			flat = append(flat, f, v)
		}
		return flat, err
	case "zset":
		z, err := rdb.ZRangeWithScores(ctx, k.Key, 0, -1).Result()
		for _, m := range z {
			values = append(values, m.Member.(string), strconv.FormatFloat(m.Score, 'f', -1, 64))
		}
		return values, err
	}
	return nil, errors.New("unknown type " + k.Type)
}

// Ago is how long ago what Load has loaded seems to have been recorded: what a
// build left for the next seconds is over, what it left for hours is not.
const Ago = 10 * time.Minute

// Load writes a fixture into an empty Redis. All times in it are moved, so that
// it never ages.
func (f *Fixture) Load(ctx context.Context, rdb redis.UniversalClient) error {
	m := mover{at: f.RecordedAt, by: time.Now().Add(-Ago).UnixMilli() - f.RecordedAt}
	pipe := rdb.Pipeline()
	for _, k := range f.Keys {
		ttl := time.Duration(0)
		if k.TTL > 0 {
			if ttl = time.Duration(k.TTL)*time.Millisecond - Ago; ttl <= 0 {
				continue
			}
		}
		values := make([]any, len(k.Values))
		for i, v := range k.Values {
			values[i] = m.text(k.Key, string(v))
		}
		switch k.Type {
		case "string":
			pipe.Set(ctx, k.Key, values[0], 0)
		case "list":
			pipe.RPush(ctx, k.Key, values...)
		case "set":
			pipe.SAdd(ctx, k.Key, values...)
		case "hash":
			pipe.HSet(ctx, k.Key, values...)
		case "zset":
			for i := 0; i < len(values); i += 2 {
				score, err := m.score(string(k.Values[i+1]))
				if err != nil {
					return err
				}
				pipe.ZAdd(ctx, k.Key, redis.Z{Member: values[i], Score: score})
			}
		default:
			return fmt.Errorf("%s: unknown type %s", k.Key, k.Type)
		}
		if ttl > 0 {
			pipe.PExpire(ctx, k.Key, ttl)
		}
	}
	_, err := pipe.Exec(ctx)
	return err
}

// mover moves times that lie within some months of the recording.
type mover struct{ at, by int64 }

const movable = 100 * 24 * time.Hour

var millis = regexp.MustCompile(`\b\d{13}\b`)

// text moves the milliseconds in a text of ours; asynq's messages are left.
func (m mover) text(key, v string) string {
	if strings.HasPrefix(key, "asynq:") || !readable(v) {
		return v
	}
	return millis.ReplaceAllStringFunc(v, func(digits string) string {
		n, _ := strconv.ParseInt(digits, 10, 64)
		if m.near(n) {
			n += m.by
		}
		return strconv.FormatInt(n, 10)
	})
}

// score moves a score: milliseconds, or asynq's seconds.
func (m mover) score(text string) (float64, error) {
	score, err := strconv.ParseFloat(text, 64)
	switch {
	case m.near(int64(score)):
		return score + float64(m.by), err
	case m.near(int64(score) * 1000):
		return score + float64(m.by/1000), err
	}
	return score, err
}

func (m mover) near(ms int64) bool {
	d := ms - m.at
	return max(d, -d) < movable.Milliseconds()
}
