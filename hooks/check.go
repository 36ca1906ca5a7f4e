package hooks

import (
	"regexp"
	"slices"
	"strings"

	"github.com/dop251/goja/ast"
	"github.com/dop251/goja/file"
	"github.com/dop251/goja/token"
)

// Inspection is what a script's syntax tree tells without running it.
type Inspection struct {
	Script *Script
	// Handlers are the names that hold a function from the beginning: top-level
	// declarations, and assignments of a function to a plain name.
	Handlers []Mention
	// Uncallable are the top-level classes and generators: called as a handler is,
	// the one throws, and the other does nothing.
	Uncallable []Mention
	// Top are the top-level declarations; Lexical those that are const, let or class.
	Top     []Mention
	Lexical map[string]bool
	// Consts are assignments to a top-level const.
	Consts []Mention
	// Modules are uses of exports and module, which a module has.
	Modules []Mention
	// Required are modules that require does not have.
	Required []Mention
	// Silent are regular expressions with a property escape (\p{…}), which the
	// engine takes, and matches nothing with.
	Silent []Mention

	// Uses counts the places where a name stands, its declarations included.
	Uses map[string]int

	tree     *ast.Program
	declared map[string]int                 // every declaration, however deep, and assignments to plain names
	assigned map[string]bool                // these alone: globals for the other levels too
	guarded  map[string]bool                // tested with typeof, or looked at as members of the global object
	defaults map[*ast.AssignExpression]bool // in declarations: "a = 1" of [a = 1]
	harmless map[ast.Expression]bool        // the global object where only a member of a known name is meant
	calls    []Mention
	noted    map[file.Idx]bool // places that calls has already, or that use no variable
	writes   []Mention         // of names that nothing declares
	tried    [][2]file.Idx     // blocks whose errors are thrown away
	handlers map[string]any    // the functions of Handlers
	dynamic  bool              // eval, Function, with, or the global object in hand: what it declares cannot be told
}

// Mention is a name at its place in its author's file.
type Mention struct {
	Line, Column int
	Name         string
	Value        bool // it is used, not called
	Tried        bool // what is thrown there is thrown away: perhaps a test whether it exists
}

// Inspect reads a script; nil if it does not parse, which CheckSource tells.
func Inspect(s *Script) *Inspection {
	if _, text := prescan(s.Source); text != "" {
		return nil
	}
	tree, err := within(readPatience, s.Source, func() (*ast.Program, error) { return parse("script", s.Source) })
	if err != nil {
		return nil
	}
	in := &Inspection{Script: s, Lexical: map[string]bool{}, tree: tree, declared: map[string]int{}, assigned: map[string]bool{}, guarded: map[string]bool{},
		Uses: map[string]int{}, defaults: map[*ast.AssignExpression]bool{}, harmless: map[ast.Expression]bool{}, noted: map[file.Idx]bool{}, handlers: map[string]any{}}
	consts := map[string]bool{}
	for _, st := range tree.Body {
		in.topLevel(st, consts)
	}
	for _, d := range tree.DeclarationList { // vars, wherever they stand outside of functions
		for _, b := range d.List {
			for _, id := range boundNames(b.Target) {
				in.Top = append(in.Top, in.mention(id))
			}
		}
	}
	var writes []*ast.Identifier
	walk(tree.Body, func(n any) bool {
		writes = append(writes, in.look(n)...)
		return true
	})
	in.dynamic = in.dynamic || in.handsOut()
	for _, id := range writes {
		name := id.Name.String()
		if consts[name] && in.declared[name] == 1 { // elsewhere it may be another one
			in.Consts = append(in.Consts, in.mention(id))
		}
		if in.declared[name] == 0 {
			in.assigned[name] = true
			in.writes = append(in.writes, in.mention(id))
		}
	}
	in.Modules = slices.DeleteFunc(in.Modules, func(m Mention) bool { return in.declared[m.Name] > 0 || in.assigned[m.Name] || in.guarded[m.Name] })
	if in.declared["require"] > 0 || in.assigned["require"] {
		in.Required = nil
	}
	return in
}

func (in *Inspection) mention(id *ast.Identifier) Mention { return in.at(id.Idx, id.Name.String()) }

func (in *Inspection) at(idx file.Idx, name string) Mention {
	pos := in.tree.File.Position(int(idx) - in.tree.File.Base())
	line, col := in.Script.place(pos.Line, pos.Column)
	return Mention{Line: line, Column: col, Name: name}
}

