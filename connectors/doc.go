// Package connectors knows how a method is called: it builds requests from
// what a connector file says (package definition), runs the hooks around them
// and reads the answers.
//
// [Caller.Call] makes one call; it never decides when. [Caller.Refresh] asks a
// token endpoint or calls the login method.
//
// How a call went wrong is told by two types: an [AuthError] is a credential
// that showed that it is dead, a [CallError] is everything else.
package connectors
