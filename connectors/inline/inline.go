package inline

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
)

// Script is a value that is JavaScript. Its merge fields are not written into
// the source, which would let a value end a literal and go on as code: each
// becomes a variable. So no value can be code, the source is the same at every
// call (hosts compile it once), and what `worker check` reads is what runs.
type Script struct {
	level  hooks.Level
	File   string // as places name it
	Source string
	Fields []Field
	text   string // the author's, = included
	marks  []mark // where pieces of source stand in text
	place  func(line, column int) (int, int)
}

// Variable begins the names of the variables that stand for merge fields.
const Variable = "__field"

// Field is a merge field and the variable that stands for it. In a
// string or template literal it is the value's text.
type Field struct {
	Name, Format, Variable string
	Text                   bool
}

// mark says that source, from a byte on, stands in text from another byte on;
// or, for what has no counterpart there, at that byte.
type mark struct {
	source, text int
	verbatim     bool
}

// New reads a text that begins with =. place says where a place of the
// text stands in its file. Errors are
// *mergefields.Error.
func New(level hooks.Level, file, text string, place func(line, column int) (int, int)) (*Script, error) {
	parts, err := mergefields.Split(text[1:])
	if err != nil {
		return nil, err
	}
	in := &Script{level: level, File: file, text: text, place: place}
	l := &reader{in: in, at: 1}
	for _, p := range parts {
		if p.Name == "" {
			l.read(p.Text)
		} else if err := l.field(&p); err != nil {
			return nil, err
		}
		l.at += p.Length
	}
	l.endLiteral(false)
	in.Source = l.out.String()
	return in, nil
}

// Hook is the source as hook hosts take it.
func (in *Script) Hook() hooks.Script {
	return hooks.Script{Level: in.level, File: in.File, Source: in.Source, Place: in.PlaceOf}
}

// PlaceOf is where a place of the source stands in the author's file.
func (in *Script) PlaceOf(line, column int) (int, int) {
	at := offsetOf(in.Source, line, column)
	there := mark{}
	for _, m := range in.marks {
		if m.source > at {
			break
		}
		there = m
	}
	back := there.text
	if there.verbatim {
		back = min(back+at-there.source, len(in.text))
	}
	line = 1 + strings.Count(in.text[:back], "\n")
	column = 1 + utf8.RuneCountInString(in.text[strings.LastIndexByte(in.text[:back], '\n')+1:back])
	return in.place(line, column)
}

// offsetOf is the byte at which a line and column (in characters) stand.
func offsetOf(s string, line, column int) int {
	at := 0
	for ; line > 1; line-- {
		i := strings.IndexByte(s[at:], '\n')
		if i < 0 {
			return len(s)
		}
		at += i + 1
	}
	for ; column > 1 && at < len(s); column-- {
		_, n := utf8.DecodeRuneInString(s[at:])
		at += n
	}
	return at
}

// What an reader stands in.
const (
	inCode = iota
	inString
	inTemplate
	inRegExp
	inLineComment
	inComment
)

// reader tells code from literals and comments, as far as that can be
// told without a parser. Where it is mistaken the source does not parse, or
// is not what its author meant; it never makes code of a value.
type reader struct {
	in      *Script
	out     strings.Builder
	at      int // of the part that is read, in the author's text
	where   int
	quote   byte  // of the string
	class   bool  // in a regular expression's brackets
	escaped bool  // after a backslash
	depths  []int // open braces in the ${ } of each template literal around
	last    byte  // the last byte of code that is no white space
	recent  string
	literal []piece // a string so far: whether it holds a field, its end tells
}

// piece of a string literal: its text, or the variable in it.
type piece struct {
	text     string
	at       int
	variable bool
	escaped  bool // by a backslash before it
}

func (l *reader) read(s string) {
	for i := 0; i < len(s); i++ {
		escaped := l.escaped
		n := l.step(s[i:])
		if l.where == inString || n.string {
			l.literal = append(l.literal, piece{text: s[i : i+n.bytes], at: l.at + i, escaped: escaped})
			if n.string {
				l.endLiteral(true)
			}
		} else {
			l.emit(s[i:i+n.bytes], l.at+i, true)
		}
		i += n.bytes - 1
	}
}

// taken is how much of the text one step took, and whether that ended a string.
type taken struct {
	bytes  int
	string bool
}

