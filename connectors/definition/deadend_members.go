package definition

import (
	"slices"

	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// members finds names in scripts that no parameter declares.
func (e *deadEnds) members() {
	if e.d.Script != nil {
		e.membersOf(e.d.Script, e.d.MethodNames)
	}
	for _, name := range e.d.MethodNames {
		if s := e.d.Methods[name].Script; s != nil {
			e.membersOf(s, []string{name})
		}
	}
}

// membersOf looks at one script, which runs in these methods.
func (e *deadEnds) membersOf(s *hooks.Script, methods []string) {
	in := hooks.Inspect(s)
	if in == nil {
		return
	}
	with := func(target string) (names []string) {
		for _, m := range methods {
			for _, q := range e.d.Methods[m].Parameters {
				if q.Target == target {
					names = append(names, q.Wire())
				}
			}
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	e.member(in, "method_request_mergefields", with("merge_field"), "no parameter of target merge_field has that name")
	e.member(in, "script_parameters", with("script"), "no parameter of target script has that name")
	session := append(slices.Clone(e.d.SessionNames), "session_expires")
	e.member(in, sessionGlobal, session, "no parameter with property: session has that name")
	_, writes := in.Members(sessionGlobal)
	for _, m := range writes {
		if !slices.Contains(session, m.Name) {
			e.p.findings = append(e.p.findings, hintAt(s, m, "session_properties.%s: no parameter with property: session has that name, so nothing uses it%s", m.Name, strictjson.DidYouMean(m.Name, session)))
		}
	}
}

// objectMembers are what every object has.
var objectMembers = []string{"hasOwnProperty", "toString", "valueOf", "propertyIsEnumerable", "isPrototypeOf", "toLocaleString", "constructor"}

// member finds members that are read and that neither a declaration nor a
// script of this connector puts there.
func (e *deadEnds) member(in *hooks.Inspection, object string, known []string, why string) {
	reads, _ := in.Members(object)
	for _, m := range reads {
		if slices.Contains(known, m.Name) || slices.Contains(objectMembers, m.Name) || e.writes(object, m.Name) || e.computed(object) {
			continue
		}
		e.p.findings = append(e.p.findings, hintAt(in.Script, m, "%s.%s is never there: %s%s", object, m.Name, why, strictjson.DidYouMean(m.Name, known)))
	}
}

// writes says that some script of the connector sets a member.
func (e *deadEnds) writes(object, name string) bool {
	return slices.ContainsFunc(e.scripts(nil), func(s *hooks.Script) bool {
		in := hooks.Inspect(s)
		if in == nil {
			return true
		}
		_, writes := in.Members(object)
		return slices.ContainsFunc(writes, func(m hooks.Mention) bool { return m.Name == name })
	})
}

// computed says that a script uses the object in other ways than by a plain
// member, so that what is in it cannot be told.
func (e *deadEnds) computed(object string) bool {
	return slices.ContainsFunc(e.scripts(nil), func(s *hooks.Script) bool {
		in := hooks.Inspect(s)
		if in == nil {
			return true
		}
		reads, writes := in.Members(object)
		return in.Uses[object] > len(reads)+len(writes)
	})
}