func (in *Inspection) topLevel(st ast.Statement, consts map[string]bool) {
	lexical := func(ids ...*ast.Identifier) {
		for _, id := range ids {
			in.Top = append(in.Top, in.mention(id))
			in.Lexical[id.Name.String()] = true
		}
	}
	variables := func(list []*ast.Binding) {
		for _, b := range list {
			if id, ok := b.Target.(*ast.Identifier); ok && isFunction(b.Initializer) {
				in.Handlers = append(in.Handlers, in.mention(id))
				in.handlers[id.Name.String()] = b.Initializer
			}
		}
	}
	switch d := st.(type) {
	case *ast.FunctionDeclaration:
		in.Handlers = append(in.Handlers, in.mention(d.Function.Name))
		in.handlers[d.Function.Name.Name.String()] = d.Function
		if d.Function.Generator {
			in.Uncallable = append(in.Uncallable, in.mention(d.Function.Name))
		}
		in.Top = append(in.Top, in.mention(d.Function.Name))
	case *ast.ClassDeclaration:
		lexical(d.Class.Name)
		in.Uncallable = append(in.Uncallable, in.mention(d.Class.Name))
	case *ast.LexicalDeclaration:
		variables(d.List)
		for _, b := range d.List {
			ids := boundNames(b.Target)
			lexical(ids...)
			for _, id := range ids {
				consts[id.Name.String()] = consts[id.Name.String()] || d.Token == token.CONST
			}
		}
	case *ast.VariableStatement:
		variables(d.List)
	case *ast.ExpressionStatement:
		if a, ok := d.Expression.(*ast.AssignExpression); ok && isFunction(a.Right) {
			switch l := a.Left.(type) {
			case *ast.Identifier:
				in.Handlers = append(in.Handlers, in.mention(l))
				in.handlers[l.Name.String()] = a.Right
			case *ast.DotExpression:
				if name := ownProperty(l); name != "" {
					in.Handlers = append(in.Handlers, in.at(l.Identifier.Idx, name))
					in.handlers[name] = a.Right
				}
			}
		}
	}
}

func isFunction(e ast.Expression) bool {
	switch e.(type) {
	case *ast.FunctionLiteral, *ast.ArrowFunctionLiteral:
		return true
	}
	return false
}

// look notes what one node declares, calls and tests, and returns the plain
// names that it writes.
func (in *Inspection) look(n any) (writes []*ast.Identifier) {
	declare := func(ids ...*ast.Identifier) {
		for _, id := range ids {
			if id != nil {
				in.declared[id.Name.String()]++
			}
		}
	}
	call := func(e ast.Expression) {
		for {
			switch o := e.(type) {
			case *ast.OptionalChain:
				e = o.Expression
				continue
			case *ast.Optional:
				e = o.Expression
				continue
			}
			break
		}
		if id, ok := e.(*ast.Identifier); ok {
			in.note(id, false)
			in.dynamic = in.dynamic || id.Name == "Function"
		}
	}
	switch d := n.(type) {
	case *ast.Identifier:
		in.Uses[d.Name.String()]++
		in.note(d, true)
		in.dynamic = in.dynamic || d.Name == "eval" // called, or as a value: (0, eval)('…')
	case *ast.ObjectLiteral:
		for _, p := range d.Value {
			if short, ok := p.(*ast.PropertyShort); ok {
				in.note(&short.Name, true)
			}
		}
	case *ast.LabelledStatement:
		in.noted[d.Label.Idx] = true
	case *ast.BranchStatement:
		if d.Label != nil {
			in.noted[d.Label.Idx] = true
		}
	case *ast.MetaProperty: // new.target
		in.noted[d.Meta.Idx], in.noted[d.Property.Idx] = true, true
	case *ast.TryStatement:
		if ignores(d.Catch) {
			in.tried = append(in.tried, [2]file.Idx{d.Try, d.Body.RightBrace})
		}
	case *ast.PropertyShort:
		in.Uses[d.Name.Name.String()]++
	case *ast.Binding:
		in.noteDefaults(d.Target)
		declare(boundNames(d.Target)...)
	case *ast.ParameterList:
		in.noteDefaults(d.Rest)
		declare(boundOf(d.Rest)...)
	case *ast.FunctionLiteral:
		declare(d.Name)
	case *ast.ClassLiteral:
		declare(d.Name)
		call(d.SuperClass)
	case *ast.CatchStatement:
		in.noteDefaults(d.Parameter)
		declare(boundNames(d.Parameter)...)
	case *ast.ForDeclaration:
		in.noteDefaults(d.Target)
		declare(boundNames(d.Target)...)
	case *ast.ForIntoExpression:
		writes = boundOf(d.Expression)
	case *ast.AssignExpression:
		if in.defaults[d] {
			break
		}
		writes = boundOf(d.Left)
		if name := ownProperty(d.Left); name != "" {
			in.assigned[name] = true
		}
	case *ast.UnaryExpression:
		id, plain := d.Operand.(*ast.Identifier)
		switch {
		case !plain:
		case d.Operator == token.TYPEOF:
			in.harmless[id] = true
			in.guarded[id.Name.String()] = true
		case d.Operator == token.INCREMENT || d.Operator == token.DECREMENT:
			writes = []*ast.Identifier{id}
		}
	case *ast.RegExpLiteral:
		if propertyEscape.MatchString(d.Pattern) && strings.Contains(d.Flags, "u") {
			in.Silent = append(in.Silent, in.at(d.Idx, propertyEscape.FindString(d.Pattern)))
		}
	case *ast.BinaryExpression:
		switch text, isText := d.Left.(*ast.StringLiteral); {
		case d.Operator == token.INSTANCEOF:
			if id, ok := d.Right.(*ast.Identifier); ok {
				in.note(id, false)
			}
		case d.Operator == token.IN && isText && isGlobal(d.Right):
			in.guarded[text.Value.String()], in.harmless[d.Right] = true, true
		case d.Operator != token.LOGICAL_OR && d.Operator != token.COALESCE:
			in.harmless[d.Left] = true // this && this.helper, this !== undefined
		}
	case *ast.DotExpression:
		if id, ok := d.Left.(*ast.Identifier); ok && (id.Name == "exports" || id.Name == "module") {
			in.Modules = append(in.Modules, in.mention(id))
			in.noted[id.Idx] = true
		}
		if isGlobal(d.Left) {
			in.guarded[d.Identifier.Name.String()], in.harmless[d.Left] = true, true
			in.Uses[d.Identifier.Name.String()]++
		}
	case *ast.BracketExpression:
		if text, ok := d.Member.(*ast.StringLiteral); ok && isGlobal(d.Left) {
			in.guarded[text.Value.String()], in.harmless[d.Left] = true, true
			in.Uses[text.Value.String()]++
		}
	case *ast.CallExpression:
		call(d.Callee)
		in.required(d)
	case *ast.NewExpression:
		call(d.Callee)
	case *ast.TemplateLiteral:
		call(d.Tag)
	case *ast.WithStatement:
		in.dynamic = true
	}
	return writes
}

