package hooks

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/dop251/goja"
)

// builtins makes the functions that every event has.
func (r *run) builtins() {
	vm := r.vm
	set := func(name string, f func(goja.FunctionCall) goja.Value) {
		if !r.uses(name) {
			return
		}
		_ = vm.GlobalObject().DefineDataProperty(name, vm.ToValue(f), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_FALSE)
	}
	set("btoa", func(c goja.FunctionCall) goja.Value {
		cs, err := charsetOf(c.Argument(1))
		if err != nil {
			r.throw(err.Error())
		}
		return vm.ToValue(base64.StdEncoding.EncodeToString(cs.encode(text(c.Argument(0)))))
	})
	set("atob", func(c goja.FunctionCall) goja.Value {
		cs, err := charsetOf(c.Argument(1))
		if err != nil {
			r.throw(err.Error())
		}
		in := strings.Map(func(c rune) rune {
			if strings.ContainsRune(" \t\r\n\f", c) {
				return -1
			}
			return c
		}, text(c.Argument(0)))
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(in, "="))
		if err != nil {
			r.throw("atob: the text is not base64")
		}
		return vm.ToValue(cs.decode(raw))
	})
	set("http_request", r.httpRequest)
	set("cyclr_sign", r.cyclrSign)
	set("cyclr_csv_parse", r.csvParse)
	set("cyclr_xml_serialize", r.xmlSerialize)
	set("cyclr_xml_deserialize", r.xmlDeserialize)
	r.storage(set)
	r.defineLibraries()
	if r.uses("toLocaleString") {
		r.localeNumbers()
	}
	if !r.uses("console") {
		return
	}
	_ = vm.GlobalObject().DefineAccessorProperty("console", vm.ToValue(func(goja.FunctionCall) goja.Value {
		console := vm.NewObject()
		for _, name := range []string{"log", "info", "warn", "error", "debug", "trace"} {
			_ = console.Set(name, r.log)
		}
		_ = vm.GlobalObject().DefineDataProperty("console", console, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_FALSE)
		return console
	}), nil, goja.FLAG_TRUE, goja.FLAG_FALSE)
}

func text(v goja.Value) string {
	if goja.IsUndefined(v) || goja.IsNull(v) {
		return ""
	}
	return v.String()
}

// throw throws an ordinary Error.
func (r *run) throw(message string) { panic(r.makeError(message)) }

func (r *run) makeError(message string) *goja.Object {
	o, err := r.vm.New(r.errorClass(), r.vm.ToValue(message))
	if err != nil {
		panic(err)
	}
	return o
}

func (r *run) log(c goja.FunctionCall) goja.Value {
	if len(r.logs) >= maxLogs || r.logSize >= maxLogSize {
		return goja.Undefined()
	}
	parts := make([]string, len(c.Arguments))
	for i, a := range c.Arguments {
		if ex := r.vm.Try(func() { parts[i] = r.shown(a) }); ex != nil {
			parts[i] = "[a value that cannot be shown]"
		}
	}
	line := clip(strings.Join(parts, " "), maxText)
	r.logs, r.logSize = append(r.logs, line), r.logSize+len(line)
	return goja.Undefined()
}

// shown is a value as console.log writes it: objects as JSON, errors as text.
func (r *run) shown(v goja.Value) string {
	o, ok := v.(*goja.Object)
	if !ok {
		return v.String()
	}
	if o.ClassName() == "Error" {
		text, _ := r.describe(o)
		return text
	}
	if raw, err := r.stringify(o); err == nil && raw != nil {
		return string(raw)
	}
	return o.String()
}

