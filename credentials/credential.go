package credentials

import (
	"encoding/json"
	"time"
)

// State of a credential.
type State string

const (
	Active        State = "active"
	Refreshing    State = "refreshing" // active, and somebody holds its lease
	Revoked       State = "revoked"
	Misconfigured State = "misconfigured"
)

// Kind of a refresh.
type Kind string

const (
	OAuth2  Kind = "oauth2"
	Session Kind = "session"
	// Opening is what follows a credential's first token: the login method and
	// the test method, once. Until then nobody calls with it.
	Opening Kind = "opening"
	// Testing asks the test method about a credential that was refused and that
	// nothing can renew.
	Testing Kind = "test"
)

// Credential is one account's installed connector, opened. It never prints a secret.
type Credential struct {
	ID                string
	Connector         string
	AccountID         string
	ExternalAccountID string
	// Authentication is which of the connector's named alternatives it has; "" is
	// the default one. It stands in clear.
	Authentication string
	Version        int64
	Secrets        Secrets
	Meta           Meta
	// Answer is what a token endpoint said to an earlier request of this version,
	// which had no token that could be read: what was sent for it may be spent.
	// Only a RefreshFunc sees it.
	Answer []byte
}

// Secrets is the sealed part. Its String, GoString, Format, MarshalText and
// LogValue methods print [redacted]; only Seal encodes it.
type Secrets struct {
	Properties   map[string]json.RawMessage // account properties as given, and session properties as found
	Session      map[string]string          // session properties, filled by the login method
	ClientID     string
	ClientSecret Secret
	OAuth2       *Token
	APIKey       Secret
	Username     string
	Password     Secret
	HasBasic     bool
	OAuth1       *OAuth1
	// PrivateKey, in PEM, signs in the client's or the account's name: JWTs (RFC
	// 7523), and OAuth 1.0a requests by RSA-SHA1.
	PrivateKey Secret
	Fields     map[string]Secret
	// TokenRaw is the token endpoint's whole last answer, extra members kept.
	TokenRaw json.RawMessage
	// Opened says that the first token or session was obtained and the login
	// and test methods have run (contract: "after that the login method and
	// then the test method run once").
	Opened bool

	// unknown are members that a newer build sealed: they are kept as they are.
	// Nobody changes the map.
	unknown map[string]json.RawMessage
}

// Token is an OAuth 2 token (RFC 6749 section 5.1).
type Token struct {
	AccessToken  Secret
	RefreshToken Secret
	TokenType    string
	Expiry       time.Time // zero: not known
}

// OAuth1 are the credentials of OAuth 1.0a (RFC 5849 section 1.1): the client's,
// which may come from elsewhere, and the token's.
type OAuth1 struct {
	ConsumerKey    string
	ConsumerSecret Secret
	Token          Secret
	TokenSecret    Secret
	Realm          string
}

// Meta is what stands in clear beside the sealed part.
type Meta struct {
	State          State
	Since          time.Time
	Token, Session Life
	// Refused is true when this version is known refused by the API;
	// RefusedKind says what kind of refresh it asked for.
	Refused     bool
	RefusedKind Kind
	// NoKey is true when a worker found that no key of its own opens this
	// version: the state is misconfigured until a key, or a person, changes that.
	NoKey bool
	// Unknown says what the credential names that a worker did not have, its
	// connector or its authentication; "" once one has run it that does.
	Unknown string
	// Denied says how the API refused a credential that nobody can renew or
	// test, and DeniedTo which method; "" once that method has succeeded.
	Denied, DeniedTo string
	// Tested is true when the test method has answered with this version.
	Tested bool
	// Settings is what the connector and its settings were, in short, when the
	// provider refused them.
	Settings string
	// Unread is true while an answer is kept in which no token was found (Answer).
	Unread bool
	// Proving is true when a person put this in place of what was of no use, and
	// nothing has succeeded with it yet.
	Proving bool
	// MadeFor is the method whose refused executions asked for this version, as
	// long as none of its calls has succeeded with it.
	MadeFor     string
	LastRefresh *LastRefresh
	LastError   string // masked
	Failures    int    // transient failures in a row, of this version
	NextTry     time.Time
	LeaseUntil  time.Time
	// Client is whose refusal holds this credential, as long as that stands
	// (Store.ClientRefusal); "": nobody's.
	Client string
	// Unhelped is by method: refreshes in a row that did not help.
	Unhelped map[string]Unhelped
}

// Life is from when to when a token or session is good; zero times are not known.
type Life struct{ Issued, Expiry time.Time }

// LastRefresh tells of the last refresh that ended.
type LastRefresh struct {
	At      time.Time `json:"at"`
	Kind    Kind      `json:"kind"`
	Verdict Verdict   `json:"verdict"`
	Status  int       `json:"status,omitempty"`
	// Trace is the refresh's trace context, for who goes on after it; "" where it
	// was not traced.
	Trace string `json:"trace,omitempty"`
}

// Unhelped counts refreshes that were made for a method's refused executions
// and did not help them (promise 5).
type Unhelped struct {
	Count   int
	Version int64     // the newest version that was refused after a refresh
	Until   time.Time // refused executions of the method fail at once until then
	Blocks  int       // how many times Until was set in a row
}

// Verdict on a refresh.
type Verdict string

const (
	Renewed              Verdict = "renewed"
	Transient            Verdict = "transient"
	VerdictRevoked       Verdict = "revoked"
	VerdictMisconfigured Verdict = "misconfigured"
	Unknown              Verdict = "unknown"
)

// RefreshError is a refresh refused or failed, already free of secrets.
type RefreshError struct {
	Verdict    Verdict
	Status     int           // HTTP status, 0 without an answer
	Text       string        // one sentence, masked, what to do about it
	RetryAfter time.Duration // 0: not told
	// Client says that the provider refused the client, whichever account it asks for.
	Client bool
	// Answer is an answer of success without a token that could be read. It is
	// kept, sealed, until a token is stored.
	Answer []byte
	// Counts: the server has heard a password, and said neither yes nor no. Some
	// ban who goes on like that, so these are few.
	Counts bool
	// Limit says which limit a hook or a login broke, in a word; else "".
	Limit string
}

func (e *RefreshError) Error() string { return e.Text }

// Renewal is what a successful refresh brings; nil members keep what is stored.
type Renewal struct {
	Token    *Token
	TokenRaw json.RawMessage
	Session  map[string]string // laid over the stored session, all together
	Opened   bool
	// Tested says that the test method has answered: nothing is changed.
	Tested bool
	Status int
	// Skew is how far the provider's clock is ahead of ours: session_expires is
	// by its.
	Skew time.Duration
	// Problem is a verdict that stands beside the token: it is stored, because
	// the old one may be spent, but a hook around the request failed.
	Problem *RefreshError
}
