package connectors

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
)

// numeric is text that a JavaScript number holds without loss.
var numeric = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// evaluate runs inline script. ok is false where it comes to nothing, or a
// merge field in it has no value.
func (x *exchange) evaluate(ctx context.Context, in *inline.Script, look mergefields.Lookup) (v any, ok bool, err error) {
	globals := x.inlineGlobals()
	for _, f := range in.Fields {
		v, known, _, err := mergefields.Value(f.Name, f.Format, look)
		if err != nil {
			return nil, false, err
		}
		if !known {
			return nil, false, &mergefields.Error{Text: fmt.Sprintf("unknown merge field {{%s}}", f.Name)}
		}
		text, has := jsontree.Text(v)
		if !has {
			return nil, false, nil
		}
		if f.Text {
			v = text
		} else if s, isText := v.(string); isText && len(s) <= 16 && numeric.MatchString(s) {
			v = json.Number(s)
		}
		raw, err := jsontree.Marshal(v)
		if err != nil {
			return nil, false, err
		}
		globals = append(globals, hooks.Global{Name: f.Variable, JSON: raw})
	}
	out, err := x.c.cfg.Engine.Run(ctx, &hooks.Event{
		Name: "inline", Inline: true, Scripts: []hooks.Script{in.Hook()}, Globals: globals, Storage: &scriptStorage{x}, Urgent: x.call.Urgent,
	})
	if _, err := x.ended(out, err); err != nil {
		var ce *CallError
		if errors.As(err, &ce) && ce.Kind == "limit" && ce.At == "" { // what ran too long has no place of its own
			line, column := in.PlaceOf(1, 1)
			ce.At = fmt.Sprintf("%s:%d:%d", in.File, line, column)
		}
		return nil, false, err
	}
	if out.Result == nil {
		return nil, false, nil
	}
	v, err = jsontree.Decode(out.Result)
	if errors.Is(err, jsontree.ErrTooDeep) {
		return nil, false, &CallError{Kind: "limit", Limit: LimitDepth, Message: "inline script: " + err.Error()}
	}
	return v, err == nil, err
}

// inlineGlobals are what inline script sees: the call's place in the world,
// and nothing of the request that it is to become part of.
func (x *exchange) inlineGlobals() []hooks.Global {
	g := x.placeGlobals()
	return append(g, hooks.Global{Name: "method_name", JSON: jsontree.Quote(x.m.Name)})
}
