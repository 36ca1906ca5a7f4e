package hooks

import (
	"reflect"
	"slices"

	"github.com/dop251/goja/ast"
	"github.com/dop251/goja/token"
)

// walk visits every node of a syntax tree; visit says whether to go on below.
func walk(n any, visit func(any) bool) { walkValue(reflect.ValueOf(n), visit) }

func walkValue(v reflect.Value, visit func(any) bool) {
	switch v.Kind() {
	case reflect.Interface:
		if !v.IsNil() {
			walkValue(v.Elem(), visit)
		}
	case reflect.Pointer:
		if v.IsNil() || v.Type().Elem().Kind() != reflect.Struct || v.Type().Elem().PkgPath() != astPackage {
			return
		}
		if v.CanInterface() && !visit(v.Interface()) {
			return
		}
		walkValue(v.Elem(), visit)
	case reflect.Struct:
		if v.Type().PkgPath() != astPackage {
			return
		}
		for i := range v.NumField() {
			// What a function hoists stands in its body too.
			if f := v.Type().Field(i); f.IsExported() && f.Name != "DeclarationList" {
				walkValue(v.Field(i), visit)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			walkValue(v.Index(i), visit)
		}
	}
}

var astPackage = reflect.TypeFor[ast.Program]().PkgPath()

// mutators are names by which a script can change an object without an
// assignment to one of its members.
var mutators = []string{"push", "pop", "shift", "unshift", "splice", "sort", "reverse", "fill", "copyWithin", "assign", "defineProperty",
	"defineProperties", "setPrototypeOf", "Reflect", "Proxy", "call", "apply", "bind", "__proto__", "__defineGetter__", "__defineSetter__", "require",
	"CryptoJS", "defineLocale", "updateLocale"}

// onlyLooks says of a script that it changes no object that it did not make,
// and which variables it writes: then of what it was given only these need be
// written again, to see what became of it. It errs on the other side.
func onlyLooks(tree *ast.Program, uses *mentions) (only bool, writes map[string]bool) {
	if uses.all || slices.ContainsFunc(mutators, uses.has) {
		return false, nil
	}
	only, writes = true, map[string]bool{}
	// What is written is a member unless it is a variable; a pattern may hold one.
	member := func(e ast.Node) bool {
		variable, ok := e.(*ast.Identifier)
		if ok {
			writes[variable.Name.String()] = true
		}
		return !ok
	}
	walk(tree, func(n any) bool {
		switch x := n.(type) {
		case *ast.AssignExpression:
			only = !member(x.Left) && only
		case *ast.UnaryExpression:
			if x.Operator == token.INCREMENT || x.Operator == token.DECREMENT || x.Operator == token.DELETE {
				only = !member(x.Operand) && only
			}
		case *ast.Binding: // a declaration
			for _, n := range bound(x.Target) {
				writes[n] = true
			}
		case *ast.FunctionLiteral:
			if x.Name != nil {
				writes[x.Name.Name.String()] = true
			}
		case *ast.FieldDefinition: // of an object that the base class may have been given
			only = false
		case *ast.ForIntoExpression:
			only = !member(x.Expression) && only
		// Object under another name, or Object[name], is any of the mutators.
		case *ast.DotExpression:
			if object, ok := x.Left.(*ast.Identifier); ok && object.Name == "Object" {
				return false
			}
		case *ast.Identifier:
			only = only && x.Name != "Object"
		// a[name] could be any of the mutators, called, or handed to what calls it.
		case *ast.CallExpression:
			only = only && !computed(x.Callee) && !slices.ContainsFunc(x.ArgumentList, computed)
		case *ast.TemplateLiteral:
			only = only && !computed(x.Tag)
		}
		return only
	})
	return only, writes
}

// computed says that an expression is a member by a name that is computed.
func computed(e ast.Expression) bool {
	switch x := e.(type) {
	case *ast.BracketExpression:
		return true
	case *ast.OptionalChain:
		return computed(x.Expression)
	case *ast.Optional:
		return computed(x.Expression)
	}
	return false
}
