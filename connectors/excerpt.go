package connectors

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/stepworker/stepworker/connectors/definition"
)

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
	return definition.Excerpt(masked, 1, utf8.RuneCountInString(before)+1)
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
		return x.d.Source
	}
	for _, s := range x.scripts("") {
		if s.File == file {
			return s.Source
		}
	}
	return ""
}