// httpRequest asks the worker, which has the network, to make a request.
func (r *run) httpRequest(c goja.FunctionCall) goja.Value {
	if r.requests++; r.requests > r.h.maxRequests {
		r.tooMuch("%s made more than %d http_requests", r.ev.subject(), r.h.maxRequests)
	}
	options, ok := c.Argument(0).(*goja.Object)
	if !ok {
		r.throw("http_request needs an object: {method, url, parameters, headers, data}")
	}
	get := func(k string) goja.Value {
		v := options.Get(k)
		if v == nil || goja.IsNull(v) {
			return goja.Undefined()
		}
		return v
	}
	req := HTTPRequest{Method: strings.ToUpper(text(get("method"))), URL: text(get("url"))}
	if req.Method == "" {
		req.Method = "GET"
	}
	if req.URL == "" {
		r.throw("http_request: url is missing")
	}
	if o, ok := get("parameters").(*goja.Object); ok {
		raw, err := r.stringify(o)
		if err != nil {
			panic(err)
		}
		if string(raw) != "[]" { // as PHP and others write an empty object
			if len(raw) == 0 || raw[0] != '{' {
				r.throw("http_request: parameters must be an object")
			}
			req.Parameters = raw
		}
	} else if get("parameters").ToBoolean() { // '' and false, as of a && {…}, leave nothing out
		r.throw("http_request: parameters must be an object")
	}
	if o, ok := get("headers").(*goja.Object); ok && (o.ClassName() != "Array" || len(o.Keys()) == 0) {
		req.Headers = map[string]string{}
		for _, k := range o.Keys() {
			if v := o.Get(k); !goja.IsUndefined(v) && !goja.IsNull(v) {
				req.Headers[k] = v.String()
			}
		}
	} else if get("headers").ToBoolean() {
		r.throw("http_request: headers must be an object")
	}
	if d := get("data"); !goja.IsUndefined(d) {
		req.HasData = true
		if o, ok := d.(*goja.Object); ok {
			raw, err := r.stringify(o)
			if err != nil {
				panic(err)
			}
			req.Data = string(raw)
		} else {
			req.Data = d.String()
		}
	}
	body, err := json.Marshal(req)
	if err != nil {
		r.throw("http_request: " + err.Error())
	}
	kind, answer := r.ask(frameRequest, body)
	if kind == frameFault {
		o := r.makeError(string(answer))
		r.faults = append(r.faults, o)
		panic(o)
	}
	v, err := r.parseJSON(answer)
	if err != nil {
		r.throw("http_request: " + err.Error())
	}
	if o, ok := v.(*goja.Object); ok {
		if h := o.Get("headers"); h != nil {
			_ = o.Set("headers", r.ignoreCase(h))
		}
	}
	return v
}

// ignoreCase makes look-up in an object of headers ignore case; names stay as
// they were sent. The traps are native, so no script reaches them, and what
// has no trap goes to the object itself.
func (r *run) ignoreCase(v goja.Value) goja.Value {
	o, ok := v.(*goja.Object)
	if !ok {
		return v
	}
	find := func(t *goja.Object, name string) string {
		if t.Get(name) != nil {
			return name
		}
		for _, k := range t.GetOwnPropertyNames() {
			if strings.EqualFold(k, name) {
				return k
			}
		}
		return name
	}
	guarded := false // a member may be read-only, or fixed
	return r.vm.ToValue(r.vm.NewProxy(o, &goja.ProxyTrapConfig{
		Get: func(t *goja.Object, name string, _ goja.Value) goja.Value {
			if v := t.Get(find(t, name)); v != nil {
				return v
			}
			return goja.Undefined()
		},
		Set: func(t *goja.Object, name string, v goja.Value, _ goja.Value) bool {
			return t.Set(find(t, name), v) == nil
		},
		Has: func(t *goja.Object, name string) bool { return t.Get(find(t, name)) != nil },
		GetOwnPropertyDescriptor: func(t *goja.Object, name string) goja.PropertyDescriptor {
			v := t.Get(find(t, name))
			if v == nil || !slices.Contains(t.GetOwnPropertyNames(), find(t, name)) {
				return goja.PropertyDescriptor{}
			}
			if guarded { // as it is, which the engine insists on
				if name != find(t, name) {
					name = "" // of another's name it would not believe it
				}
				return r.ownProperty(t, name)
			}
			return goja.PropertyDescriptor{Value: v, Writable: goja.FLAG_TRUE, Enumerable: goja.FLAG_TRUE, Configurable: goja.FLAG_TRUE}
		},
		DefineProperty: func(t *goja.Object, name string, d goja.PropertyDescriptor) bool {
			guarded = true
			if name = find(t, name); d.Getter != nil || d.Setter != nil {
				return t.DefineAccessorProperty(name, d.Getter, d.Setter, d.Configurable, d.Enumerable) == nil
			}
			return t.DefineDataProperty(name, d.Value, d.Writable, d.Configurable, d.Enumerable) == nil
		},
		DeleteProperty: func(t *goja.Object, name string) bool { return t.Delete(find(t, name)) == nil },
	}))
}

// ownProperty is what Object.getOwnPropertyDescriptor says.
func (r *run) ownProperty(o *goja.Object, name string) (d goja.PropertyDescriptor) {
	told, err := r.descriptor()(goja.Undefined(), o, r.vm.ToValue(name))
	if err != nil {
		panic(err)
	}
	if p, ok := told.(*goja.Object); ok {
		flag := func(k string) goja.Flag {
			v := p.Get(k)
			return goja.ToFlag(v != nil && v.ToBoolean())
		}
		d = goja.PropertyDescriptor{Value: p.Get("value"), Getter: p.Get("get"), Setter: p.Get("set"), Enumerable: flag("enumerable"), Configurable: flag("configurable")}
		if d.Value != nil {
			d.Writable = flag("writable")
		}
	}
	return d
}
