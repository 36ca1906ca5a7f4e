package jobs

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

func TestPackResult_readsWhatItWrote(t *testing.T) {
	long := json.RawMessage(`"` + strings.Repeat("a < b & c ", 40_000) + `"`)
	cases := map[string]struct {
		result  Result
		first   byte
		invalid bool
	}{
		"small":           {result: Result{ExecutionID: "e", Content: json.RawMessage(`{"a":1}`)}, first: '{'},
		"large content":   {result: Result{ExecutionID: "e", Content: long, Tag: "t"}, first: zstdMagic[0]},
		"large fields":    {result: Result{ExecutionID: "e", Fields: long}, first: zstdMagic[0]},
		"large elsewhere": {result: Result{ExecutionID: "e", Webhook: &WebhookResult{Accepted: true, Reply: &WebhookReply{Headers: json.RawMessage(`{}`), Content: long}}}, first: zstdMagic[0]},
		"no JSON":         {result: Result{ExecutionID: "e", Content: long[1:]}, invalid: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			raw, err := packResult(&c.result)
			if (err != nil) != c.invalid {
				t.Fatal(err)
			}
			if c.invalid {
				return
			}
			if raw[0] != c.first {
				t.Errorf("it begins with %q", raw[0])
			}
			got, err := decodeResult(raw)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&c.result, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestUnpackResult_refusesWhatNobodyOfUsWrote(t *testing.T) {
	var bomb bytes.Buffer
	w, err := zstd.NewWriter(&bomb)
	if err != nil {
		t.Fatal(err)
	}
	for range maxResult>>20 + 1 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := packResult(&Result{Content: json.RawMessage(`"` + strings.Repeat("x", 300<<10) + `"`)})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"a bomb": bomb.Bytes(), "cut off": whole[:len(whole)-5], "another form": {1, 2, 3}, "zstd of no JSON": mustCompress(t, "x")} {
		if r, err := decodeResult(raw); err == nil {
			t.Errorf("%s: got %+v", name, r)
		}
	}
}

func mustCompress(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := compress(int64(len(text)), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
