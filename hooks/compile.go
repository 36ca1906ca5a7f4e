package hooks

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dop251/goja"
	"github.com/dop251/goja/ast"
	"github.com/dop251/goja/parser"
	"github.com/dop251/goja/token"
)

// maxNesting is how deep brackets may be nested in a source: the parser's own
// recursion would end the process long before it ended itself.
const maxNesting = 200

// program is one source, compiled for one level, and shared by all runtimes of
// a host, one after the other.
type program struct {
	level   Level
	source  string
	plain   *goja.Program
	lexical []string                 // top-level const, let, class
	names   []string                 // top-level functions and vars
	funcs   []string                 // of these, functions
	err     *verdict                 // it does not compile
	inScope map[string]*goja.Program // by what it imports
	uses    *mentions
	events  []string // of EventNames, those that it may handle
	looks   bool     // it changes no object that it did not make
	writes  map[string]bool
	inert   bool // to load it does nothing but declare functions

	inBrackets bool // an inline script, with a bracket before its first line
}

// parse is the only way to a syntax tree: with source maps on, a script's last
// line could make goja read files of this machine.
func parse(name, source string) (tree *ast.Program, err error) {
	defer engineFault(&err)
	if tree, err = goja.Parse(name, source, parser.WithDisableSourceMaps); err == nil {
		hoist(tree, source)
	}
	return tree, err
}

// compileTree compiles what parse has read.
func compileTree(tree *ast.Program) (p *goja.Program, err error) {
	defer engineFault(&err)
	return goja.CompileAST(tree, false)
}

// engineFault makes an error of a panic of the engine's parser or compiler:
// some sources that are well-formed make it panic, \u{10ffff} in a string for
// one, and a worker reads the connectors' sources in its own process.
func engineFault(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the script engine cannot read it: %v", p)
	}
}

// compile compiles a source; an inline script is an expression if it can be
// one, else statements whose last value counts: so {a: 1} is an object.
func compile(source string, level Level, inline bool) *program {
	p := &program{level: level, source: source, uses: mentionsOf(source)}
	tree, err := parse(string(level), source)
	if inline {
		if _, alone := parse("", "("+source+"\n)"); alone == nil && strings.HasPrefix(strings.TrimSpace(source), "{") {
			tree, err = parse(string(level), "("+source+"\n)")
			p.inBrackets = true
		}
	}
	if err != nil {
		p.err = syntaxVerdict(err)
		return p
	}
	p.declarations(tree)
	p.looks, p.writes = onlyLooks(tree, p.uses)
	for _, name := range EventNames {
		if p.uses.has(name) {
			p.events = append(p.events, name)
		}
	}
	if p.plain, err = compileTree(tree); err != nil {
		p.err = syntaxVerdict(err)
	}
	return p
}

func (p *program) declarations(tree *ast.Program) {
	p.inert = true
	for _, s := range tree.Body {
		switch s.(type) {
		case *ast.FunctionDeclaration, *ast.EmptyStatement:
		default:
			p.inert = false
		}
		switch d := s.(type) {
		case *ast.LexicalDeclaration:
			for _, b := range d.List {
				p.lexical = append(p.lexical, bound(b.Target)...)
			}
		case *ast.ClassDeclaration:
			p.lexical = append(p.lexical, d.Class.Name.Name.String())
		case *ast.FunctionDeclaration:
			p.names = append(p.names, d.Function.Name.Name.String())
			p.funcs = append(p.funcs, d.Function.Name.Name.String())
		}
	}
	for _, d := range tree.DeclarationList {
		for _, b := range d.List {
			p.names = append(p.names, bound(b.Target)...)
		}
	}
}

// bound are the names that a binding declares.
func bound(t ast.BindingTarget) []string {
	switch b := t.(type) {
	case *ast.Identifier:
		return []string{b.Name.String()}
	case *ast.ArrayPattern:
		var all []string
		for _, e := range b.Elements {
			all = append(all, boundExpr(e)...)
		}
		return append(all, boundExpr(b.Rest)...)
	case *ast.ObjectPattern:
		var all []string
		for _, e := range b.Properties {
			switch p := e.(type) {
			case *ast.PropertyShort:
				all = append(all, p.Name.Name.String())
			case *ast.PropertyKeyed:
				all = append(all, boundExpr(p.Value)...)
			}
		}
		return append(all, boundExpr(b.Rest)...)
	}
	return nil
}

func boundExpr(e ast.Expression) []string {
	if a, ok := e.(*ast.AssignExpression); ok {
		e = a.Left
	}
	if t, ok := e.(ast.BindingTarget); ok {
		return bound(t)
	}
	return nil
}

