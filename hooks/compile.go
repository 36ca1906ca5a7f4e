package hooks

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dop251/goja"
	"github.com/dop251/goja/ast"
	"github.com/dop251/goja/parser"
)

// maxNesting is how deep brackets may be nested in a source: the parser's own
// recursion would end the process long before it ended itself.
const maxNesting = 200

// program is one source, compiled for one level. It is immutable and shared
// by all runtimes of a host.
type program struct {
	level   Level
	source  string
	plain   *goja.Program
	lexical []string // top-level const, let, class
	names   []string // top-level functions and vars
	funcs   []string // of these, functions
	err     *verdict // it does not compile
	inScope *goja.Program
	uses    *mentions
}

// parse is the only way to a syntax tree: with source maps on, a script's last
// line could make goja read files of this machine.
func parse(name, source string) (*ast.Program, error) {
	return goja.Parse(name, source, parser.WithDisableSourceMaps)
}

func compile(source string, level Level) *program {
	p := &program{level: level, source: source, uses: mentionsOf(source)}
	tree, err := parse(string(level), source)
	if err != nil {
		p.err = syntaxVerdict(err)
		return p
	}
	p.declarations(tree)
	if p.plain, err = goja.CompileAST(tree, false); err != nil {
		p.err = syntaxVerdict(err)
	}
	return p
}

func (p *program) declarations(tree *ast.Program) {
	for _, s := range tree.Body {
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

// scoped is the source in a function scope of its own, for a level that
// declares again what an earlier one declared. What it shares is handed out:
// functions before its first statement runs, vars after the last.
func (p *program) scoped() (*goja.Program, error) {
	if p.inScope != nil {
		return p.inScope, nil
	}
	head, foot := "(function(){", ""
	for _, f := range p.funcs {
		head += fmt.Sprintf("globalThis[%q]=%s;", f, f)
	}
	for _, n := range p.names {
		if !slices.Contains(p.funcs, n) {
			foot += fmt.Sprintf("globalThis[%q]=%s;", n, n)
		}
	}
	for _, n := range p.lexical {
		if slices.Contains(EventNames, n) {
			foot += fmt.Sprintf("globalThis[%q]=%s;", n, n)
		}
	}
	if strings.HasPrefix(strings.TrimSpace(p.source), `"use strict"`) || strings.HasPrefix(strings.TrimSpace(p.source), `'use strict'`) {
		head = `(function(){"use strict";` + strings.TrimPrefix(head, "(function(){")
	}
	tree, err := parse(string(p.level), head+p.source+"\n;"+foot+"}).call(this)")
	if err != nil {
		return nil, err
	}
	p.inScope, err = goja.CompileAST(tree, false)
	return p.inScope, err
}

// headLength is how many columns scoped puts before the source's first line.
func (p *program) headLength() int {
	n := len("(function(){")
	for _, f := range p.funcs {
		n += len(fmt.Sprintf("globalThis[%q]=%s;", f, f))
	}
	return n
}

// reader reads a lexical name, which no Go call can.
func reader(name string) (*goja.Program, error) {
	tree, err := parse("", "typeof "+name+"==='function'?"+name+":undefined")
	if err != nil {
		return nil, err
	}
	return goja.CompileAST(tree, false)
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
	tree, err := parse("script", s.Source)
	if err == nil {
		_, err = goja.CompileAST(tree, false)
	}
	if err == nil {
		return nil
	}
	line, col, text := syntaxPlace(err)
	l, c := s.place(line, col)
	return []SyntaxFinding{{l, c, "syntax error: " + text}}
}

// Declared are the names of top-level functions of a script that parses.
func Declared(s *Script) []SyntaxFinding {
	if _, text := prescan(s.Source); text != "" {
		return nil
	}
	tree, err := parse("script", s.Source)
	if err != nil {
		return nil
	}
	var all []SyntaxFinding
	for _, st := range tree.Body {
		if d, ok := st.(*ast.FunctionDeclaration); ok {
			pos := tree.File.Position(int(d.Function.Name.Idx) - tree.File.Base())
			l, c := s.place(pos.Line, pos.Column)
			all = append(all, SyntaxFinding{l, c, d.Function.Name.Name.String()})
		}
	}
	return all
}

// screen refuses a source that is not worth a parser's risk.
func (e *Engine) screen(event string, s *Script) error {
	if _, text := prescan(s.Source); text != "" {
		return &LimitError{event, fmt.Sprintf("the script at %s level: %s", s.Level, text)}
	}
	return nil
}

// prescan is linear. It looks at size and bracket depth, outside of strings
// and comments as far as can be told without a parser.
func prescan(source string) (line int, text string) {
	if len(source) > MaxSource {
		return 1, fmt.Sprintf("it has %d bytes; at most %d are allowed", len(source), MaxSource)
	}
	depth, line := 0, 1
	var quote byte
	for i := 0; i < len(source); i++ {
		c := source[i]
		if c == '\n' {
			line++
		}
		if quote != 0 {
			switch {
			case c == '\\':
				i++
			case c == quote, c == '\n' && quote != '`':
				quote = 0
			}
			continue
		}
		switch c {
		case '"', '\'', '`':
			quote = c
		case '/':
			if strings.HasPrefix(source[i:], "//") {
				end := strings.IndexByte(source[i:], '\n')
				if end < 0 {
					return 0, ""
				}
				i += end - 1
			} else if strings.HasPrefix(source[i:], "/*") {
				end := strings.Index(source[i+2:], "*/")
				if end < 0 {
					return 0, ""
				}
				line += strings.Count(source[i:i+2+end], "\n")
				i += end + 3
			}
		case '(', '[', '{':
			if depth++; depth > maxNesting {
				return line, fmt.Sprintf("brackets are nested deeper than %d", maxNesting)
			}
		case ')', ']', '}':
			depth--
		}
	}
	return 0, ""
}
