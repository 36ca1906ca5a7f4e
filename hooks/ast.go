package hooks

import (
	"reflect"
	"slices"
	"strings"

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

// hoist gives functions that are declared in blocks the variable outside of
// their block that they have where code is not strict (ECMA-262 B.3.2.1), which
// the engine leaves out: {function f() {}} becomes {{t = f; function f() {}} f = t}.
func hoist(tree *ast.Program, source string) {
	if strings.Contains(source, "use strict") {
		return
	}
	hoistIn(tree.Body, nil, &tree.DeclarationList)
	walk(tree, func(n any) bool {
		switch x := n.(type) {
		case *ast.FunctionLiteral:
			hoistIn(x.Body.List, x.ParameterList, &x.DeclarationList)
		case *ast.ArrowFunctionLiteral:
			if body, ok := x.Body.(*ast.BlockStatement); ok {
				hoistIn(body.List, x.ParameterList, &x.DeclarationList)
			}
		case *ast.ClassLiteral: // is strict
			return false
		}
		return true
	})
}

// hoistIn is hoist for one function's own blocks. A name that any of them, or a
// parameter, has as another thing it leaves alone.
func hoistIn(body []ast.Statement, parameters *ast.ParameterList, vars *[]*ast.VariableDeclaration) {
	var blocks []*ast.BlockStatement
	taken := map[string]bool{"arguments": true}
	take := func(targets ...ast.BindingTarget) {
		for _, t := range targets {
			for _, n := range bound(t) {
				taken[n] = true
			}
		}
	}
	if parameters != nil {
		for _, b := range parameters.List {
			take(b.Target)
		}
		for _, n := range boundExpr(parameters.Rest) {
			taken[n] = true
		}
	}
	for _, s := range body {
		walk(s, func(n any) bool {
			switch x := n.(type) {
			case *ast.BlockStatement:
				blocks = append(blocks, x)
			case *ast.LexicalDeclaration:
				for _, b := range x.List {
					take(b.Target)
				}
			case *ast.ForLoopInitializerLexicalDecl:
				for _, b := range x.LexicalDeclaration.List {
					take(b.Target)
				}
			case *ast.ForDeclaration:
				take(x.Target)
			case *ast.CatchStatement:
				take(x.Parameter)
			case *ast.ClassDeclaration:
				take(x.Class.Name)
			case *ast.FunctionLiteral, *ast.ArrowFunctionLiteral, *ast.ClassLiteral:
				return false
			}
			return true
		})
	}
	for _, block := range blocks {
		var before, after []ast.Statement
		for _, s := range block.List {
			d, ok := s.(*ast.FunctionDeclaration)
			if !ok || d.Function.Async || d.Function.Generator || taken[d.Function.Name.Name.String()] {
				continue
			}
			name := d.Function.Name
			held := &ast.Identifier{Name: "__stepworker_block_" + name.Name, Idx: name.Idx}
			set := func(left *ast.Identifier, right ast.Expression) ast.Statement { // a declaration: it has no value for an inline script to come to
				return &ast.VariableStatement{Var: name.Idx, List: []*ast.Binding{{Target: left, Initializer: right}}}
			}
			before, after = append(before, set(held, name)), append(after, set(name, held))
			*vars = append(*vars, &ast.VariableDeclaration{Var: name.Idx, List: []*ast.Binding{{Target: name}, {Target: held}}})
		}
		if before != nil {
			inner := &ast.BlockStatement{LeftBrace: block.LeftBrace, List: append(before, block.List...), RightBrace: block.RightBrace}
			block.List = append([]ast.Statement{inner}, after...)
		}
	}
}
