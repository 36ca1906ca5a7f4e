package hooks

import (
	"math"
	"slices"
	"time"

	"github.com/dop251/goja"
)

// exceptions are the three classes. They are recognised by identity: by the
// objects that our constructors made, which are remembered here where no
// script reaches them, or by our prototypes in the chain of one that an
// ES5-style subclass made. Never by name or text.
type exceptions struct {
	r      *run
	made   map[*goja.Object]*exceptionKind
	protos map[*goja.Object]ExceptionKind
	ours   map[*goja.Object]ExceptionKind // the classes
	build  goja.Callable
}

type exceptionKind struct {
	name    ExceptionKind
	text    string
	seconds float64
}

var exceptionSource = mustCompile(`(function(brand, name) {
  'use strict';
  var make = Reflect.construct, Base = Error, define = Object.defineProperty, text = String;
  var C = {[name]: function() {
    var args = arguments;
    if (name === 'RetryLaterException' && (args.length > 1 || typeof args[0] !== 'string' || +args[0] === +args[0])) { // not a text alone
      args = [args[1] === undefined ? '' : args[1]];
    }
    var e;
    if (!new.target && this instanceof C) { // an ES5 subclass calls it on its own object
      e = this;
      if (args[0] !== undefined) define(e, 'message', {value: text(args[0]), writable: true, configurable: true});
    } else {
      e = make(Base, args, new.target || C);
    }
    brand(e, arguments[0], arguments[1]);
    return e;
  }}[name];
  C.prototype = Object.create(Base.prototype, {
    constructor: {value: C, writable: true, configurable: true},
    name: {value: name, writable: true, configurable: true}
  });
  Object.setPrototypeOf(C, Base);
  return C;
})`)

func mustCompile(source string) *goja.Program {
	tree, err := parse("", source)
	if err != nil {
		panic(err)
	}
	p, err := compileTree(tree)
	if err != nil {
		panic(err)
	}
	return p
}

// usedByClasses are the globals that exceptionSource needs.
var usedByClasses = []string{"Error", "Object", "Reflect", "String"}

// newExceptions defines the classes as globals that are made when first used.
// Without a setter, and not configurable, scripts cannot replace the two that
// the reference system has; a script written for it may have a class of its own
// by the name of the third.
func newExceptions(r *run) *exceptions {
	x := &exceptions{r: r}
	for _, name := range []ExceptionKind{AuthRefresh, AuthSession, RetryLater} {
		if !r.uses(string(name)) {
			continue
		}
		var class goja.Value
		if slices.ContainsFunc(usedByClasses, r.uses) { // before a script can replace them
			class = x.class(name)
		}
		ours := func() goja.Value {
			if class == nil {
				class = x.class(name)
			}
			return class
		}
		if name == RetryLater {
			r.lazy(string(name), ours)
			continue
		}
		_ = r.vm.GlobalObject().DefineAccessorProperty(string(name), r.vm.ToValue(func(goja.FunctionCall) goja.Value { return ours() }), nil, goja.FLAG_FALSE, goja.FLAG_FALSE)
	}
	return x
}

func (x *exceptions) class(name ExceptionKind) goja.Value {
	vm := x.r.vm
	if x.build == nil {
		x.made, x.protos, x.ours = map[*goja.Object]*exceptionKind{}, map[*goja.Object]ExceptionKind{}, map[*goja.Object]ExceptionKind{}
		fn, err := vm.RunProgram(exceptionSource)
		if err != nil {
			panic(err)
		}
		x.build, _ = goja.AssertFunction(fn)
	}
	brand := vm.ToValue(func(c goja.FunctionCall) goja.Value {
		o, ok := c.Argument(0).(*goja.Object)
		if !ok {
			return goja.Undefined()
		}
		k := &exceptionKind{name: name}
		if name == RetryLater {
			s := c.Argument(1).ToFloat()
			if _, ok := c.Argument(1).(*goja.Object); ok && s > 1e11 { // a Date or a moment
				s = (s - float64(time.Now().UnixMilli())) / 1000
			}
			if !math.IsNaN(s) && s > 0 {
				k.seconds = math.Min(s, 30*24*3600)
			}
		}
		x.made[o] = k
		return goja.Undefined()
	})
	class, err := x.build(goja.Undefined(), brand, vm.ToValue(string(name)))
	if err != nil {
		panic(err)
	}
	x.ours[class.ToObject(vm)] = name
	if proto, ok := class.ToObject(vm).Get("prototype").(*goja.Object); ok {
		x.protos[proto] = name
	}
	return class
}

// kindOf recognises a thrown value, or returns nil.
func (x *exceptions) kindOf(v goja.Value) *exceptionKind {
	o, ok := v.(*goja.Object)
	if !ok || x.build == nil {
		return nil
	}
	k := x.made[o]
	for p, depth := o, 0; k == nil && p != nil && depth < 100; p, depth = p.Prototype(), depth+1 {
		if name, ok := x.protos[p]; ok && p != o {
			k = &exceptionKind{name: name}
		}
	}
	if k == nil {
		return nil
	}
	_ = x.r.vm.Try(func() { // what it says may be out of reach; what it is, is not
		if m := o.Get("message"); m != nil && !goja.IsUndefined(m) {
			k.text = m.String()
		}
	})
	return k
}
