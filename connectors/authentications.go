package connectors

import "go.yaml.in/yaml/v4"

// authFields is the auth type that puts what the account gave into bodies.
const authFields = "auth_fields"

// AuthField is one of them.
type AuthField struct {
	Name string // for people, and in the credential's fields
	Key  string // its location in the body; default Name
	Type string
}

// Authentication is a named alternative; a credential names the one it has.
type Authentication struct {
	Name    string
	Default bool
	Auth    Auth
}

func (p *fileParser) authFields(n *yaml.Node, a *Auth) {
	p.sequence(n, func(n *yaml.Node) {
		f := AuthField{}
		p.mapping(n, "an auth field", keys{"name": p.text(&f.Name), "key": p.text(&f.Key), "type": p.enum(&f.Type, fieldTypes)})
		if f.Name == "" {
			p.find(n, "an auth field needs a name")
		}
		if f.Key == "" {
			f.Key = f.Name
		}
		a.Fields = append(a.Fields, f)
	})
}

func (p *fileParser) authentications(n *yaml.Node) {
	p.sequence(n, func(n *yaml.Node) {
		a := Authentication{}
		p.mapping(n, "an authentication", keys{"name": p.text(&a.Name), "default": p.boolean(&a.Default), "auth": p.auth(&a.Auth)})
		p.def.Authentications = append(p.def.Authentications, a)
	})
}
