package hooks

import (
	"encoding/json"
	"math"
	"os"

	"github.com/dop251/goja"
)

// maxStorageCalls bounds the calls of storage functions in one event.
const maxStorageCalls = 1000

// storageFunctions are those of both families.
var storageFunctions = func() (all []storageFunction) {
	for _, family := range []string{"cyclr", "cycle"} {
		for _, op := range []string{"list_values", "list_keys", "get", "set", "append", "delete", "delete_all", "increment", "decrement"} {
			all = append(all, storageFunction{name: family + "_storage_" + op, op: op, cycle: family == "cycle"})
		}
	}
	return all
}()

type storageFunction struct {
	name, op string
	cycle    bool
}

// storage makes the storage functions. The worker, which has Redis, answers them.
func (r *run) storage(set func(string, func(goja.FunctionCall) goja.Value)) {
	for _, f := range storageFunctions {
		set(f.name, func(c goja.FunctionCall) goja.Value {
			req := StorageRequest{Cycle: f.cycle, Op: f.op}
			switch f.op {
			case "list_values", "list_keys", "delete_all":
			default:
				req.Key = r.storable(c.Argument(0))
			}
			switch f.op {
			case "set", "append":
				req.Value = r.storable(c.Argument(1))
			case "increment", "decrement":
				req.Amount = 1
				if a := c.Argument(1); !goja.IsUndefined(a) && !goja.IsNull(a) {
					req.Amount = a.ToFloat()
				}
				if math.IsNaN(req.Amount) || math.IsInf(req.Amount, 0) {
					r.throw(f.name + ": the amount is no number")
				}
			}
			return r.askStorage(f.name, req)
		})
	}
}

// storable is a value as it is stored: text, an object as its JSON.
func (r *run) storable(v goja.Value) string {
	o, ok := v.(*goja.Object)
	if !ok {
		return text(v)
	}
	raw, err := r.stringify(o)
	if err != nil {
		panic(err)
	}
	if raw == nil || raw[0] == '"' { // a Date, a String
		return o.String()
	}
	return string(raw)
}

func (r *run) askStorage(name string, req StorageRequest) goja.Value {
	if r.stored++; r.stored > maxStorageCalls {
		r.tooMuch("%s called storage functions more than %d times", r.ev.subject(), maxStorageCalls)
	}
	body, err := json.Marshal(req)
	if err != nil {
		r.throw(name + ": " + err.Error())
	}
	kind, answer := r.ask(frameStorage, body)
	if kind == frameFault {
		r.throw(name + ": " + string(answer))
	}
	v, err := r.parseJSON(answer)
	if err != nil {
		r.throw(name + ": " + err.Error())
	}
	return v
}

// ask has the worker do what a host cannot, and waits for its answer.
func (r *run) ask(kind byte, body []byte) (byte, []byte) {
	if len(body) > maxOutput {
		r.tooMuch("%s sent more than %d MiB", r.ev.subject(), maxOutput>>20)
	}
	if err := writeFrame(r.h.out, kind, body); err != nil {
		os.Exit(0)
	}
	for {
		kind, answer, err := readFrame(r.h.in)
		switch {
		case err != nil:
			os.Exit(0)
		case kind == frameEvent:
			r.h.ahead = append(r.h.ahead, answer)
		case kind == frameLate:
			r.tooLate()
		default:
			return kind, answer
		}
	}
}
