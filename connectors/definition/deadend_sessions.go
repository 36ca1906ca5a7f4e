package definition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/stepworker/stepworker/hooks"
)

const sessionGlobal = "session_properties"

// sessions finds logins that fill nothing, or need what nobody gives them.
func (e *deadEnds) sessions() {
	at := func(key string) *yaml.Node { return valueOf(e.root, "post_install", key) }
	if e.d.TestMethod != "" && e.d.TestMethod == e.d.LoginMethod {
		e.p.hint(at("test_auth_method"), "post_install.test_auth_method is the login method, which goes out without the session: it proves nothing about it")
	}
	for _, key := range []string{"property_lookup_method", "test_auth_method", "logout_method"} {
		if m := e.d.Methods[textOfNode(at(key))]; m != nil {
			e.given(m, key)
		}
	}
	login := e.d.Methods[e.d.LoginMethod]
	if login == nil {
		return
	}
	e.filled(login, at("property_lookup_method"))
	e.loggedOut(login)
}

// filled compares what the login finds with the session properties.
func (e *deadEnds) filled(login *Method, at *yaml.Node) {
	scripts := e.scripts(login)
	sets := named(scripts, sessionGlobal)
	if len(e.d.SessionNames) == 0 {
		if !sets {
			e.p.hint(at, "login method %q fills nothing: no parameter has property: session", login.Name)
		}
		return
	}
	var empty []string
	for _, name := range e.d.SessionNames {
		filled := slices.ContainsFunc(login.Fields, func(f ResponseField) bool { return strings.EqualFold(name, f.System) })
		if !filled && !named(scripts, name) {
			empty = append(empty, name)
		}
	}
	const how = "a response field of that system name fills one, or session_properties.NAME in a hook"
	switch {
	case len(empty) == len(e.d.SessionNames) && !sets:
		e.p.hint(at, "login method %q fills none of the session properties (%s): %s", login.Name, quotedList(empty), how)
	case len(empty) > 0 && (!sets || !e.computedMembers(scripts)):
		e.p.hint(at, "login method %q does not fill session property %s, and without it each login fails: %s", login.Name, quotedList(empty), how)
	}
}

// computedMembers says that a script may set properties by names that are not
// written down.
func (e *deadEnds) computedMembers(scripts []*hooks.Script) bool {
	return slices.ContainsFunc(scripts, func(s *hooks.Script) bool {
		rest := s.Source
		for {
			_, after, ok := strings.Cut(rest, sessionGlobal)
			if !ok {
				return false
			}
			if !strings.HasPrefix(strings.TrimSpace(after), ".") { // [name], = {…}, Object.assign(session_properties, …)
				return true
			}
			rest = after
		}
	})
}

// loggedOut finds templates of the login that use the session it is to open.
func (e *deadEnds) loggedOut(login *Method) {
	n := e.methodNode(login.Name)
	for _, key := range []string{"endpoint", "headers", "body"} {
		for _, t := range texts(valueOf(n, key)) {
			for _, name := range fieldsOf(t.Value) {
				q := find(login.Parameters, name)
				if q == nil || q.Property != "session" {
					continue
				}
				if key == "endpoint" && len(e.scripts(login)) == 0 {
					e.p.find(t, "login method %q goes out without the old session, so {{%s}} has no value here, and the URL needs it", login.Name, name)
				} else {
					e.p.hint(t, "login method %q goes out without the old session, so {{%s}} has no value here", login.Name, name)
				}
			}
		}
	}
	if absolute := textOfNode(valueOf(n, "endpoint")); strings.HasPrefix(absolute, "http") || strings.HasPrefix(absolute, "{{") || login.Type != TypeAction {
		return
	}
	base := valueOf(e.root, "base_url")
	for _, name := range fieldsOf(textOfNode(base)) {
		if q := find(login.Parameters, name); q != nil && q.Property == "session" && len(e.scripts(login)) == 0 {
			e.p.find(base, "base_url needs {{%s}}, which login method %q is to find out, and the login itself goes there: give it an absolute endpoint", name, login.Name)
		}
	}
}

// given finds required parameters of methods that no step calls.
func (e *deadEnds) given(m *Method, key string) {
	n := e.methodNode(m.Name)
	for i := range m.Parameters {
		q := &m.Parameters[i]
		if !stepsOnly(q) || q.Optional || q.Target == "response_field" || q.Target == "filter_field" || q.Target == "index" || named(e.scripts(m), q.Wire()) {
			continue
		}
		e.p.hint(e.parameterNode(n, q.Name), "method %q needs parameter %q, and as post_install.%s no step is there to supply it: give it a value or a property, or make it optional", m.Name, q.Name, key)
	}
}

// exceptions compares what says that a credential is dead with what can be
// renewed.
func (e *deadEnds) exceptions() {
	oauth, login := slices.Contains(e.authTypes(), "oauth2"), e.d.LoginMethod != ""
	thrown := map[string]bool{}
	for _, s := range e.scripts(nil) {
		in := hooks.Inspect(s)
		if in == nil {
			continue
		}
		for _, m := range in.Exceptions() {
			if first := !thrown[m.Name]; first {
				thrown[m.Name] = true
				e.vain(s, m, oauth, login)
			}
		}
	}
	if at := valueOf(e.root, "auth", "refresh_on"); len(items(at)) > 0 && !oauth && !login && e.d.TestMethod == "" {
		e.p.hint(at, "auth.refresh_on: nothing can be renewed here, with neither auth type oauth2 nor a login method; name a test_auth_method (post_install), which then tells a dead credential")
	}
	if login && len(e.d.SessionNames) > 0 && len(e.d.Auth.RefreshOn) == 0 && len(thrown) == 0 && !e.expires() {
		e.p.hint(valueOf(e.root, "post_install", "property_lookup_method"), "nothing says that a session is lost, so none is ever renewed: no auth.refresh_on, no AuthSessionException in a hook, no session_expires")
	}
}

// vain finds an exception that nothing comes of.
func (e *deadEnds) vain(s *hooks.Script, m hooks.Mention, oauth, login bool) {
	add := func(text string) { e.p.findings = append(e.p.findings, hintAt(s, m, "%s", text)) }
	switch {
	case m.Name == "AuthSessionException" && !login && oauth:
		add("AuthSessionException asks for a login, and there is no login method (post_install.property_lookup_method): a new token is asked for by AuthRefreshException")
	case m.Name == "AuthRefreshException" && !oauth && login:
		add("AuthRefreshException asks for a new token, and auth type is not oauth2: a login is asked for by AuthSessionException")
	case m.Name != "RetryLaterException" && !oauth && !login && e.d.TestMethod == "" && !fillsSession(e.d):
		add(m.Name + " finds nothing that could be renewed, with neither auth type oauth2 nor a login method: name a test_auth_method (post_install), which then tells a dead credential")
	}
}

func (e *deadEnds) expires() bool {
	return named(e.scripts(nil), "session_expires") || slices.ContainsFunc(e.d.MethodNames, func(m string) bool {
		return slices.ContainsFunc(e.d.Methods[m].Fields, func(f ResponseField) bool { return f.System == "session_expires" })
	})
}
