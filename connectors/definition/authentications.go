package definition

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// AuthField is what an account gave of auth type auth_fields.
type AuthField struct {
	Name string // for people, and in the credential's fields
	Key  string // its location in the body; default Name
	Type string

	Steps []location.Step // Key, read
}

// Authentication is a named alternative; a credential names the one it has.
type Authentication struct {
	Name    string
	Default bool
	Auth    Auth
}

// For is the definition with the authentication that a credential has: what is
// done with a credential is done by this one. ok is false for a name that the
// connector does not have.
func (d *Connector) For(cred *credentials.Credential) (v *Connector, ok bool) {
	if cred.Authentication == "" {
		return d, true
	}
	v, ok = d.variants[cred.Authentication]
	return v, ok
}

// NearestAuthentication is the alternative that a name was perhaps meant to be.
func (d *Connector) NearestAuthentication(name string) string {
	names := make([]string, len(d.Authentications))
	for i := range d.Authentications {
		names[i] = d.Authentications[i].Name
	}
	return strictjson.Nearest(name, names)
}

// LacksAuthentication says that a credential names an alternative that there is none of.
func (d *Connector) LacksAuthentication(cred *credentials.Credential) string {
	text := fmt.Sprintf("connector %q has no authentication %q, which the credential names", d.Name, cred.Authentication)
	if near := d.NearestAuthentication(cred.Authentication); near != "" {
		text += fmt.Sprintf("; did you mean %q?", near)
	}
	return text
}

// authFieldNames are the fields that credentials may have, of any alternative.
func (d *Connector) authFieldNames() (all []string) {
	for _, f := range d.Auth.Fields {
		all = append(all, f.Name)
	}
	for _, a := range d.Authentications {
		for _, f := range a.Auth.Fields {
			all = append(all, f.Name)
		}
	}
	return all
}

var authFieldTypes = slices.DeleteFunc(slices.Clone(fieldTypes), func(t string) bool { return t == "file" })

func (p *fileParser) authFields(n *yaml.Node, a *Auth) {
	p.sequence(n, func(n *yaml.Node) {
		f := AuthField{}
		p.mapping(n, "an auth field", keys{"name": p.name(&f.Name), "key": p.text(&f.Key), "type": p.enum(&f.Type, authFieldTypes)})
		if f.Name == "" {
			p.find(n, "an auth field needs a name")
			return
		}
		if slices.ContainsFunc(a.Fields, func(other AuthField) bool { return other.Name == f.Name }) {
			p.find(n, "auth field %q is declared twice", f.Name)
		}
		if f.Key == "" {
			f.Key = f.Name
		}
		var err error
		if f.Steps, err = location.Parse(f.Key); err != nil {
			p.find(n, "auth field %q: key %q: %v", f.Name, f.Key, err)
		} else if location.HasList(f.Steps) {
			p.find(n, "auth field %q: key %q leads through a list, and a field stands in an object", f.Name, f.Key)
		}
		for _, other := range a.Fields {
			outer, inner := &other, &f
			if len(outer.Steps) > len(inner.Steps) {
				outer, inner = inner, outer
			}
			if len(outer.Steps) > 0 && slices.Equal(outer.Steps, inner.Steps[:len(outer.Steps)]) && other.Name != f.Name {
				p.find(n, "auth fields %q and %q cannot both stand in a body: %q is within %q", other.Name, f.Name, inner.Key, outer.Key)
			}
		}
		a.Fields = append(a.Fields, f)
	})
}

func (p *fileParser) authentications(n *yaml.Node) {
	chosen := ""
	p.sequence(n, func(n *yaml.Node) {
		a := Authentication{}
		got := p.mapping(n, "an authentication", keys{"name": p.name(&a.Name), "default": p.boolean(&a.Default), "auth": p.auth(&a.Auth)})
		switch {
		case a.Name == "":
			p.find(n, "an authentication needs a name")
		case slices.ContainsFunc(p.def.Authentications, func(other Authentication) bool { return other.Name == a.Name }):
			p.find(n, "authentication %q is declared twice", a.Name)
		}
		if got["auth"] == nil {
			p.find(n, "authentication %q: key \"auth\" is missing", a.Name)
		}
		if a.Default && chosen != "" {
			p.find(got["default"], "authentication %q is a default too: %q is it already, and there is one", a.Name, chosen)
		} else if a.Default {
			chosen = a.Name
		}
		p.def.Authentications = append(p.def.Authentications, a)
	})
	if len(p.def.Authentications) == 0 {
		if n.Kind == yaml.SequenceNode {
			p.find(n, "authentications: there is none")
		}
		return
	}
	if chosen == "" {
		p.def.Authentications[0].Default = true
	}
	for _, a := range p.def.Authentications {
		if a.Default {
			p.def.Auth = a.Auth
			break
		}
	}
}

// bodiesOf finds methods whose bodies have no place for what an authentication
// puts there; of is the name of an alternative. A credential may have another,
// and a script may make another body, so it is a hint.
func (p *fileParser) bodiesOf(a *Auth, of string) {
	what, it, such := "fields", "them", ""
	switch {
	case a.Type == "api_key" && a.In == "body":
		what, it = "a key", "it"
	case a.Type != AuthFields:
		return
	}
	if of != "" {
		of, such = fmt.Sprintf(", of authentication %q,", of), " with such a credential"
	}
	for _, name := range p.def.MethodNames {
		m := p.def.Methods[name]
		if m.Type == TypeAction && !m.IgnoreAuth && (m.HasBody || MakesBody(m.Verb)) && !a.HasPlaceIn(m.DataType) {
			p.hint(p.places[&m.Name], "method %q: auth type %s%s puts %s into bodies, and one of data_type %s has no place for %s: a call%s fails; ignore_auth: true sends it without", name, a.Type, of, what, m.DataType, it, such)
		}
	}
}

// HasPlaceIn says that a body of this type has a place for what stands in bodies.
func (a *Auth) HasPlaceIn(t DataType) bool {
	if a.Type == AuthFields {
		return slices.Contains(memberTypes, t)
	}
	return t != PlainText && t != SimpleFile
}

// memberTypes are the data types whose bodies have members.
var memberTypes = []DataType{JSON, Form, XML, File}

// MakesBody says that a request of this verb has a body for auth fields to
// stand in, whether or not anything else does.
func MakesBody(verb string) bool { return verb == "POST" || verb == "PUT" || verb == "PATCH" }

// alternatives makes a definition for each named authentication. They share
// all else, so it comes after everything that is read or checked.
func (p *fileParser) alternatives() {
	d := p.def
	if len(d.Authentications) == 0 {
		p.bodiesOf(&d.Auth, "")
		return
	}
	d.variants = map[string]*Connector{}
	for i := range d.Authentications {
		a := &d.Authentications[i]
		p.bodiesOf(&a.Auth, a.Name)
		v := *d
		v.Auth = a.Auth
		if !a.Default {
			v.Alternative = a.Name
		}
		d.variants[a.Name] = &v
	}
}
