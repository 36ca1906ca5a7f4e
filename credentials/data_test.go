package credentials

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/internal/redistest"
)

// ask answers as a script sees it; a complaint begins with "!".
func ask(t *testing.T, s *Store, r DataRequest) string {
	t.Helper()
	if r.CredentialID == "" {
		r.CredentialID = "c"
	}
	raw, err := s.ScriptData(ctx, r)
	var complaint *DataError
	if errors.As(err, &complaint) {
		return "!" + complaint.Text
	} else if err != nil {
		t.Fatalf("%s: %v", r.Op, err)
	}
	return string(raw)
}

func TestScriptData_functions(t *testing.T) {
	type row struct {
		r    DataRequest
		want string
	}
	op := func(op, key, value string) DataRequest { return DataRequest{Op: op, Key: key, Value: value} }
	add := func(key string, n float64) DataRequest {
		return DataRequest{Op: "increment", Key: key, Amount: n}
	}
	for name, rows := range map[string][]row{
		"empty": {
			{op("get", "a", ""), `null`}, {op("list_keys", "", ""), `[]`}, {op("list_values", "", ""), `[]`},
			{op("delete", "a", ""), `null`}, {op("delete_all", "", ""), `null`},
		},
		"set and get": {
			{op("set", "a", `"<é>`+"\n😀"), `null`}, {op("get", "a", ""), `"\"<é>\n😀"`}, {op("set", "a", ""), `null`}, {op("get", "a", ""), `""`},
		},
		"append": {
			{op("append", "a", "x"), `null`}, {op("append", "a", "y"), `null`}, {op("get", "a", ""), `"xy"`},
		},
		"lists are in the order of creation": {
			{op("set", "z", "1"), `null`}, {op("append", "b", "2"), `null`}, {add("a", 3), `"3"`}, {op("set", "z", "4"), `null`},
			{op("list_keys", "", ""), `["z","b","a"]`}, {op("list_values", "", ""), `["4","2","3"]`},
			{op("delete", "b", ""), `null`}, {op("set", "b", "5"), `null`},
			{op("list_keys", "", ""), `["z","a","b"]`}, {op("list_values", "", ""), `["4","3","5"]`},
		},
		"delete": {
			{op("set", "a", "1"), `null`}, {op("set", "b", "2"), `null`}, {op("delete", "a", ""), `null`}, {op("get", "a", ""), `null`},
			{op("list_values", "", ""), `["2"]`}, {op("delete", "b", ""), `null`}, {op("list_keys", "", ""), `[]`},
		},
		"delete all": {
			{op("set", "a", "1"), `null`}, {op("set", "b", "2"), `null`}, {op("delete_all", "", ""), `null`},
			{op("get", "a", ""), `null`}, {op("list_keys", "", ""), `[]`}, {op("set", "b", "3"), `null`}, {op("list_values", "", ""), `["3"]`},
		},
		"counters": {
			{add("n", 1), `"1"`}, {add("n", 2.5), `"3.5"`}, {DataRequest{Op: "decrement", Key: "n", Amount: 3.5}, `"0"`},
			{DataRequest{Op: "decrement", Key: "n", Amount: 2}, `"-2"`}, {op("get", "n", ""), `"-2"`},
			{op("set", "n", " 1e3 "), `null`}, {add("n", 0), `"1000"`}, {add("n", 1e20), `"100000000000000000000"`}, {add("n", 1e21), `"1.1e+21"`},
			{op("set", "m", "-0"), `null`}, {DataRequest{Op: "decrement", Key: "m"}, `"0"`}, {add("m", 0.1), `"0.1"`}, {add("m", 0.2), `"0.30000000000000004"`},
		},
		"what is no number": {
			{op("set", "n", "0x10"), `null`}, {add("n", 1), `!the stored value is no number`}, {op("set", "n", "NaN"), `null`},
			{add("n", 1), `!the stored value is no number`}, {op("set", "n", ""), `null`}, {add("n", 1), `!the stored value is no number`},
			{op("set", "n", "1e308"), `null`}, {add("n", 1.7e308), `!the sum is no number that can be stored`}, {op("get", "n", ""), `"1e308"`},
		},
		"keys": {
			{op("set", "", "x"), `!a key has 1 to 128 characters, not 0`}, {op("get", "", ""), `!a key has 1 to 128 characters, not 0`},
			{op("set", strings.Repeat("é", 128), "x"), `null`}, {op("get", strings.Repeat("é", 128), ""), `"x"`},
			{op("set", strings.Repeat("😀", 65), "x"), `!a key has 1 to 128 characters, not 130`},
		},
		"values": {
			{op("set", "a", strings.Repeat("é", 50_000)), `null`}, {op("append", "a", "x"), `!a value has at most 50000 characters, not 50001`},
			{op("set", "a", strings.Repeat("x", 50_001)), `!a value has at most 50000 characters, not 50001`},
			{op("get", "a", ""), `"` + strings.Repeat("é", 50_000) + `"`},
		},
	} {
		for _, cycle := range []string{"", "cycle:1"} {
			t.Run(name+" "+cycle, func(t *testing.T) {
				t.Parallel()
				s, _ := newStore(t)
				put(t, s, oauthInput, false)
				for i, row := range rows {
					row.r.CycleID = cycle
					if d := cmp.Diff(row.want, ask(t, s, row.r)); d != "" {
						t.Fatalf("%d, %s %.20s: %s", i, row.r.Op, row.r.Key, d)
					}
				}
			})
		}
	}
}