// note keeps a place where a name is used. Those of declarations do no harm
// there: what is declared is not missing.
func (in *Inspection) note(id *ast.Identifier, value bool) {
	if in.noted[id.Idx] {
		return
	}
	in.noted[id.Idx] = true
	m := in.mention(id)
	m.Value, m.Tried = value, in.isTried(id.Idx)
	in.calls = append(in.calls, m)
}

func (in *Inspection) isTried(at file.Idx) bool {
	return slices.ContainsFunc(in.tried, func(block [2]file.Idx) bool { return block[0] < at && at < block[1] })
}

// ignores says that a catch throws nothing, and does not look at what it caught.
func ignores(c *ast.CatchStatement) bool {
	if c == nil {
		return false
	}
	caught, does := boundNames(c.Parameter), true
	walk(c.Body, func(n any) bool {
		switch d := n.(type) {
		case *ast.ThrowStatement:
			does = false
		case *ast.Identifier:
			does = does && !slices.ContainsFunc(caught, func(id *ast.Identifier) bool { return id.Name == d.Name })
		}
		return does
	})
	return does
}

// required notes a module that require does not have.
func (in *Inspection) required(d *ast.CallExpression) {
	id, ok := d.Callee.(*ast.Identifier)
	if !ok || id.Name != "require" || len(d.ArgumentList) == 0 || in.isTried(id.Idx) {
		return
	}
	if name, ok := d.ArgumentList[0].(*ast.StringLiteral); ok {
		if moduleFile(name.Value.String()) == "" {
			in.Required = append(in.Required, in.at(d.Callee.Idx0(), name.Value.String()))
		}
	}
}

// noteDefaults notes the defaults in a declaration's pattern: they assign nothing.
func (in *Inspection) noteDefaults(pattern any) {
	walk(pattern, func(n any) bool {
		switch d := n.(type) {
		case *ast.FunctionLiteral, *ast.ArrowFunctionLiteral, *ast.ClassLiteral:
			return false
		case *ast.AssignExpression:
			in.defaults[d] = true
		}
		return true
	})
}

