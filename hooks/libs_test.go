package hooks

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"
)

// newRuntime is a hook host's runtime in this process, for tests of what a
// script sees of it.
func newRuntime(t testing.TB) *run {
	t.Helper()
	r := &run{h: &hostSide{programs: map[[32]byte]*program{}, maxRequests: 50}, ev: &eventSide{name: "before_action", scripts: []*program{{uses: &mentions{all: true}}}},
		vm: goja.New(), exported: map[string]bool{}, imports: map[string]goja.Callable{}, declared: map[string]bool{}}
	r.prepare()
	return r
}

func (r *run) js(t testing.TB, source string) string {
	t.Helper()
	v, err := r.vm.RunString(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return v.String()
}

// CryptoJS is loaded piece by piece; the whole, as npm has it, is the yardstick.
func TestCryptoJS_hasEveryMemberOfTheWhole(t *testing.T) {
	const list = `(function(C) {
  var all = [], seen = [];
  (function walk(o, at, depth) {
    if (seen.indexOf(o) >= 0 || depth > 3) return;
    seen.push(o);
    Object.keys(o).sort().forEach(function(k) {
      if (k[0] === '_' || k === '$super' || k === 'init') return;
      all.push(at + k);
      if (o[k] !== null && (typeof o[k] === 'object' || typeof o[k] === 'function')) walk(o[k], at + k + '.', depth + 1);
    });
  })(C, '', 0);
  return all.join('\n');
})`
	whole := newRuntime(t)
	names := map[string]bool{}
	for _, m := range cryptoMembers {
		names[m.file] = true
	}
	// Eager: every file, as index.js requires them.
	core := whole.module("crypto-js/core.js").ToObject(whole.vm)
	for _, f := range []string{"x64-core", "lib-typedarrays", "enc-utf16", "enc-base64", "enc-base64url", "md5", "sha1", "sha256", "sha224", "sha512", "sha384", "sha3",
		"ripemd160", "hmac", "pbkdf2", "evpkdf", "cipher-core", "mode-cfb", "mode-ctr", "mode-ctr-gladman", "mode-ofb", "mode-ecb", "pad-ansix923", "pad-iso10126",
		"pad-iso97971", "pad-zeropadding", "pad-nopadding", "format-hex", "aes", "tripledes", "rc4", "rabbit", "rabbit-legacy", "blowfish"} {
		whole.module("crypto-js/" + f + ".js")
	}
	_ = whole.vm.Set("C", core)
	want := strings.Split(whole.js(t, list+"(C)"), "\n")
	lazy := newRuntime(t)
	got := strings.Split(lazy.js(t, list+"(CryptoJS)"), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-whole +lazy):\n%s", diff)
	}
	if len(got) < 100 {
		t.Errorf("only %d members", len(got))
	}
}