func TestScriptData_increments50AtOnce(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	other := NewStore(server.Client(t), s.keys) // as another worker
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			store := s
			if i%2 == 1 {
				store = other
			}
			for range 4 {
				if _, err := store.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "increment", Key: "n", Amount: 0.5}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := ask(t, s, DataRequest{Op: "get", Key: "n"}); got != `"100"` {
		t.Errorf("the sum is %s", got)
	}
}

func TestScriptData_fullStore(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	ask(t, s, DataRequest{Op: "set", Key: "a"})
	rdb := server.Client(t)
	for from := 1; from < maxDataItems; from += 3333 {
		others := make([]any, 0, 2*3333)
		for i := from; i < min(from+3333, maxDataItems); i++ {
			others = append(others, i, "")
		}
		if err := rdb.HSet(ctx, "stepworker:data:{c}:values", others...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, s, DataRequest{Op: "increment", Key: "b", Amount: 1}); got != "!the store holds 1000000 items, and takes no more" {
		t.Errorf("got %s", got)
	}
	if got := ask(t, s, DataRequest{Op: "append", Key: "a", Value: "x"}); got != "null" { // what is there may change
		t.Errorf("got %s", got)
	}
	if got := ask(t, s, DataRequest{Op: "set", Key: "b", CycleID: "1"}); got != "null" {
		t.Errorf("another store: got %s", got)
	}
}

// The running total is exact: a list of 8 MiB is given out, one byte more is not.
func TestScriptData_listThatIsTooLong(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	left := maxDataList - 1
	for i := 0; left > 0; i++ {
		n := min(50_000, left-3)
		ask(t, s, DataRequest{Op: "set", Key: fmt.Sprint(i), Value: strings.Repeat("x", n)})
		left -= n + 3
	}
	if got := ask(t, s, DataRequest{Op: "list_values"}); len(got) != maxDataList {
		t.Errorf("%d bytes: %.100s", len(got), got)
	}
	ask(t, s, DataRequest{Op: "append", Key: "167", Value: "x"})
	const want = "!all values of the store together are more than 8 MiB, and cannot be listed"
	if got := ask(t, s, DataRequest{Op: "list_values"}); got != want {
		t.Errorf("got %.100s", got)
	}
	if got := ask(t, s, DataRequest{Op: "list_keys"}); !strings.HasPrefix(got, `["0","1",`) {
		t.Errorf("got %.100s", got)
	}
	ask(t, s, DataRequest{Op: "delete", Key: "0"})
	if got := ask(t, s, DataRequest{Op: "list_values"}); strings.HasPrefix(got, "!") {
		t.Errorf("got %.100s", got)
	}
}

func TestScriptData_belongsToOneCredentialAndCycle(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	put(t, s, strings.Replace(oauthInput, `"c"`, `"d"`, 1), false)
	places := []DataRequest{{CredentialID: "c"}, {CredentialID: "d"}, {CredentialID: "c", CycleID: "1"}, {CredentialID: "c", CycleID: "1:keys"}, {CredentialID: "d", CycleID: "1"}}
	for i, r := range places {
		r.Op, r.Key, r.Value = "set", "k", fmt.Sprint(i)
		ask(t, s, r)
	}
	for i, r := range places {
		r.Op = "list_values"
		if got := ask(t, s, r); got != fmt.Sprintf(`["%d"]`, i) {
			t.Errorf("%+v: got %s", r, got)
		}
	}
	// Moved elsewhere, it does not open.
	rdb := server.Client(t)
	for _, kind := range []string{"keys", "values"} {
		for _, to := range []string{"stepworker:data:{d}:" + kind, "stepworker:data:{c}:" + kind + ":2"} {
			if err := rdb.Copy(ctx, "stepworker:data:{c}:"+kind, to, 0, true).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var sealed *SealError
	for _, r := range []DataRequest{{CredentialID: "d", Op: "list_values"}, {CredentialID: "c", CycleID: "2", Op: "list_keys"}} {
		if got, err := s.ScriptData(ctx, r); !errors.As(err, &sealed) {
			t.Errorf("%+v: %s, %v", r, got, err)
		}
	}
	// So it is under another field of its own store.
	key := "stepworker:data:{c}:values:1"
	entry, err := rdb.HVals(ctx, key).Result()
	if err != nil {
		t.Fatal(err)
	}
	ask(t, s, DataRequest{Op: "set", Key: "other", CycleID: "1"})
	fields, err := rdb.HKeys(ctx, key).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		if err := rdb.HSet(ctx, key, f, entry[0]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.ScriptData(ctx, DataRequest{CredentialID: "c", CycleID: "1", Op: "get", Key: "other"}); !errors.As(err, &sealed) {
		t.Errorf("under another field: %s, %v", got, err)
	}
}

func TestScriptData_endsWithItsCredential(t *testing.T) {
	left := func(t *testing.T, server *redistest.Server) []string {
		t.Helper()
		keys, err := server.Client(t).Keys(ctx, "stepworker:data:*").Result()
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	for name, c := range map[string]struct {
		do   func(*testing.T, *Store)
		kept bool
	}{
		"delete": {func(t *testing.T, s *Store) {
			if err := s.Delete(ctx, "c"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "set", Key: "late"}); !errors.Is(err, ErrNotFound) {
				t.Errorf("a late step stored with a credential that is gone: %v", err)
			}
		}, false},
		"a delete that was cut off": {func(t *testing.T, s *Store) {
			if err := deleteScript.Run(ctx, s.rdb, []string{credKey("c")}).Err(); err != nil {
				t.Fatal(err)
			}
			put(t, s, oauthInput, false)
		}, false},
		"a put":                   {func(t *testing.T, s *Store) { put(t, s, oauthInput, false) }, true},
		"another connector's put": {func(t *testing.T, s *Store) { put(t, s, `{"credential_id":"c","connector":"other"}`, false) }, false},
		"a refresh": {func(t *testing.T, s *Store) {
			if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("two", "")); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := newStore(t)
			put(t, s, oauthInput, false)
			for _, cycle := range []string{"", "1", "2"} {
				ask(t, s, DataRequest{Op: "set", Key: "k", CycleID: cycle})
			}
			c.do(t, s)
			if got := left(t, server); len(got) != 10 && c.kept || len(got) != 0 && !c.kept {
				t.Errorf("left: %q", got)
			}
		})
	}
}

func TestScriptData_redisHoldsNoKeyAndNoValue(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	for _, op := range []string{"set", "append"} {
		ask(t, s, DataRequest{Op: op, Key: "speaking-key", Value: "telling-value"})
		ask(t, s, DataRequest{Op: op, Key: "speaking-key", Value: "telling-value", CycleID: "1"})
	}
	dump := server.Dump()
	for _, text := range []string{"speaking-key", "telling-value"} {
		if bytes.Contains(dump, []byte(text)) {
			t.Errorf("%s stands in clear", text)
		}
	}
	fields, err := server.Client(t).HKeys(ctx, "stepworker:data:{c}:keys").Result()
	if err != nil {
		t.Fatal(err)
	}
	if shared, err := server.Client(t).HExists(ctx, "stepworker:data:{c}:keys:1", fields[0]).Result(); err != nil || shared {
		t.Errorf("equal keys of two stores are named alike: %v", err)
	}
}

func TestScriptData_newSealingKey(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	old, fresh := NewKey(), NewKey()
	ring := func(keys ...string) *Store {
		r, err := ParseKeys(strings.Join(keys, ","))
		if err != nil {
			t.Fatal(err)
		}
		return NewStore(server.Client(t), r)
	}
	ask(t, ring(old), DataRequest{Op: "set", Key: "a", Value: "1"})
	both := ring(fresh, old)
	if got := ask(t, both, DataRequest{Op: "increment", Key: "a", Amount: 1}); got != `"2"` {
		t.Errorf("got %s", got)
	}
	ask(t, both, DataRequest{Op: "set", Key: "b", Value: "3"})
	if got := ask(t, both, DataRequest{Op: "list_values"}); got != `["2","3"]` {
		t.Errorf("got %s", got)
	}
	var sealed *SealError
	if _, err := ring(NewKey()).ScriptData(ctx, DataRequest{CredentialID: "c", Op: "get", Key: "a"}); !errors.As(err, &sealed) {
		t.Errorf("with another key: %v", err)
	}
}
