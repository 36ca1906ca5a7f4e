package definition

import (
	"slices"
	"time"

	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/hooks"
)

// Connector is one connector file, checked.
type Connector struct {
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
	// MaxConcurrent is how many calls may be under way at once for one
	// credential; 0: any number.
	MaxConcurrent int
	Paging        Paging
	// Authentications are named alternatives of which a credential picks one;
	// Auth is then the default one's.
	Authentications []Authentication
	Triggers        []Trigger

	// Alternative is which of them this definition has; "" the default one.
	Alternative string

	Digest [32]byte // SHA-256 of its file
	Source string   // the file itself, to show an author's line

	variants     map[string]*Connector // by the names of Authentications
	line, column int                   // where its name stands
}

// DataType of a request or response body.
type DataType string

const (
	JSON             DataType = "json"
	XML              DataType = "xml"
	Form             DataType = "form"
	File             DataType = "file" // multipart/form-data
	PlainText        DataType = "plain_text"
	SimpleFile       DataType = "simple_file"
	MultipartRelated DataType = "multipart_related" // of a request
	UnknownDT        DataType = "unknown"
)

var dataTypes = []string{string(JSON), string(XML), string(Form), string(File), string(PlainText), string(SimpleFile), string(MultipartRelated), string(UnknownDT)}

// Auth is how a connector's requests are authenticated.
type Auth struct {
	Type         string // none api_key basic oauth1 oauth2 auth_fields
	Grant        string // authorization_code client_credentials password jwt_bearer
	AuthorizeURL string
	TokenURL     string
	Scopes       []string
	AuthStyle    string // auto header params private_key_jwt
	Issuer       string // of an assertion: templates, "" the default
	Subject      string
	Audience     string // of both kinds of assertion
	KeyID        string
	Claims       *jsontree.Object // nil without
	Signature    string           // oauth1: HMAC-SHA1 HMAC-SHA256 RSA-SHA1
	RefreshOn    []int
	Hosts        []string
	In           string // api_key: header (default), query or body
	Name         string // api_key: default Authorization
	Prefix       string
	Fields       []AuthField // auth_fields
}

// Words of an Auth that decide more than one thing.
const (
	AuthFields    = "auth_fields"     // the type that puts what the account gave into bodies
	JWTBearer     = "jwt_bearer"      // the grant of RFC 7523 section 2.1
	PrivateKeyJWT = "private_key_jwt" // the auth_style of RFC 7523 section 2.2
)

// OAuth1Signatures are the signature methods of RFC 5849 section 3.4, and the
// newer one that replaces SHA-1; the first is the default.
var OAuth1Signatures = []string{"HMAC-SHA1", "HMAC-SHA256", "RSA-SHA1"}

// Parameter of a connector or a method.
type Parameter struct {
	Name      string
	Target    string // http_header merge_field query_string filter_field response_field script index
	As        string // name on the wire; "" is Name. Of a response_field: a location in the answer
	Header    string // of a response_field: the answer's header that holds the value
	Value     any    // fixed; nil without. JSON-like: string, float64/int64, bool, []any, map[string]any
	HasValue  bool
	Default   any
	HasDef    bool
	Type      string
	Optional  bool
	Sensitive bool
	Property  string // "", account, partner, session

	About
}

// ForScripts says that a parameter is sent nowhere: scripts see it.
func (q *Parameter) ForScripts() bool { return q.Target == "script" || q.Target == "index" }

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
	Body        any           // a tree of jsontree, nil without
	HasBody     bool
	Parameters  []Parameter // connector's and method's merged
	Fields      []ResponseField
	Retry       string        // safe always never
	Idempotency string        // idempotency_header
	Script      *hooks.Script // LevelMethod, nil without
	IsLogin     bool
	RateLimits  []RateLimit // its own, else the connector's
	XMLRoot     string
	Paging      Paging         // what it does not say itself is the connector's
	Request     []RequestField // of a webhook: of what was sent to it
	// Dropped are the connector's parameters that the method leaves out:
	// templates may name them.
	Dropped []Parameter
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

// MayRepeat says that a call may be made again though it may have reached the
// server.
func (m *Method) MayRepeat() bool {
	return m.Retry == "always" || m.Retry == "safe" && SafeVerb(m.Verb)
}

// SafeVerb says that a request may be made twice for once (RFC 9110 section
// 9.2.2).
func SafeVerb(verb string) bool {
	return slices.Contains([]string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}, verb)
}

// ResponseField names where in an answer a value stands.
type ResponseField struct {
	Field, Header, Cookie string // one of them
	System                string
	Type                  string
	Format                string // of a datetime, in .NET's words
	Title, Description    string
	Optional              bool // for people: a missing one is no error
	Default               any
	HasDef                bool
	Steps                 []location.Step // of Field
}

// Finding is one mistake (or hint) in a connector file.
type Finding struct {
	File         string
	Line, Column int
	Text         string
	Hint         bool // only `worker check` prints it; `worker run` starts
}