// needed are the programs that have to be loaded for an event: those that may
// handle it, or do something by being loaded, and those that declare what one
// that is needed names.
func needed(event string, all []*program) []bool {
	load := make([]bool, len(all))
	for range all { // a helper may name another level's
		for i, p := range all {
			load[i] = load[i] || !p.inert || p.uses.has(event)
			for j, other := range all {
				load[i] = load[i] || load[j] && slices.ContainsFunc(p.names, other.uses.has)
			}
		}
	}
	return load
}

// clashes says that a name this program declares as const, let or class is
// declared by an earlier one, or the other way round.
func (p *program) clashes(earlier []*program) bool {
	for _, e := range earlier {
		for _, n := range p.lexical {
			if slices.Contains(e.lexical, n) || slices.Contains(e.names, n) {
				return true
			}
		}
		for _, n := range p.names {
			if slices.Contains(e.lexical, n) {
				return true
			}
		}
	}
	return false
}

// exporter and importer are the globals through which a scoped program hands
// out its const, let and class, and takes those of earlier levels that have no
// place on the global object, while it is loaded.
const (
	exporter = "__stepworker_export"
	importer = "__stepworker_import"
)

// scoped is the source in a block of its own. Its vars stay global, as those
// of every block do. Its functions are assigned to the global object before
// its first statement runs, as hoisting does, and have no binding within the
// block: so a later level's function of that name is called here too. The
// syntax tree is changed, not the text: every place stays the author's own.
func (p *program) scoped(imports []string) (*goja.Program, error) {
	key := strings.Join(imports, " ")
	if prog := p.inScope[key]; prog != nil {
		return prog, nil
	}
	var foot, head strings.Builder
	for _, n := range p.lexical {
		fmt.Fprintf(&foot, ";%s(%q,function(){return %s},function(v){%s=v})", exporter, n, n, n)
	}
	for _, n := range imports {
		fmt.Fprintf(&head, "let %s=%s(%q);", n, importer, n)
	}
	tree, err := parse(string(p.level), p.source+"\n"+foot.String())
	if err != nil {
		return nil, err
	}
	imported, err := parse("", head.String())
	if err != nil {
		return nil, err
	}
	var directives, functions, rest []ast.Statement
	for _, s := range tree.Body {
		switch d := s.(type) {
		case *ast.FunctionDeclaration:
			name := d.Function.Name
			d.Function.Name = nil // it is named by what it is assigned to
			functions = append(functions, &ast.ExpressionStatement{Expression: &ast.AssignExpression{Operator: token.ASSIGN, Left: name, Right: d.Function}})
			tree.DeclarationList = append(tree.DeclarationList, &ast.VariableDeclaration{Var: name.Idx, List: []*ast.Binding{{Target: name}}})
		case *ast.ExpressionStatement:
			if _, text := d.Expression.(*ast.StringLiteral); text && len(functions)+len(rest) == 0 {
				directives = append(directives, s)
				continue
			}
			rest = append(rest, s)
		default:
			rest = append(rest, s)
		}
	}
	block := &ast.BlockStatement{LeftBrace: 1, List: append(functions, rest...), RightBrace: 1}
	if len(imports) > 0 {
		block = &ast.BlockStatement{LeftBrace: 1, List: append(imported.Body, block), RightBrace: 1}
	}
	tree.Body = append(directives, block)
	prog, err := compileTree(tree)
	if err != nil {
		return nil, err
	}
	if p.inScope == nil {
		p.inScope = map[string]*goja.Program{}
	}
	p.inScope[key] = prog
	return prog, nil
}

// reader reads a lexical name, which no Go call can.
func reader(name string) (*goja.Program, error) {
	tree, err := parse("", "typeof "+name+"==='function'?"+name+":undefined")
	if err != nil {
		return nil, err
	}
	return compileTree(tree)
}

var morePattern = regexp.MustCompile(` \(and \d+ more errors\)$`)

var linePattern = regexp.MustCompile(`Line (\d+):(\d+) (.*)`)

// syntaxPlace finds line, column and text of a parser's or compiler's error.
func syntaxPlace(err error) (line, col int, text string) {
	var list parser.ErrorList
	if errors.As(err, &list) && len(list) > 0 {
		e := list[0]
		return e.Position.Line, e.Position.Column, e.Message
	}
	var one *parser.Error
	if errors.As(err, &one) {
		return one.Position.Line, one.Position.Column, one.Message
	}
	var ce *goja.CompilerSyntaxError
	if errors.As(err, &ce) {
		if ce.File != nil {
			pos := ce.File.Position(ce.Offset)
			return pos.Line, pos.Column, ce.Message
		}
		err = errors.New(ce.Message)
	}
	text = strings.TrimSpace(morePattern.ReplaceAllString(err.Error(), ""))
	if m := linePattern.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		col, _ = strconv.Atoi(m[2])
		return line, col, m[3]
	}
	return 1, 1, text
}

func syntaxVerdict(err error) *verdict {
	line, col, text := syntaxPlace(err)
	return &verdict{Kind: "script", Engine: true, Line: line, Column: col, Text: "syntax error: " + clip(text, 500)}
}