// step goes on by a byte, or by two that belong together.
func (l *reader) step(s string) taken {
	c := s[0]
	if l.escaped {
		l.escaped = false
		return taken{bytes: 1}
	}
	switch l.where {
	case inLineComment:
		if c == '\n' {
			l.where = inCode
		}
	case inComment:
		if strings.HasPrefix(s, "*/") {
			l.where = inCode
			return taken{bytes: 2}
		}
	case inString:
		switch c {
		case '\\':
			l.escaped = true
		case l.quote, '\n': // a line's end in it is a mistake that the parser tells
			l.where, l.last = inCode, c
			return taken{bytes: 1, string: true}
		}
	case inTemplate:
		switch {
		case c == '\\':
			l.escaped = true
		case c == '`':
			l.depths = l.depths[:len(l.depths)-1]
			l.where, l.last = inCode, c
		case strings.HasPrefix(s, "${"):
			l.where, l.last = inCode, '{'
			return taken{bytes: 2}
		}
	case inRegExp:
		switch {
		case c == '\\':
			l.escaped = true
		case c == '[':
			l.class = true
		case c == ']':
			l.class = false
		case c == '/' && !l.class, c == '\n':
			l.where, l.last = inCode, c
		}
	default:
		return l.code(s)
	}
	return taken{bytes: 1}
}

func (l *reader) code(s string) taken {
	c := s[0]
	top := len(l.depths) - 1
	switch {
	case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		l.recent += string(c)
		return taken{bytes: 1}
	case c == '\'' || c == '"':
		l.where, l.quote = inString, c
	case c == '`':
		l.where, l.depths = inTemplate, append(l.depths, 0)
	case strings.HasPrefix(s, "//"):
		l.where = inLineComment
		return taken{bytes: 2}
	case strings.HasPrefix(s, "/*"):
		l.where = inComment
		return taken{bytes: 2}
	case c == '/' && l.beginsRegExp():
		l.where, l.class = inRegExp, false
	case c == '{' && top >= 0:
		l.depths[top]++
	case c == '}' && top >= 0 && l.depths[top] == 0:
		l.where = inTemplate
	case c == '}' && top >= 0:
		l.depths[top]--
	}
	l.last = c
	if l.recent += string(c); len(l.recent) > 40 {
		l.recent = l.recent[len(l.recent)-20:]
	}
	return taken{bytes: 1}
}

var beforeRegExp = regexp.MustCompile(`(?:^|[^\w$.])(?:return|typeof|case|in|of|do|else|void|delete|instanceof|new|throw|yield|await)\s*$`)

// beginsRegExp says that a slash here begins a regular expression rather than
// divides.
func (l *reader) beginsRegExp() bool {
	return l.last == 0 || strings.IndexByte("(,=:[!&|?{};+-*%<>~^", l.last) >= 0 || beforeRegExp.MatchString(l.recent)
}

// field puts a variable in a merge field's place.
func (l *reader) field(p *mergefields.Part) error {
	name := p.Name
	switch {
	case l.escaped:
		return &mergefields.Error{Text: fmt.Sprintf("a backslash stands before {{%s}}", name)}
	case l.where == inRegExp:
		return &mergefields.Error{Text: fmt.Sprintf("{{%s}} stands in a regular expression: use new RegExp(…)", name)}
	case l.where == inComment || l.where == inLineComment:
		return nil
	}
	f := Field{Name: name, Format: p.Format, Text: l.where != inCode, Variable: fmt.Sprintf("%s%d", Variable, len(l.in.Fields))}
	l.in.Fields = append(l.in.Fields, f)
	switch l.where {
	case inString:
		l.literal = append(l.literal, piece{text: f.Variable, at: l.at, variable: true})
	case inTemplate:
		l.emit("${"+f.Variable+"}", l.at, false)
	default:
		l.emit(" "+f.Variable+" ", l.at, false)
		l.last, l.recent = ')', ")" // after a value a slash divides
	}
	return nil
}

// endLiteral writes a string that has ended, or that the text breaks off in.
// One that holds fields becomes a template literal, which needs no more room
// around it than the string did.
func (l *reader) endLiteral(closed bool) {
	holds := false
	for _, p := range l.literal {
		holds = holds || p.variable
	}
	last := len(l.literal) - 1
	for i, p := range l.literal {
		switch {
		case p.variable:
			l.emit("${"+p.text+"}", p.at, false)
		case !holds:
			l.emit(p.text, p.at, true)
		case i == 0 || i == last && closed && p.text != "\n":
			l.emit("`", p.at, true)
		case (p.text == "`" || p.text == "$") && !p.escaped:
			l.emit(`\`, p.at, false)
			l.emit(p.text, p.at, true)
		default:
			l.emit(p.text, p.at, true)
		}
	}
	l.literal = nil
}

func (l *reader) emit(s string, at int, verbatim bool) {
	from := l.out.Len()
	l.out.WriteString(s)
	if n := len(l.in.marks); n > 0 && verbatim {
		if m := l.in.marks[n-1]; m.verbatim && at-m.text == from-m.source {
			return
		}
	}
	l.in.marks = append(l.in.marks, mark{from, at, verbatim})
}

// Is says that a value of a connector file is inline script.
func Is(v any) bool { _, ok := v.(*Script); return ok }