func TestLibraries_results(t *testing.T) {
	for name, c := range map[string]struct{ js, want string }{
		"md5":           {`CryptoJS.MD5('abc').toString()`, "900150983cd24fb0d6963f7d28e17f72"},
		"sha1":          {`CryptoJS.SHA1('abc') + ''`, "a9993e364706816aba3e25717850c26c9cd0d89d"},
		"hmac sha256":   {`CryptoJS.HmacSHA256('what do ya want for nothing?', 'Jefe').toString()`, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
		"hmac object":   {`var h = CryptoJS.algo.HMAC.create(CryptoJS.algo.SHA256, 'Jefe'); h.update('what do ya want '); h.update('for nothing?'); h.finalize().toString()`, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
		"base64":        {`CryptoJS.enc.Base64.stringify(CryptoJS.enc.Utf8.parse('hi'))`, "aGk="},
		"encoder":       {`CryptoJS.SHA256('a').toString(CryptoJS.enc.Base64)`, "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs="},
		"aes":           {`CryptoJS.AES.decrypt(CryptoJS.AES.encrypt('hello', 'pass').toString(), 'pass').toString(CryptoJS.enc.Utf8)`, "hello"},
		"aes ecb":       {`CryptoJS.AES.encrypt(CryptoJS.enc.Hex.parse('00112233445566778899aabbccddeeff'), CryptoJS.enc.Hex.parse('000102030405060708090a0b0c0d0e0f'), {mode: CryptoJS.mode.ECB, padding: CryptoJS.pad.NoPadding}).ciphertext.toString()`, "69c4e0d86a7b0430d8cdb78070b4c55a"},
		"pbkdf2":        {`CryptoJS.PBKDF2('password', 'salt', {keySize: 4, iterations: 2, hasher: CryptoJS.algo.SHA1}).toString()`, "ea6c014dc72d6f8ccd1ed92ace1d41f0"},
		"required file": {`require('crypto-js/sha256')('abc').toString()`, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		"one object":    {`(require('crypto-js') === CryptoJS) + '' + (require('moment') === moment) + (require('moment-timezone') === moment)`, "truetruetrue"},
		"var moment":    {`var moment = require('moment'); moment.utc('2026-01-02').format('D/M')`, "2/1"},
		"utc":           {`moment.utc('2026-03-01T10:00:00Z').add(1, 'month').format()`, "2026-04-01T10:00:00Z"},
		"local is utc":  {`moment('2026-07-01T10:00:00').format() + new Date(2026, 6, 1).getTimezoneOffset()`, "2026-07-01T10:00:00+00:000"},
		"tz":            {`moment.tz('2026-03-29 03:30', 'Europe/Berlin').format() + ' ' + moment.utc('2026-01-01').tz('America/New_York').format('YYYY-MM-DD HH:mm z')`, "2026-03-29T03:30:00+02:00 2025-12-31 19:00 EST"},
		"tz from fn":    {`moment.utc('2026-08-01T12:00:00Z').tz('Asia/Kolkata').format()`, "2026-08-01T17:30:00+05:30"},
		"tz link":       {`moment.tz('2026-01-01', 'US/Pacific').tz()`, "US/Pacific"},
		"tz case":       {`moment.tz.zone('europe/london').name`, "Europe/London"},
		"tz unknown":    {`'' + moment.tz.zone('Mars/Base')`, "null"},
		"tz names":      {`(moment.tz.names().length > 580) + ' ' + moment.tz.names().indexOf('Europe/Paris') + ' ' + (moment.tz.names().indexOf('Europe/Paris') > 0)`, "true 464 true"},
		"tz default":    {`moment.tz.setDefault('Asia/Tokyo'); moment('2026-01-01T00:00:00').format()`, "2026-01-01T00:00:00+09:00"},
		"tz guess":      {`moment.tz.guess()`, "UTC"},
		"tz countries":  {`moment.tz.zonesForCountry('ch').join() + moment.tz.countries().length`, "Europe/Zurich247"},
		"tz long ago":   {`moment.tz('1950-07-01', 'Europe/Berlin').format()`, "1950-07-01T00:00:00+01:00"},
		"locale":        {`moment.locale('de'); moment.utc('2026-03-01').format('dddd, D. MMMM')`, "Sonntag, 1. März"},
		"locale fr":     {`moment.utc('2026-03-01').locale('fr').format('MMMM')`, "mars"},
		"locale none":   {`moment.locale('xx') + moment.utc('2026-03-01').format('MMMM')`, "enMarch"},
		"humanize":      {`moment.duration(90, 'minutes').humanize()`, "2 hours"},
		"random":        {`var a = new Uint8Array(16); crypto.getRandomValues(a); '' + (a.some(function(x) { return x > 0 }))`, "true"},
	} {
		t.Run(name, func(t *testing.T) {
			got := newRuntime(t).js(t, c.js)
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// What Go unpacks is what moment-timezone unpacks itself, for every zone.
func TestTimeZones_asTheLibraryUnpacksThem(t *testing.T) {
	r := newRuntime(t)
	data, err := r.h.libs.timeZones()
	if err != nil {
		t.Fatal(err)
	}
	r.js(t, "moment.tz")
	packed, _ := json.Marshal(data.packed)
	_ = r.vm.Set("packedText", string(packed))
	got := r.js(t, `var packed = JSON.parse(packedText), bad = [], n = 0;
Object.keys(packed).forEach(function(k) {
  var want = moment.tz.unpack(packed[k]), got = moment.tz.zone(k), one;
  n++;
  ['name', 'abbrs', 'untils', 'offsets', 'population'].forEach(function(m) {
    if (m === 'offsets') { one = got[m].every(function(x, i) { return Math.abs(x - want[m][i]) < 1e-9 }) && got[m].length === want[m].length }
    else one = JSON.stringify(got[m]) === JSON.stringify(want[m]);
    if (!one) bad.push(k + '.' + m + ': ' + JSON.stringify(got[m]).slice(0, 80) + ' ' + JSON.stringify(want[m]).slice(0, 80));
  });
});
(n > 300) + bad.join('; ')`)
	if got != "true" {
		t.Error(got)
	}
}

func TestRequire_whatIsNotThere(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1})
	for _, name := range []string{"fs", "child_process", "crypto", "moment/../crypto-js/core", "crypto-js/../../x", "", "lodash"} {
		_, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action() { require("+string(must(json.Marshal(name)))+") }")})
		if err == nil || !strings.Contains(err.Error(), "there is no module") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func BenchmarkLibraries(b *testing.B) {
	h := &hostSide{programs: map[[32]byte]*program{}}
	for name, js := range map[string]string{
		"none": `1`, "moment": `moment.utc('2026-01-02').format()`, "tz": `moment.tz('2026-01-01', 'Europe/Berlin').format()`,
		"hmac sha256": `CryptoJS.HmacSHA256('a', 'b').toString()`, "md5": `CryptoJS.MD5('a').toString()`, "aes": `CryptoJS.AES.encrypt('a', 'b').toString()`,
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r := newRuntime(b)
				r.h.libs = h.libs
				r.js(b, js)
				h.libs = r.h.libs
			}
		})
	}
}
