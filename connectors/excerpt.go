package connectors

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// excerptWidth is how much of a long line an excerpt shows, in characters.
const excerptWidth = 120

// Excerpt is a line of a source and, below it, a caret under a column. Both
// count from 1, columns in characters. It is "" where there is no such line.
func Excerpt(source string, line, column int) string {
	lines := strings.Split(source, "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	text := []rune(strings.TrimSuffix(lines[line-1], "\r"))
	at := max(0, min(column-1, len(text)))
	if len(text) > excerptWidth { // a script without line ends, perhaps
		from := max(0, min(at-excerptWidth/2, len(text)-excerptWidth))
		text, at = text[from:from+excerptWidth], at-from
	}
	pad := make([]rune, at)
	for i := range pad {
		if pad[i] = ' '; text[i] == '\t' { // as wide as whoever shows it makes them
			pad[i] = '\t'
		}
	}
	return string(text) + "\n" + string(pad) + "^"
}

// excerpt is the author's line at a script's place, masked, "" where it is not
// known. It is masked before it is cut: a secret's end is no less secret.
func (x *exchange) excerpt(at string) string {
	rest, column, ok := cutNumber(at)
	if !ok {
		return ""
	}
	file, line, ok := cutNumber(rest)
	if !ok {
		return ""
	}
	lines := strings.Split(x.source(file), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	r, text := x.mask(), lines[line-1]
	masked, before := r.String(text), text
	if runes := []rune(text); column >= 1 && column <= len(runes) {
		before = string(runes[:column-1])
	}
	before = r.String(before)
	for !strings.HasPrefix(masked, before) { // the place is within what is masked
		_, size := utf8.DecodeLastRuneInString(before)
		before = before[:len(before)-size]
	}
	return Excerpt(masked, 1, utf8.RuneCountInString(before)+1)
}

// cutNumber cuts the number off that follows the last colon.
func cutNumber(s string) (head string, n int, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(s[i+1:])
	return s[:i], n, err == nil
}

// source is a file of scripts, by the name that places in it begin with.
func (x *exchange) source(file string) string {
	if file == "step" {
		return x.call.Script
	}
	if path, ok := strings.CutPrefix(file, "mappings "); ok {
		return x.call.Mappings[path]
	}
	if file == x.d.File {
		return x.d.text
	}
	for _, s := range x.scripts("") {
		if s.File == file {
			return s.Source
		}
	}
	return ""
}
