package connectors

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// Definition is one connector file, checked.
type Definition struct {
	Name         string
	Title        string
	File         string // as shown in findings
	BaseURL      string
	DataType     DataType
	ContentType  string
	Headers      map[string]string
	IgnoreAuth   bool
	Auth         Auth
	LoginMethod  string // post_install.property_lookup_method
	TestMethod   string // post_install.test_auth_method
	LogoutMethod string // post_install.logout_method
	Parameters   []Parameter
	Script       *hooks.Script // LevelConnector, nil without
	Methods      map[string]*Method
	MethodNames  []string // in file order
	SessionNames []string // names of parameters with property: session
	RateLimits   []RateLimit

	line, column int      // where its name stands
	digest       [32]byte // SHA-256 of its file
	text         string   // the file itself, to show an author's line
}

// DataType of a request or response body.
type DataType string

const (
	JSON      DataType = "json"
	Form      DataType = "form"
	PlainText DataType = "plain_text"
	UnknownDT DataType = "unknown"
)

// Auth is how a connector's requests are authenticated.
type Auth struct {
	Type         string // none api_key basic oauth1 oauth2
	Grant        string // authorization_code client_credentials password jwt_bearer
	AuthorizeURL string
	TokenURL     string
	Scopes       []string
	AuthStyle    string // auto header params private_key_jwt
	Issuer       string // of an assertion: templates, "" the default
	Subject      string
	Audience     string // of both kinds of assertion
	KeyID        string
	Claims       *OrderedMap // nil without
	Signature    string      // oauth1: HMAC-SHA1 HMAC-SHA256 RSA-SHA1
	RefreshOn    []int
	Hosts        []string
	In           string // api_key: header (default), query or body
	Name         string // api_key: default Authorization
	Prefix       string
}

// Parameter of a connector or a method.
type Parameter struct {
	Name      string
	Target    string // http_header merge_field query_string script
	As        string // name on the wire; "" is Name
	Value     any    // fixed; nil without. JSON-like: string, float64/int64, bool, []any, map[string]any
	HasValue  bool
	Default   any
	HasDef    bool
	Type      string
	Optional  bool
	Sensitive bool
	Property  string // "", account, partner, session
}

// Method is one callable operation.
type Method struct {
	Name        string
	Type        MethodType
	Verb        string
	Endpoint    string
	DataType    DataType
	ResponseDT  DataType
	ContentType string
	Headers     map[string]string
	IgnoreAuth  bool
	Timeout     time.Duration // 0: --call-timeout
	Body        any           // JSON-like tree with order kept (see OrderedMap), nil without
	HasBody     bool
	Parameters  []Parameter // connector's and method's merged
	Fields      []ResponseField
	Retry       string        // safe always never
	Idempotency string        // idempotency_header
	Script      *hooks.Script // LevelMethod, nil without
	IsLogin     bool
	RateLimits  []RateLimit // its own, else the connector's

	dropped []Parameter // the connector's that the method leaves out: templates may name them
}

// MethodType says what a method does: call the API, run script alone, or judge
// a request that somebody sent.
type MethodType string

// The types of methods.
const (
	TypeAction  MethodType = "action"
	TypeScript  MethodType = "script"
	TypeWebhook MethodType = "webhook"
)

// mayRepeat says that a call may be made again though it may have reached the
// server.
func (m *Method) mayRepeat() bool { return m.Retry == "always" || m.Retry == "safe" && safe(m.Verb) }

func safe(verb string) bool {
	return slices.Contains([]string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}, verb)
}

// ResponseField names where in an answer a value stands.
type ResponseField struct {
	Field, Header, Cookie string // one of them
	System                string
	Type                  string
}

// PartnerSettings are what an operator supplies for one connector.
type PartnerSettings struct {
	ClientID     string
	ClientSecret string
	PrivateKey   credentials.Secret
	Properties   map[string]json.RawMessage
}

// Finding is one mistake (or hint) in a connector file.
type Finding struct {
	File         string
	Line, Column int
	Text         string
	Hint         bool // only `worker check` prints it; `worker run` starts
}
