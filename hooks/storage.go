package hooks

import (
	"encoding/json"
	"fmt"
	"math"
	"os"

	"github.com/dop251/goja"
)

// maxStorageCalls bounds the calls of storage functions in one event.
const maxStorageCalls = 1000

// storageOps are the functions behind cyclr_storage_ and cycle_storage_, and
// how many arguments each takes.
var storageOps = []struct {
	name      string
	arguments int
}{
	{"list_values", 0}, {"list_keys", 0}, {"get", 1}, {"set", 2}, {"append", 2}, {"delete", 1}, {"delete_all", 0}, {"increment", 2}, {"decrement", 2},
}

// storage makes the storage functions. The worker, which has Redis, answers them.
func (r *run) storage(set func(string, func(goja.FunctionCall) goja.Value)) {
	for _, family := range []string{"cyclr", "cycle"} {
		for _, op := range storageOps {
			name := family + "_storage_" + op.name
			set(name, func(c goja.FunctionCall) goja.Value {
				req := StorageRequest{Cycle: family == "cycle", Op: op.name}
				if op.arguments > 0 {
					req.Key = r.storable(c.Argument(0))
				}
				switch op.name {
				case "set", "append":
					req.Value = r.storable(c.Argument(1))
				case "increment", "decrement":
					req.Amount = 1
					if a := c.Argument(1); !goja.IsUndefined(a) && !goja.IsNull(a) {
						req.Amount = a.ToFloat()
					}
					if math.IsNaN(req.Amount) || math.IsInf(req.Amount, 0) {
						r.throw(name + ": the amount is no number")
					}
				}
				return r.askStorage(name, req)
			})
		}
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
		panic(&limitSignal{fmt.Sprintf("%s called storage functions more than %d times", r.ev.name, maxStorageCalls)})
	}
	body, err := json.Marshal(req)
	if err != nil {
		r.throw(name + ": " + err.Error())
	}
	kind, answer := r.ask(frameStorage, body)
	if kind == frameFault {
		r.throw(name + ": " + string(answer))
	}
	v, err := parseJSON(r.vm, answer)
	if err != nil {
		r.throw(name + ": " + err.Error())
	}
	return v
}

// ask has the worker do what a host cannot, and waits for its answer.
func (r *run) ask(kind byte, body []byte) (byte, []byte) {
	if len(body) > maxOutput {
		panic(&limitSignal{fmt.Sprintf("%s sent more than %d MiB", r.ev.name, maxOutput>>20)})
	}
	if err := writeFrame(os.Stdout, kind, body); err != nil {
		os.Exit(0)
	}
	kind, answer, err := readFrame(r.h.in)
	if err != nil {
		os.Exit(0)
	}
	return kind, answer
}