// isGlobal says of an expression that it may be the global object.
func isGlobal(e ast.Expression) bool {
	if id, ok := e.(*ast.Identifier); ok {
		return id.Name == "globalThis"
	}
	_, ok := e.(*ast.ThisExpression)
	return ok
}

// handsOut says that a script uses the global object as a value, as in
// (function (root) { root.helper = … })(this): then anything may be a global.
func (in *Inspection) handsOut() (out bool) {
	hands := func(n any) bool {
		e, ok := n.(ast.Expression)
		return ok && isGlobal(e) && !in.harmless[e]
	}
	walk(in.tree.Body, func(n any) bool {
		if _, this := n.(*ast.ThisExpression); !this {
			out = out || hands(n)
		}
		return !out
	})
	walk(in.tree.Body, func(n any) bool {
		switch n.(type) {
		case *ast.FunctionLiteral, *ast.ClassLiteral: // they have a this of their own
			return false
		}
		out = out || hands(n)
		return !out
	})
	return out
}

// ownProperty is the name that an assignment to a property of this or
// globalThis gives a global.
func ownProperty(e ast.Expression) string {
	switch d := e.(type) {
	case *ast.DotExpression:
		if isGlobal(d.Left) {
			return d.Identifier.Name.String()
		}
	case *ast.BracketExpression:
		if text, ok := d.Member.(*ast.StringLiteral); ok && isGlobal(d.Left) {
			return text.Value.String()
		}
	}
	return ""
}

// Missing are the calls of functions, and the uses of values, that nothing declares: neither the script
// itself nor one of those beside it, and that no script is given. What the
// script tests with typeof, or looks for in the global object, it knows to be perhaps not there.
func (in *Inspection) Missing(beside ...*Inspection) []Mention {
	if in.dynamic {
		return nil
	}
	known := map[string]bool{"arguments": true, "undefined": true}
	for _, n := range slices.Concat(Names(), EventNames) {
		known[n] = true
	}
	for _, other := range beside {
		if other.dynamic {
			return nil
		}
		for _, m := range other.Top {
			known[m.Name] = true
		}
		for n := range other.assigned {
			known[n] = true
		}
	}
	var missing []Mention
	for _, m := range in.calls {
		if !known[m.Name] && in.declared[m.Name] == 0 && !in.assigned[m.Name] && !in.guarded[m.Name] {
			missing = append(missing, m)
		}
	}
	return missing
}

// Reads are the places where a script uses what is there under one of these
// names, if it declares none of its own.
func (in *Inspection) Reads(names ...string) []Mention {
	return slices.DeleteFunc(slices.Clone(in.calls), func(m Mention) bool {
		return !slices.Contains(names, m.Name) || in.declared[m.Name] > 0 || in.assigned[m.Name] || in.guarded[m.Name]
	})
}

// Lost are the places that write a name which nothing declares and nobody reads,
// neither the script nor one of those beside it.
func (in *Inspection) Lost(beside ...*Inspection) []Mention {
	if in.dynamic || slices.ContainsFunc(beside, func(other *Inspection) bool { return other.dynamic }) {
		return nil
	}
	uses := map[string]int{}
	for _, one := range append(slices.Clone(beside), in) {
		for n, count := range one.Uses {
			uses[n] += count
		}
		for _, m := range one.writes {
			uses[m.Name]--
		}
	}
	return slices.DeleteFunc(slices.Clone(in.writes), func(m Mention) bool { return uses[m.Name] > 0 })
}

// Foreign are the places where the handler of an event reads data that this
// event has not, and other events have.
func (in *Inspection) Foreign(event string) (all []Mention) {
	body, ok := in.handlers[event]
	if !ok || in.dynamic {
		return nil
	}
	// What the handler writes, or a helper that it may call, is there to be read;
	// what another event's handler writes is not.
	written := map[string]bool{}
	walk(in.tree.Body, func(n any) bool {
		var left ast.Expression
		switch d := n.(type) {
		case *ast.FunctionLiteral, *ast.ArrowFunctionLiteral:
			for name, handler := range in.handlers {
				if handler == n && name != event && slices.Contains(EventNames, name) {
					return false
				}
			}
		case *ast.AssignExpression:
			left = d.Left
		case *ast.ForIntoExpression:
			left = d.Expression
		}
		for _, id := range boundOf(left) {
			written[id.Name.String()] = true
		}
		return true
	})
	var reads []*ast.Identifier
	walk(body, func(n any) bool {
		switch d := n.(type) {
		case *ast.Identifier:
			reads = append(reads, d)
		case *ast.ObjectLiteral:
			for _, p := range d.Value {
				if short, ok := p.(*ast.PropertyShort); ok {
					reads = append(reads, &short.Name)
				}
			}
		}
		return true
	})
	for _, id := range reads {
		name := id.Name.String()
		i := slices.IndexFunc(Data, func(d Datum) bool { return d.Name == name })
		if i < 0 || slices.Contains(Data[i].Events, event) || written[name] || in.declared[name] > 0 || in.guarded[name] || in.isTried(id.Idx) {
			continue
		}
		all = append(all, in.mention(id))
	}
	return all
}

