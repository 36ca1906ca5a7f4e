package hooks

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/dop251/goja"
)

// libsZip holds moment, moment-timezone and crypto-js as npm has them, with
// their licences; libs/update.sh makes it.
//
//go:embed libs/libs.zip
var libsZip []byte

// libraries are the files of the libraries, compiled when they are first used,
// and the time zones, unpacked then. They are a hook host's, for all events.
type libraries struct {
	files    map[string]*zip.File
	programs map[string]*goja.Program
	zones    *timeZones
}

// file finds a library's file, nil if there is none.
func (l *libraries) file(name string) (*zip.File, error) {
	if l.files == nil {
		z, err := zip.NewReader(bytes.NewReader(libsZip), int64(len(libsZip)))
		if err != nil {
			return nil, err
		}
		l.files, l.programs = map[string]*zip.File{}, map[string]*goja.Program{}
		for _, f := range z.File {
			l.files[f.Name] = f
		}
	}
	return l.files[name], nil
}

func (l *libraries) read(name string) ([]byte, error) {
	f, err := l.file(name)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("there is no file %s", name)
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// program is a library's file as a function of what a CommonJS module sees.
func (l *libraries) program(name string) (*goja.Program, error) {
	if p := l.programs[name]; p != nil {
		return p, nil
	}
	raw, err := l.read(name)
	if err != nil {
		return nil, err
	}
	source := string(raw)
	if name == momentTimezone {
		if source, err = withoutData(source); err != nil {
			return nil, err
		}
	}
	tree, err := parse(name, "(function(module,exports,require,ours){"+source+"\n})")
	if err != nil {
		return nil, err
	}
	p, err := compileTree(tree)
	if err == nil {
		l.programs[name] = p
	}
	return p, err
}

const (
	momentCore     = "moment/moment.js"
	momentTimezone = "moment-timezone/moment-timezone.js"
	cryptoCore     = "crypto-js/core.js"
	cryptoCiphers  = "crypto-js/cipher-core.js"
)

// defineLibraries makes moment, CryptoJS, crypto and require, each loaded when
// a script first touches it.
func (r *run) defineLibraries() {
	r.lazy("moment", func() goja.Value { return r.module(momentCore) })
	r.lazy("CryptoJS", func() goja.Value { return r.module(cryptoCore) })
	r.lazy("crypto", r.webCrypto)
	r.lazy("require", func() goja.Value {
		return r.vm.ToValue(func(c goja.FunctionCall) goja.Value { return r.require(text(c.Argument(0))) })
	})
}

// lazy is a global that is made when it is first used. A script may declare,
// assign or replace it like any other.
func (r *run) lazy(name string, value func() goja.Value) {
	if !r.uses(name) {
		return
	}
	global := r.vm.GlobalObject()
	settle := func(v goja.Value) {
		_ = global.DefineDataProperty(name, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_FALSE)
	}
	made := goja.Value(nil)
	getter := r.vm.ToValue(func(goja.FunctionCall) goja.Value {
		if made == nil {
			made = value()
			settle(made)
		}
		return made
	})
	setter := r.vm.ToValue(func(c goja.FunctionCall) goja.Value { settle(c.Argument(0)); return goja.Undefined() })
	_ = global.DefineAccessorProperty(name, getter, setter, goja.FLAG_TRUE, goja.FLAG_FALSE)
}

// require is what scripts call.
func (r *run) require(name string) goja.Value {
	file := moduleFile(name)
	if file == "" || !r.h.libs.has(file) {
		r.throw(fmt.Sprintf("require: there is no module %q: moment, moment-timezone and crypto-js can be required", short(name, 60)))
	}
	if file == momentTimezone { // it adds to moment, and is that
		r.module(file)
		file = momentCore
	}
	return r.module(file)
}

// moduleFile is where a module would be: the two libraries, and their parts, by
// the names and paths that Node would find them under; "" for any other.
func moduleFile(name string) string {
	switch clean := strings.TrimSuffix(name, ".js"); {
	case clean == "moment", clean == "moment/moment", clean == "moment/min/moment.min":
		return momentCore
	case clean == "moment-timezone":
		return momentTimezone
	case clean == "crypto-js", clean == "crypto-js/index", clean == "crypto-js/crypto-js", clean == "crypto-js/core":
		return cryptoCore
	case strings.HasPrefix(clean, "crypto-js/"), strings.HasPrefix(clean, "moment/locale/"):
		return path.Clean(clean) + ".js"
	}
	return ""
}

func (l *libraries) has(file string) bool {
	f, err := l.file(file)
	return err == nil && f != nil
}

// module runs a library's file, once in a runtime, and returns its exports.
func (r *run) module(file string) goja.Value {
	vm := r.vm
	if m := r.modules[file]; m != nil {
		return m.Get("exports")
	}
	prog, err := r.h.libs.program(file)
	if err != nil {
		r.throw(err.Error())
	}
	wrapper, err := vm.RunProgram(prog)
	if err != nil {
		panic(err)
	}
	load, _ := goja.AssertFunction(wrapper)
	module, exports := vm.NewObject(), vm.NewObject()
	_ = module.Set("exports", exports)
	if r.modules == nil {
		r.modules = map[string]*goja.Object{}
	}
	r.modules[file] = module
	require := vm.ToValue(func(c goja.FunctionCall) goja.Value {
		switch name := text(c.Argument(0)); name {
		case "crypto":
			return r.webCrypto()
		case "moment", "../moment":
			return r.module(momentCore)
		default: // ./locale/de, ./core
			return r.module(path.Join(path.Dir(file), strings.TrimSuffix(name, ".js")) + ".js")
		}
	})
	if _, err := load(exports, module, exports, require, r.zoneSource(file)); err != nil {
		delete(r.modules, file)
		panic(err)
	}
	switch file {
	case momentCore:
		r.lazyTimezone(module.Get("exports").ToObject(vm))
	case cryptoCore:
		r.lazyMembers(module.Get("exports").ToObject(vm), "", "enc", "lib", "algo")
	case cryptoCiphers:
		r.lazyMembers(r.module(cryptoCore).ToObject(vm), "mode", "pad", "format")
	}
	return module.Get("exports")
}

// lazyTimezone has moment-timezone loaded by the first use of tz.
func (r *run) lazyTimezone(moment *goja.Object) {
	fn := moment.Get("fn").ToObject(r.vm)
	for _, o := range []*goja.Object{moment, fn} {
		getter := r.vm.ToValue(func(goja.FunctionCall) goja.Value {
			_, _ = moment.Delete("tz"), fn.Delete("tz")
			r.module(momentTimezone)
			return o.Get("tz")
		})
		setter := r.vm.ToValue(func(c goja.FunctionCall) goja.Value {
			_ = o.DefineDataProperty("tz", c.Argument(0), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
			return goja.Undefined()
		})
		_ = o.DefineAccessorProperty("tz", getter, setter, goja.FLAG_TRUE, goja.FLAG_TRUE)
	}
}

// cryptoMembers says which file makes which member of CryptoJS. Loading all of
// them takes longer than most hooks run.
var cryptoMembers = []struct{ object, names, file string }{
	{"", "MD5 HmacMD5", "md5"}, {"", "SHA1 HmacSHA1", "sha1"}, {"", "SHA256 HmacSHA256", "sha256"}, {"", "SHA224 HmacSHA224", "sha224"},
	{"", "SHA512 HmacSHA512", "sha512"}, {"", "SHA384 HmacSHA384", "sha384"}, {"", "SHA3 HmacSHA3", "sha3"},
	{"", "RIPEMD160 HmacRIPEMD160", "ripemd160"}, {"", "PBKDF2", "pbkdf2"}, {"", "EvpKDF", "evpkdf"}, {"", "AES", "aes"},
	{"", "DES TripleDES", "tripledes"}, {"", "RC4 RC4Drop", "rc4"}, {"", "Rabbit", "rabbit"}, {"", "RabbitLegacy", "rabbit-legacy"},
	{"", "Blowfish", "blowfish"}, {"", "x64", "x64-core"}, {"", "mode pad format kdf", "cipher-core"},
	{"enc", "Utf16 Utf16BE Utf16LE", "enc-utf16"}, {"enc", "Base64", "enc-base64"}, {"enc", "Base64url", "enc-base64url"},
	{"lib", "Cipher StreamCipher BlockCipherMode BlockCipher CipherParams SerializableCipher PasswordBasedCipher", "cipher-core"},
	{"algo", "MD5", "md5"}, {"algo", "SHA1", "sha1"}, {"algo", "SHA256", "sha256"}, {"algo", "SHA224", "sha224"}, {"algo", "SHA512", "sha512"},
	{"algo", "SHA384", "sha384"}, {"algo", "SHA3", "sha3"}, {"algo", "RIPEMD160", "ripemd160"}, {"algo", "HMAC", "hmac"},
	{"algo", "PBKDF2", "pbkdf2"}, {"algo", "EvpKDF", "evpkdf"}, {"algo", "AES", "aes"}, {"algo", "DES TripleDES", "tripledes"},
	{"algo", "RC4 RC4Drop", "rc4"}, {"algo", "Rabbit", "rabbit"}, {"algo", "RabbitLegacy", "rabbit-legacy"}, {"algo", "Blowfish", "blowfish"},
	{"mode", "CFB", "mode-cfb"}, {"mode", "CTR", "mode-ctr"}, {"mode", "CTRGladman", "mode-ctr-gladman"}, {"mode", "OFB", "mode-ofb"}, {"mode", "ECB", "mode-ecb"},
	{"pad", "AnsiX923", "pad-ansix923"}, {"pad", "Iso10126", "pad-iso10126"}, {"pad", "Iso97971", "pad-iso97971"},
	{"pad", "ZeroPadding", "pad-zeropadding"}, {"pad", "NoPadding", "pad-nopadding"}, {"format", "Hex", "format-hex"},
}

// lazyMembers gives objects of CryptoJS their members, each loaded by its first
// use; "" is CryptoJS itself.
func (r *run) lazyMembers(cryptoJS *goja.Object, objects ...string) {
	vm := r.vm
	for _, m := range cryptoMembers {
		if !slices.Contains(objects, m.object) {
			continue
		}
		o := cryptoJS
		if m.object != "" {
			o = cryptoJS.Get(m.object).ToObject(vm)
		}
		for _, n := range strings.Fields(m.names) {
			plain := func(v goja.Value) { _ = o.DefineDataProperty(n, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE) }
			getter := vm.ToValue(func(goja.FunctionCall) goja.Value {
				plain(goja.Undefined())
				r.module("crypto-js/" + m.file + ".js")
				if strings.HasPrefix(n, "Hmac") {
					r.module("crypto-js/hmac.js")
				}
				return o.Get(n)
			})
			setter := vm.ToValue(func(c goja.FunctionCall) goja.Value { plain(c.Argument(0)); return goja.Undefined() })
			_ = o.DefineAccessorProperty(n, getter, setter, goja.FLAG_TRUE, goja.FLAG_TRUE)
		}
	}
}

// timeZones is moment-timezone's data, read by Go: unpacking it in JavaScript
// takes longer than most hooks run.
type timeZones struct {
	version   string
	packed    map[string]string // by name as moment-timezone normalises it
	links     map[string]string
	names     []string
	countries []string
	unpacked  map[string]*zone
}

type zone struct {
	name       string
	abbrs      []string
	offsets    []float64 // minutes west of UTC
	untils     []float64 // ms; the last is without end
	population float64
}

func normalZone(name string) string { return strings.ReplaceAll(strings.ToLower(name), "/", "_") }

func (l *libraries) timeZones() (*timeZones, error) {
	if l.zones != nil {
		return l.zones, nil
	}
	raw, err := l.read("moment-timezone/latest.json")
	if err != nil {
		return nil, err
	}
	var data struct {
		Version                 string
		Zones, Links, Countries []string
	}
	if err := json.Unmarshal(raw, &data); err != nil {
		return nil, err
	}
	z := &timeZones{version: data.Version, packed: map[string]string{}, links: map[string]string{}, countries: data.Countries, unpacked: map[string]*zone{}}
	for _, packed := range data.Zones {
		name, _, _ := strings.Cut(packed, "|")
		z.packed[normalZone(name)] = packed
		z.names = append(z.names, name)
	}
	for _, link := range data.Links {
		target, name, _ := strings.Cut(link, "|")
		z.links[normalZone(name)] = target + "|" + name
		z.names = append(z.names, name)
	}
	slices.Sort(z.names)
	l.zones = z
	return z, nil
}

// zone finds a zone by its normalised name; one that is a link has its own name.
func (z *timeZones) zone(name string) *zone {
	if u := z.unpacked[name]; u != nil {
		return u
	}
	var made *zone
	if packed, ok := z.packed[name]; ok {
		made = unpackZone(packed)
	} else if link, ok := z.links[name]; ok {
		target, own, _ := strings.Cut(link, "|")
		if of := z.zone(normalZone(target)); of != nil {
			copied := *of
			copied.name, made = own, &copied
		}
	}
	if made != nil {
		z.unpacked[name] = made
	}
	return made
}

// unpackZone reads moment-timezone's packed format:
// name|abbreviations|offsets|indices|until deltas|population, numbers in base 60.
func unpackZone(packed string) *zone {
	part := strings.Split(packed, "|")
	if len(part) < 5 {
		return nil
	}
	abbrs, offsets, untils := strings.Fields(part[1]), strings.Fields(part[2]), strings.Fields(part[4])
	u := &zone{name: part[0]}
	at := 0.0
	for i, index := range part[3] {
		n := int(base60Digit(index))
		if n >= len(abbrs) || n >= len(offsets) {
			return nil
		}
		u.abbrs, u.offsets = append(u.abbrs, abbrs[n]), append(u.offsets, base60(offsets[n]))
		if i < len(untils) {
			at = math.Floor(0.5 + at + base60(untils[i])*60000)
		}
		u.untils = append(u.untils, at)
	}
	if len(part) > 5 {
		u.population, _ = strconv.ParseFloat(part[5], 64)
	}
	return u
}

func base60Digit(c rune) float64 {
	switch {
	case c > 96:
		return float64(c - 87)
	case c > 64:
		return float64(c - 29)
	}
	return float64(c - 48)
}

func base60(s string) float64 {
	sign := 1.0
	if s != "" && s[0] == '-' {
		sign, s = -1, s[1:]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	n, unit := 0.0, 1.0
	for _, c := range whole {
		n = 60*n + base60Digit(c)
	}
	for _, c := range fraction {
		unit /= 60
		n += base60Digit(c) * unit
	}
	return sign * n
}

// withoutData changes moment-timezone where it looks into its data: it asks us
// for the one zone that is needed. The local zone is UTC.
func withoutData(source string) (string, error) {
	for _, change := range [][2]string{
		{"var zone = hasOwnProp(zones, name) ? zones[name] : undefined;", `var zone = hasOwnProp(zones, name) ? zones[name] : undefined;
			if (zone === undefined && (zone = ours.zone(name))) { var made = new Zone(); made._set(zone); return zones[name] = made; }`},
		{"function getNames () {\n\t\tvar i, out = [];", "function getNames () {\n\t\tvar i, out = ours.names();"},
		{"Object.keys(countries)", "Object.keys((ours.countries(addCountries), countries))"},
		{"function getCountry (name) {", "function getCountry (name) { ours.countries(addCountries);"},
		{"function guess (ignoreCache) {", "function guess (ignoreCache) { return 'UTC';"},
	} {
		if !strings.Contains(source, change[0]) {
			return "", fmt.Errorf("moment-timezone is another version than this build knows: %q is missing", change[0])
		}
		source = strings.ReplaceAll(source, change[0], change[1])
	}
	return source, nil
}

// zoneSource is what moment-timezone asks for its data.
func (r *run) zoneSource(file string) goja.Value {
	if file != momentTimezone {
		return goja.Undefined()
	}
	vm := r.vm
	data, err := r.h.libs.timeZones()
	if err != nil {
		r.throw(err.Error())
	}
	list := func(texts []string) *goja.Object {
		items := make([]any, len(texts))
		for i, t := range texts {
			items[i] = t
		}
		return vm.NewArray(items...)
	}
	source := vm.NewObject()
	_ = source.Set("zone", func(c goja.FunctionCall) goja.Value {
		z := data.zone(text(c.Argument(0)))
		if z == nil {
			return goja.Undefined()
		}
		offsets, untils := make([]any, len(z.offsets)), make([]any, len(z.untils))
		for i := range z.offsets {
			offsets[i], untils[i] = z.offsets[i], z.untils[i]
		}
		untils[len(untils)-1] = math.Inf(1)
		o := vm.NewObject()
		for k, v := range map[string]any{"name": z.name, "abbrs": list(z.abbrs), "offsets": vm.NewArray(offsets...), "untils": vm.NewArray(untils...), "population": z.population} {
			_ = o.Set(k, v)
		}
		return o
	})
	_ = source.Set("names", func(goja.FunctionCall) goja.Value { return list(data.names) })
	told := false
	_ = source.Set("countries", func(c goja.FunctionCall) goja.Value {
		if add, ok := goja.AssertFunction(c.Argument(0)); ok && !told {
			told = true
			if _, err := add(goja.Undefined(), list(data.countries)); err != nil {
				panic(err)
			}
		}
		return goja.Undefined()
	})
	return source
}

// webCrypto is the one function of the Web Crypto API that CryptoJS needs for
// salts: getRandomValues.
func (r *run) webCrypto() goja.Value {
	if r.crypto != nil {
		return r.crypto
	}
	r.crypto = r.vm.NewObject()
	_ = r.crypto.Set("getRandomValues", func(c goja.FunctionCall) goja.Value {
		view, ok := c.Argument(0).(*goja.Object)
		if !ok {
			r.throw("crypto.getRandomValues needs a typed array")
		}
		buffer, ok := view.Get("buffer").(*goja.Object)
		var bytes goja.ArrayBuffer
		if ok {
			bytes, ok = buffer.Export().(goja.ArrayBuffer)
		}
		from, size := view.Get("byteOffset"), view.Get("byteLength")
		if !ok || from == nil || size == nil {
			r.throw("crypto.getRandomValues needs a typed array")
		}
		all := bytes.Bytes()
		begin, end := from.ToInteger(), from.ToInteger()+size.ToInteger()
		if begin < 0 || end < begin || end > int64(len(all)) || end-begin > 65536 {
			r.throw("crypto.getRandomValues fills at most 65536 bytes")
		}
		_, _ = rand.Read(all[begin:end]) // never fails, crypto/rand's documentation says
		return view
	})
	return r.crypto
}
