package definition

import (
	"strings"
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
