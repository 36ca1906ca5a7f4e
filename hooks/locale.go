package hooks

import (
	"fmt"
	"math"
	"math/big"
	"strconv"

	"github.com/dop251/goja"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"golang.org/x/text/number"
)

// localeNumbers replaces Number.prototype.toLocaleString: the engine's takes a
// locale for a radix, and throws. Of its options (ECMA-402 section 15.1.1)
// those are known that scripts use: minimumFractionDigits,
// maximumFractionDigits, useGrouping, style decimal and percent.
func (r *run) localeNumbers() {
	vm := r.vm
	proto := vm.Get("Number").ToObject(vm).Get("prototype").ToObject(vm)
	_ = proto.DefineDataProperty("toLocaleString", vm.ToValue(func(c goja.FunctionCall) goja.Value {
		n := c.This.ToFloat()
		if math.IsNaN(n) || math.IsInf(n, 0) {
			return vm.ToValue(c.This.String())
		}
		tag := language.English
		if l := c.Argument(0); !goja.IsUndefined(l) && !goja.IsNull(l) {
			var err error
			if tag, err = language.Parse(l.String()); err != nil {
				r.throw(fmt.Sprintf("toLocaleString: unknown locale %q", short(l.String(), 40)))
			}
		}
		low, high, percent, grouping := 0, 3, false, true
		if o, ok := c.Argument(1).(*goja.Object); ok {
			digits := func(name string, into *int) bool {
				v := o.Get(name)
				if v == nil || goja.IsUndefined(v) {
					return false
				}
				if *into = int(v.ToInteger()); *into < 0 || *into > 100 {
					r.throw(fmt.Sprintf("toLocaleString: %s must be 0 to 100", name))
				}
				return true
			}
			switch s := o.Get("style"); {
			case s == nil || goja.IsUndefined(s) || s.String() == "decimal":
			case s.String() == "percent":
				percent, high = true, 0
			default:
				r.throw(fmt.Sprintf("toLocaleString: style %q is not supported: decimal and percent are", short(s.String(), 40)))
			}
			if v := o.Get("useGrouping"); v != nil && !goja.IsUndefined(v) {
				grouping = v.ToBoolean()
			}
			min := digits("minimumFractionDigits", &low)
			max := digits("maximumFractionDigits", &high)
			if low > high && min && max {
				r.throw("toLocaleString: minimumFractionDigits is above maximumFractionDigits")
			} else if low > high && max {
				low = high
			} else if low > high {
				high = low
			}
		}
		if percent {
			n = roundTo(n*100, high) / 100
		} else {
			n = roundTo(n, high)
		}
		options := []number.Option{number.MinFractionDigits(low), number.MaxFractionDigits(high)}
		if !grouping {
			options = append(options, number.NoSeparator())
		}
		p := message.NewPrinter(tag)
		if percent {
			return vm.ToValue(p.Sprint(number.Percent(n, options...)))
		}
		return vm.ToValue(p.Sprint(number.Decimal(n, options...)))
	}), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_FALSE)
}

// roundTo rounds to so many digits, halves away from zero: the formatter
// would round them to even.
func roundTo(n float64, digits int) float64 {
	if digits > 20 || math.Abs(n) >= 1e15 {
		return n
	}
	text := new(big.Rat).SetFloat64(n).FloatString(digits) // halves away from zero
	rounded, _ := strconv.ParseFloat(text, 64)
	return rounded
}
