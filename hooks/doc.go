// Package hooks runs connector authors' JavaScript. It knows JavaScript and
// nothing else of Stepworker.
//
// [Engine.Run] runs one event: the handlers of that name at connector, method
// and step level, in one fresh goja runtime, in a hook host: a child process
// of the same binary without network, files, environment or secrets beyond
// the event's own data, with limits on time, memory and call depth. What an
// event may change is explicit data that comes back in [Outcome.Changed]; a
// runtime never lives longer than its event. A host that dies or breaks a
// limit fails the event it ran with a [LimitError] and nobody else's.
//
// [CheckSource] and [Inspect] read scripts without running them; [Names] are
// the globals that they find there.
//
// Every main function and TestMain of a program that uses an Engine calls
// [HostMain] first.
package hooks

// EventNames are the events that scripts may handle.
var EventNames = []string{
	"before_webhook", "after_webhook", "before_action", "after_action", "after_action_paging", "after_error", "action_condition",
	"before_oauth2_authorise", "before_oauth2_token", "after_oauth2_token", "before_oauth2_refresh", "after_oauth2_refresh",
}
