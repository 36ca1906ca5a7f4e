package connectors

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
)

// system resolves the merge fields that neither a parameter nor the
// credential's own secrets and properties supply.
func (x *exchange) system(name string) (v any, known, foreign bool) {
	form, formatted := strings.CutPrefix(name, mergefields.LastRunForm)
	var text string
	switch {
	case formatted:
		return dates.Format(x.lastRun(), strings.TrimSpace(form)), true, false
	case name == mergefields.LastRun:
		return dates.Text(x.lastRun()), true, false
	case name == "CycleId":
		text, foreign = x.call.Cycle.CycleID, true
	case name == "CycleStepId":
		text, foreign = x.call.Cycle.CycleStepID, true
	case name == "TransactionId":
		text, foreign = x.call.Cycle.TransactionID, true
	case slices.Contains(mergefields.Supplied, name):
		v, err := jsontree.Decode(x.given[name])
		if err != nil {
			return nil, true, true
		}
		return v, true, true
	default:
		return nil, false, false
	}
	if text == "" {
		return nil, true, foreign
	}
	return text, true, foreign
}

// lastRun is the step's last successful run date, without one the epoch.
func (x *exchange) lastRun() time.Time {
	if x.call.LastRun.IsZero() {
		return time.Unix(0, 0)
	}
	return x.call.LastRun
}

// context is script_execution_context.
func (x *exchange) context() string {
	if x.call.Context == "" {
		return executionContext
	}
	return x.call.Context
}

// responseFields are the locations of the method's response fields, and
// fieldsInUse those that the flow goes on with.
func (x *exchange) responseFields() json.RawMessage {
	all := []string{}
	for _, f := range x.m.Fields {
		if f.Field != "" {
			all = append(all, f.Field)
		}
	}
	raw, _ := jsontree.Marshal(all)
	return raw
}

func (x *exchange) fieldsInUse() json.RawMessage {
	if len(x.call.FieldsInUse) == 0 {
		return json.RawMessage(`[]`)
	}
	raw, _ := jsontree.Marshal(x.call.FieldsInUse)
	return raw
}
