package mergefields

// OfCredential are merge fields that a credential or the system supplies.
var OfCredential = []string{"username", "password", "api_key", "client_id", "client_secret", "access_token",
	"Cyclr_Auth_ApiKey", "Cyclr_Auth_Username", "Cyclr_Auth_Password"}

// LastRun is the merge field of the step's last successful run date. It
// may say its form: {{LastSuccessfulRunDate format=yyyy-MM-dd}}.
const (
	LastRun     = "LastSuccessfulRunDate"
	LastRunForm = LastRun + " format="
)

// OfAccount are the account's merge fields, OfCall those that only a
// call knows. What a step alone supplies (Supplied) it does by a
// parameter of that name, which no connector has to declare.
var (
	OfAccount = []string{"AccountId", "AccountExternalId"}
	OfCall    = []string{LastRun, "CycleId", "CycleStepId", "TransactionId"}
	Supplied  = []string{WebhookID, "Cyclr_Webhook_Url", "CyclrObjectName"}
)

// WebhookID is what scripts see among the query's parameters, too.
const WebhookID = "Cyclr_Webhook_Id"
