package definition

import (
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// placed is a scalar read again from its file, each character with the place
// where it stands there: the parser tells only where the scalar begins.
type placed struct {
	lines  [][]rune // of the file
	line   int      // where the reader is, both from 0
	col    int
	text   []rune
	places [][2]int // of each character of text, and of the scalar's end; from 1
}

// scalarPlaces finds where the characters of a quoted or plain scalar stand
// (YAML 1.2 sections 7.3 and 6.5). It is nil where that is not certain.
func scalarPlaces(lines []string, n *yaml.Node) func(line, col int) (int, int) {
	p := &placed{line: n.Line - 1, col: n.Column - 1}
	for _, l := range lines {
		p.lines = append(p.lines, []rune(strings.TrimSuffix(l, "\r")))
	}
	value := []rune(n.Value)
	if p.line < 0 || p.line >= len(p.lines) || p.col < 0 || !p.read(n.Style, len(value)) || !slices.Equal(p.text, value) {
		return nil
	}
	p.places = append(p.places, [2]int{p.line + 1, p.col + 1})
	starts := []int{0}
	for i, r := range p.text {
		if r == '\n' {
			starts = append(starts, i+1)
		}
	}
	places := p.places
	return func(line, col int) (int, int) {
		at := len(places) - 1
		if line >= 1 && line <= len(starts) {
			at = max(0, min(starts[line-1]+col-1, at))
		}
		return places[at][0], places[at][1]
	}
}

// read reads the scalar, a plain one up to the given length.
func (p *placed) read(style yaml.Style, length int) bool {
	quote := rune(0)
	switch {
	case style&yaml.DoubleQuotedStyle != 0:
		quote = '"'
	case style&yaml.SingleQuotedStyle != 0:
		quote = '\''
	}
	if quote != 0 {
		if p.peek(0) != quote {
			return false
		}
		p.col++
	}
	solid := 0 // blanks after this much of text are dropped at a line's end
	for quote != 0 || len(p.text) < length {
		switch r := p.peek(0); {
		case r == 0: // the line's end
			p.text, p.places = p.text[:solid], p.places[:solid]
			if !p.fold() {
				return false
			}
			solid = len(p.text)
		case r == quote && quote == '\'' && p.peek(1) == '\'':
			p.put('\'', 2)
			solid = len(p.text)
		case r == quote && quote != 0:
			return true
		case r == '\\' && quote == '"':
			if !p.escape() {
				return false
			}
			solid = len(p.text)
		default:
			p.put(r, 1)
			if r != ' ' && r != '\t' {
				solid = len(p.text)
			}
		}
	}
	return true
}

// peek is a character of the line from here, 0 beyond its end.
func (p *placed) peek(ahead int) rune {
	if l := p.lines[p.line]; p.col+ahead < len(l) {
		return l[p.col+ahead]
	}
	return 0
}

// put takes a character that the next width ones of the file stand for.
func (p *placed) put(r rune, width int) {
	p.text = append(p.text, r)
	p.places = append(p.places, [2]int{p.line + 1, p.col + 1})
	p.col += width
}

// next goes to the next line that is not blank, and says how many were.
func (p *placed) next() (blank int, ok bool) {
	for p.line++; p.line < len(p.lines); p.line++ {
		for p.col = 0; p.peek(0) == ' ' || p.peek(0) == '\t'; p.col++ {
		}
		if p.peek(0) != 0 {
			return blank, true
		}
		blank++
	}
	return blank, false
}

// fold reads a line's end: a space, or as many ends as blank lines follow.
func (p *placed) fold() bool {
	at := [2]int{p.line + 1, p.col + 1}
	blank, ok := p.next()
	ends := []rune(strings.Repeat("\n", blank))
	if blank == 0 {
		ends = []rune(" ")
	}
	for _, r := range ends {
		p.text, p.places = append(p.text, r), append(p.places, at)
	}
	return ok
}

var escapes = map[rune]rune{'0': 0, 'a': '\a', 'b': '\b', 't': '\t', '\t': '\t', 'n': '\n', 'v': '\v', 'f': '\f', 'r': '\r', 'e': 0x1b,
	' ': ' ', '"': '"', '/': '/', '\\': '\\', 'N': 0x85, '_': 0xa0, 'L': 0x2028, 'P': 0x2029}

// escape reads what follows a backslash (YAML 1.2 section 5.7).
func (p *placed) escape() bool {
	c := p.peek(1)
	if c == 0 { // the line's end counts for nothing
		at := [2]int{p.line + 1, p.col + 1}
		blank, ok := p.next()
		for range blank {
			p.text, p.places = append(p.text, '\n'), append(p.places, at)
		}
		return ok
	}
	if r, ok := escapes[c]; ok {
		p.put(r, 2)
		return true
	}
	digits := map[rune]int{'x': 2, 'u': 4, 'U': 8}[c]
	from := p.col + 2
	if digits == 0 || from+digits > len(p.lines[p.line]) {
		return false
	}
	code, err := strconv.ParseUint(string(p.lines[p.line][from:from+digits]), 16, 32)
	p.put(rune(code), 2+digits)
	return err == nil
}

// blockIndent is how many columns a literal block took off each line: its
// first line's own, less what is left of them, since the header may name it.
func blockIndent(lines []string, n *yaml.Node) int {
	blanks := func(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }
	for i, l := range strings.Split(n.Value, "\n") {
		if strings.TrimSpace(l) != "" && n.Line+i < len(lines) {
			return max(0, blanks(lines[n.Line+i])-blanks(l))
		}
	}
	return 0
}
