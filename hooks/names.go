package hooks

import (
	"slices"
	"sync"

	"github.com/dop251/goja"
)

// functionNames are the functions and objects of ours that every event has.
var functionNames = slices.Concat([]string{"atob", "btoa", "console", "http_request", "cyclr_sign", "cyclr_csv_parse", "cyclr_xml_serialize", "cyclr_xml_deserialize",
	"moment", "CryptoJS", "crypto", "require"}, storageNames())

func storageNames() (all []string) {
	for _, f := range storageFunctions {
		all = append(all, f.name)
	}
	return all
}

// exceptionNames are the classes whose instances mean something to the pool.
var exceptionNames = []string{string(AuthRefresh), string(AuthSession), string(RetryLater)}

// Datum is a global that holds data of events. Which these are is for the
// caller of an Engine to keep to; that hooks.d.ts says the same, and package
// connectors does the same, their tests see to.
type Datum struct {
	Name   string
	Events []string // that have it
	Writes []string // those of them in which a change has an effect
}

// Groups of events that see the same.
var (
	callEvents    = []string{"before_action", "after_action", "after_action_paging", "after_error", "action_condition"}
	answerEvents  = []string{"after_action", "after_action_paging", "action_condition"}
	webhookEvents = []string{"before_webhook", "after_webhook"}
	tokenEvents   = []string{"before_oauth2_authorise", "before_oauth2_token", "after_oauth2_token", "before_oauth2_refresh", "after_oauth2_refresh"}
	beforeToken   = []string{"before_oauth2_token", "before_oauth2_refresh"}
	afterToken    = []string{"after_oauth2_token", "after_oauth2_refresh"}
)

// Data are the globals of all events, by name.
var Data = []Datum{
	{"action_data", events(callEvents, webhookEvents, tokenEvents), events(callEvents, webhookEvents, tokenEvents)},
	{"cycle_id", EventNames, nil},
	{"cycle_step_id", EventNames, nil},
	{"cycle_variables", EventNames, nil},
	{"cyclr_account_id", EventNames, nil},
	{"external_account_id", EventNames, nil},
	{"last_successful_run_date", EventNames, nil},
	{"method_auth_value", EventNames, nil},
	{"method_endpoint", events(callEvents, webhookEvents, []string{"before_oauth2_authorise"}), []string{"before_action", "before_oauth2_authorise"}},
	{"method_error", []string{"after_error"}, []string{"after_error"}},
	{"method_name", events(callEvents, webhookEvents), nil},
	{"method_request", events(callEvents, webhookEvents, beforeToken), events([]string{"before_action"}, beforeToken)},
	{"method_request_headers", events(callEvents, webhookEvents, beforeToken), events([]string{"before_action"}, beforeToken)},
	{"method_request_mergefields", events(callEvents, webhookEvents), events(callEvents, webhookEvents)},
	{"method_request_method", webhookEvents, nil},
	{"method_request_parameters", events(callEvents, webhookEvents), []string{"before_action"}},
	{"method_response", events(answerEvents, webhookEvents, afterToken), events([]string{"after_action", "after_action_paging"}, webhookEvents, afterToken)},
	{"method_response_fields", EventNames, nil},
	{"method_response_fields_in_use", EventNames, nil},
	{"method_response_headers", events(answerEvents, []string{"before_webhook"}, afterToken), []string{"before_webhook"}},
	{"next_last_successful_run_date", []string{"after_action_paging"}, []string{"after_action_paging"}},
	{"reasonPhrase", answerEvents, nil},
	{"script_execution_context", EventNames, nil},
	{"script_parameters", EventNames, nil},
	{"session_properties", events(callEvents, webhookEvents), events(callEvents, webhookEvents)},
	{"statusCode", events(callEvents, webhookEvents), nil},
	{"transaction_id", EventNames, nil},
}

func events(groups ...[]string) []string { return slices.Concat(groups...) }

func dataNames() (all []string) {
	for _, d := range Data {
		all = append(all, d.Name)
	}
	return all
}

// Names are all global names that a script finds without declaring them:
// functions, data, exceptions and what the language itself has. Sorted.
var Names = sync.OnceValue(func() []string {
	all := slices.Concat(functionNames, exceptionNames, dataNames(), goja.New().GlobalObject().GetOwnPropertyNames())
	slices.Sort(all)
	return slices.Compact(all)
})