// readPatience is how long a source may take to be read where nobody runs it: a
// thousand times what the longest takes.
const readPatience = 5 * time.Second

var errTooLong = errors.New("the script engine cannot read it in any time: an arrow function stands within the parentheses of another, again and again")

// endless are the sources that were given up.
var endless sync.Map

// within reads a source in this process, where no hook host's limits hold: some
// take the engine's parser time that doubles with every level, and it cannot be
// stopped, only left behind.
func within(limit time.Duration, source string, read func() (*ast.Program, error)) (*ast.Program, error) {
	if _, known := endless.Load(source); known {
		return nil, errTooLong
	}
	type outcome struct {
		tree *ast.Program
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		tree, err := read()
		done <- outcome{tree, err}
	}()
	select {
	case o := <-done:
		return o.tree, o.err
	case <-time.After(limit):
		endless.Store(source, true)
		return nil, errTooLong
	}
}

// SyntaxFinding is a mistake in a script, placed in its author's file.
type SyntaxFinding struct {
	Line, Column int
	Text         string
}

// CheckSource parses a script without running it.
func CheckSource(s *Script) []SyntaxFinding {
	if line, text := prescan(s.Source); text != "" {
		l, c := s.place(line, 1)
		return []SyntaxFinding{{l, c, text}}
	}
	_, err := within(readPatience, s.Source, func() (*ast.Program, error) {
		tree, err := parse("script", s.Source)
		if err == nil {
			_, err = compileTree(tree)
		}
		return tree, err
	})
	if err == nil {
		return nil
	}
	if errors.Is(err, errTooLong) {
		l, c := s.place(1, 1)
		return []SyntaxFinding{{l, c, err.Error()}}
	}
	line, col, text := syntaxPlace(err)
	if told := unsupported(s.Source, line, col, text); told != "" {
		text = told
	}
	l, c := s.place(line, col)
	return []SyntaxFinding{{l, c, "syntax error: " + text}}
}

// prescan is linear. It looks at size and bracket depth, outside of strings,
// comments and regular expressions as far as can be told without a parser; what
// it takes for one of these by mistake the hook host's own limits still stop.
func prescan(source string) (line int, text string) {
	if len(source) > MaxSource {
		return 1, fmt.Sprintf("it has %d bytes; at most %d are allowed", len(source), MaxSource)
	}
	depth, line := 0, 1
	last := byte('\n') // the last character that is no white space
	for i := 0; i < len(source); i++ {
		c := source[i]
		switch {
		case c == '\n':
			line++
			continue
		case c == ' ' || c == '\t' || c == '\r':
			continue
		case c == '"' || c == '\'' || c == '`':
			i, line = skipString(source, i, line)
		case strings.HasPrefix(source[i:], "//"):
			end := strings.IndexByte(source[i:], '\n')
			if end < 0 {
				return 0, ""
			}
			i += end - 1
			continue
		case strings.HasPrefix(source[i:], "/*"):
			end := strings.Index(source[i+2:], "*/")
			if end < 0 {
				return 0, ""
			}
			line += strings.Count(source[i:i+2+end], "\n")
			i += end + 3
			continue
		case c == '/' && beginsExpression(source[:i], last):
			i = skipRegExp(source, i)
		case c == '(' || c == '[' || c == '{':
			if depth++; depth > maxNesting {
				return line, fmt.Sprintf("brackets are nested deeper than %d", maxNesting)
			}
		case c == ')' || c == ']' || c == '}':
			depth--
		}
		last = c
	}
	return 0, ""
}

// skipString is where a string literal ends, and on which line.
func skipString(source string, i, line int) (int, int) {
	quote := source[i]
	for i++; i < len(source); i++ {
		switch source[i] {
		case '\\':
			i++
			if i < len(source) && source[i] == '\n' {
				line++
			}
		case '\n':
			if quote != '`' {
				return i - 1, line
			}
			line++
		case quote:
			return i, line
		}
	}
	return i, line
}

var beforeExpression = regexp.MustCompile(`(?:^|[^\w$.])(?:return|typeof|case|in|of|do|else|void|delete|instanceof|new|throw|yield|await)\s*$`)

// beginsExpression says whether a slash after head begins a regular expression
// rather than divides.
func beginsExpression(head string, last byte) bool {
	if strings.IndexByte("\n(,=:[!&|?{};+-*%<>~^", last) >= 0 {
		return true
	}
	return beforeExpression.MatchString(head[max(0, len(head)-20):])
}

// skipRegExp is where a regular expression ends; one that does not end on its
// line is none.
func skipRegExp(source string, from int) int {
	class := false
	for i := from + 1; i < len(source); i++ {
		switch source[i] {
		case '\n':
			return from
		case '\\':
			i++
		case '[':
			class = true
		case ']':
			class = false
		case '/':
			if !class {
				return i
			}
		}
	}
	return from
}