// Members are the members of a global object that a script reads, calls or
// writes by their plain names.
func (in *Inspection) Members(object string) (reads, writes []Mention) {
	if in.declared[object] > 0 || in.dynamic {
		return nil, nil
	}
	written := map[file.Idx]bool{}
	walk(in.tree.Body, func(n any) bool {
		if a, ok := n.(*ast.AssignExpression); ok {
			if d, ok := a.Left.(*ast.DotExpression); ok {
				written[d.Identifier.Idx] = true
			}
		}
		d, ok := n.(*ast.DotExpression)
		if !ok {
			return true
		}
		if id, ok := d.Left.(*ast.Identifier); ok && id.Name.String() == object {
			m := in.at(d.Identifier.Idx, d.Identifier.Name.String())
			if written[d.Identifier.Idx] {
				writes = append(writes, m)
			} else {
				reads = append(reads, m)
			}
		}
		return true
	})
	return reads, writes
}

// Exceptions are the places where a script makes, or compares with, one of the
// exception classes.
func (in *Inspection) Exceptions() []Mention {
	return in.Calls(exceptionNames...)
}

// Calls are the places where a script calls or makes something of these names.
func (in *Inspection) Calls(names ...string) []Mention {
	return slices.DeleteFunc(slices.Clone(in.calls), func(m Mention) bool { return m.Value || !slices.Contains(names, m.Name) })
}

func boundNames(t ast.BindingTarget) []*ast.Identifier {
	if t == nil {
		return nil
	}
	return boundOf(t)
}

// boundOf are the identifiers that an assignment to e writes.
func boundOf(e ast.Expression) (all []*ast.Identifier) {
	switch b := e.(type) {
	case *ast.Identifier:
		return []*ast.Identifier{b}
	case *ast.AssignExpression: // with a default
		return boundOf(b.Left)
	case *ast.ArrayPattern:
		for _, e := range append(slices.Clone(b.Elements), b.Rest) {
			all = append(all, boundOf(e)...)
		}
	case *ast.ObjectPattern:
		for _, e := range b.Properties {
			switch p := e.(type) {
			case *ast.PropertyShort:
				all = append(all, &p.Name)
			case *ast.PropertyKeyed:
				all = append(all, boundOf(p.Value)...)
			}
		}
		all = append(all, boundOf(b.Rest)...)
	}
	return all
}

var propertyEscape = regexp.MustCompile(`\\[pP]\{[^}]*\}`)

var (
	moduleWord = regexp.MustCompile(`^(import|export)\b`)
	awaitWord  = regexp.MustCompile(`\bawait\s*$`)
	forAwait   = regexp.MustCompile(`\bfor\s*$`)
	ownDefault = regexp.MustCompile(`^[\pL_$][\pL\pN_$]*\s*=[^=]`)
	asyncStar  = regexp.MustCompile(`\basync\s*\*\s*$`) // the parser tells the place behind the star
)

// unsupported says of a place where a script does not parse that the language
// has what stands there, and goja has not; or it is "".
func unsupported(source string, line, col int, text string) string {
	at, ok := nthLine(source, line)
	if !ok || col < 1 || col-1 > len(at) {
		return ""
	}
	before, after := at[:col-1], at[col-1:]
	switch {
	case moduleWord.MatchString(after):
		return "there are no modules: " + moduleWord.FindString(after) + " does not exist in scripts; a later level sees an earlier one's functions by itself"
	case forAwait.MatchString(before) && strings.HasPrefix(after, "await"):
		return "for await does not exist in scripts: hooks are synchronous, so loop over the values themselves"
	case strings.HasPrefix(text, "Async generators"), text == "Unexpected token *" && asyncStar.MatchString(before):
		return "async generators (async function*) do not exist in scripts: hooks are synchronous"
	case text == "Invalid destructuring binding target" && ownDefault.MatchString(after):
		return "the script engine cannot read a default here, in a list that has a default itself ({a: [b, c = 5] = []}): take the list apart in a line of its own"
	case awaitWord.MatchString(before):
		return "await stands outside of an async function: hooks are synchronous, http_request returns its answer without it"
	}
	return ""
}
