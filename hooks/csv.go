package hooks

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/dop251/goja"
)

// csvParse is cyclr_csv_parse(text, delimiter, hasHeader): a list of objects
// of texts (RFC 4180). Without a header the names are Field1, Field2, …; so
// are those of values for which the header has no name, or one it has twice;
// where the header has that name too, Field1_, Field2_, ….
func (r *run) csvParse(c goja.FunctionCall) goja.Value {
	vm := r.vm
	delimiter := text(c.Argument(1))
	if delimiter == "" {
		delimiter = ","
	}
	comma, size := utf8.DecodeRuneInString(delimiter)
	if size != len(delimiter) {
		r.throw(fmt.Sprintf("cyclr_csv_parse: the delimiter must be one character, not %q", short(delimiter, 20)))
	}
	source := strings.TrimPrefix(text(c.Argument(0)), "\ufeff")
	if !strings.Contains(source, "\n") {
		source = strings.ReplaceAll(source, "\r", "\n")
	}
	in := csv.NewReader(strings.NewReader(source))
	in.Comma, in.FieldsPerRecord, in.LazyQuotes, in.ReuseRecord = comma, -1, true, true
	var names []string
	taken := map[string]bool{}
	made := func(i int) string {
		n := fmt.Sprintf("Field%d", i+1)
		for taken[n] {
			n += "_"
		}
		taken[n] = true
		return n
	}
	rows := []any{}
	first := c.Argument(2).ToBoolean()
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			return vm.NewArray(rows...)
		}
		if err != nil {
			r.throw("cyclr_csv_parse: " + err.Error())
		}
		if first {
			first = false
			for _, n := range record {
				if n == "" || taken[n] {
					n = ""
				} else {
					n = strings.Clone(n)
					taken[n] = true
				}
				names = append(names, n)
			}
			for i, n := range names {
				if n == "" {
					names[i] = made(i)
				}
			}
			continue
		}
		row := vm.NewObject()
		for i, v := range record {
			if i == len(names) {
				names = append(names, made(i))
			}
			_ = row.DefineDataProperty(names[i], vm.ToValue(strings.Clone(v)), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
		}
		rows = append(rows, row)
	}
}
