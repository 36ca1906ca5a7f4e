// Package definition knows what a connector file says: its format, what is
// wrong with one, and what can come to nothing in it.
//
// [Load] and [Check] read files strictly and report every finding at once, with
// its place. What is written in the language of connector files elsewhere is
// read here, too: a step's script ([CheckStep]) and mappings ([ParseMapping]),
// and an operator's partner settings ([ParsePartnerSettings]).
//
// It knows nothing of how a call goes: that is package connectors, which
// imports this one.
package definition
