package connectors

import (
	"encoding/json"
	"fmt"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/credentials"
)

// styleName is under what the connector's way of client authentication is
// kept: each alternative has one of its own.
func styleName(d *definition.Connector) string {
	if d.Alternative == "" {
		return d.Name
	}
	return d.Name + "/" + d.Alternative // no connector's name has a slash
}

// noPlace is a call of a method that has no place for what stands in bodies.
func (x *exchange) noPlace(what, it string) error {
	return &CallError{Kind: "input", Message: fmt.Sprintf("%s, and one of data_type %s has no place for %s: method %q cannot be called with this credential", what, x.m.DataType, it, x.m.Name)}
}

// authenticatedBody is what is sent: the body as the hooks left it and what the
// connector's authentication adds to it, which no later hook sees.
func (x *exchange) authenticatedBody(given string) (body []byte, contentType string, err error) {
	before := x.body
	defer func() { x.body = before }()
	if err := x.keyInBody(); err != nil {
		return nil, "", err
	}
	if err := x.fieldsInBody(); err != nil {
		return nil, "", err
	}
	return x.encodeBody(given)
}

// fieldsInBody puts the credential's fields into the body, where nobody else
// put something. A request without a body has one for them if its verb takes one.
func (x *exchange) fieldsInBody() error {
	a := &x.d.Auth
	none := len(x.body) == 0 || string(x.body) == "null"
	if a.Type != definition.AuthFields || x.m.IgnoreAuth || none && !definition.MakesBody(x.m.Verb) {
		return nil
	}
	const what = "the authentication's fields stand in the body (auth_fields)"
	bad := func(text string) error {
		return &CallError{Kind: "input", Message: what + ", " + text}
	}
	if !a.HasPlaceIn(x.m.DataType) {
		return x.noPlace(what, "them")
	}
	var tree any
	if !none {
		var err error
		if tree, err = jsontree.Decode(x.body); err != nil {
			return bad("so the body must be an object")
		}
	}
	if _, object := tree.(*jsontree.Object); !none && !object {
		return bad("so the body must be an object")
	}
	var root any
	if m, ok := tree.(*jsontree.Object); ok && membersOf(x.m, m) != m { // of XML within its root element
		root, tree = tree, membersOf(x.m, m)
	}
	for _, f := range a.Fields {
		if _, there := location.Member(tree, f.Steps); there {
			continue
		}
		secret := x.cred.Secrets.Fields[f.Name]
		if secret.Empty() {
			return lacks(x.d, fmt.Sprintf("field %q (fields)", f.Name))
		}
		var v any = secret.Reveal()
		var ok bool
		if f.Type != "" {
			if v, ok = jsontree.Coerce(v, f.Type); !ok {
				return bad(fmt.Sprintf("and field %q of the credential is not of type %s", f.Name, f.Type))
			}
		}
		if tree, ok = location.Lay(tree, f.Steps, v); !ok {
			return bad(fmt.Sprintf("and the body has something else than an object on the way to %q", f.Key))
		}
	}
	if root != nil { // tree is a part of it
		tree = root
	}
	var err error
	x.body, err = jsontree.Marshal(tree)
	return err
}

// fieldsValue is method_auth_value of auth_fields: the fields as JSON text.
func fieldsValue(d *definition.Connector, cred *credentials.Credential) json.RawMessage {
	all := &jsontree.Object{}
	for _, f := range d.Auth.Fields {
		if v, ok := cred.Secrets.Fields[f.Name]; ok {
			all.Set(f.Name, v.Reveal())
		}
	}
	text, _ := jsontree.Marshal(all) // texts alone
	return jsontree.Quote(string(text))
}
