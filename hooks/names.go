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

// dataNames are the globals of the events, all together: which event has which
// is its caller's to say.
var dataNames = []string{
	"action_data", "cycle_id", "cycle_step_id", "cycle_variables", "cyclr_account_id", "external_account_id", "method_auth_value",
	"method_endpoint", "method_error", "method_name", "method_request", "method_request_headers", "method_request_mergefields",
	"method_request_parameters", "method_response", "method_response_headers", "reasonPhrase", "script_execution_context",
	"script_parameters", "session_properties", "statusCode", "transaction_id",
}

// Names are all global names that a script finds without declaring them:
// functions, data, exceptions and what the language itself has. Sorted.
var Names = sync.OnceValue(func() []string {
	all := slices.Concat(functionNames, exceptionNames, dataNames, goja.New().GlobalObject().GetOwnPropertyNames())
	slices.Sort(all)
	return slices.Compact(all)
})
