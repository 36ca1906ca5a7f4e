package connectors

import (
	"github.com/tidwall/gjson"

	"github.com/stepworker/stepworker/connectors/location"
)

// dig reads a location in this call's answer.
func (x *exchange) dig(v gjson.Result, steps []location.Step, gap any) (out any, found bool) {
	return location.Dig(v, steps, x.lone(), gap)
}
