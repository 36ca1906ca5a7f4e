package upgrade

import "slices"

// object is a credential or a step as JSON has it.
type object = map[string]any

// Scenario is what a fixture is made of: credentials, the steps that a worker
// takes, and those that it finds no more.
type Scenario struct {
	Credentials []object
	Taken       []object // in this order, each once the one before has settled
	Left        []object // enqueued after the worker was killed
}

// Pin is the value of a sensitive parameter.
const Pin = "pin-4711-of-a-customer"

// New is the scenario of a build that knows some of the connectors.
func New(connectors []string) *Scenario {
	s := &Scenario{}
	credential := func(connector, id string, more object) bool {
		if !slices.Contains(connectors, connector) {
			return false
		}
		c := object{"credential_id": id, "connector": connector, "account_id": "42", "external_account_id": "cust-42"}
		for k, v := range more {
			c[k] = v
		}
		s.Credentials = append(s.Credentials, c)
		return true
	}
	take := func(id, credential, method string, more object) {
		s.Taken = append(s.Taken, step(id, credential, method, more))
	}
	leave := func(id, credential, method string, more object) {
		s.Left = append(s.Left, step(id, credential, method, more))
	}
	if credential("books", "active", token("active", 0)) {
		take("done", "active", "get", object{"tag": "a tag", "retention": "1000h", "cycle": object{"cycle_id": "c1", "transaction_id": "t1"}})
		take("broken", "active", "broken", object{"retention": "1000h"})
		take("flaky", "active", "flaky", object{"max_retries": 50})
		leave("pending", "active", "get", object{"reply_to": object{"queue": "flows", "type": "step:finished"}})
		leave("scheduled", "active", "get", object{"process_at": "2099-01-01T00:00:00Z"})
	}
	if credential("books", "paused", token("paused", 0)) {
		take("busy", "paused", "busy", nil)
		take("behind", "paused", "get", nil)
	}
	if credential("books", "dead-renewed", token("dead-renewed", 0)) {
		take("renewed", "dead-renewed", "get", nil)
	}
	if credential("books", "fails-books", token("fails-books", 0)) {
		take("remember", "fails-books", "remember", nil)
		take("parked1", "fails-books", "get", nil)
		take("parked2", "fails-books", "get", nil)
	}
	if credential("books", "revoked-books", token("revoked-books", 0)) {
		take("held1", "revoked-books", "get", nil)
		take("held2", "revoked-books", "get", nil)
	}
	if credential("books", "revoked-replaced", token("revoked-replaced", 0)) {
		take("replaced", "revoked-replaced", "get", nil)
	}
	if credential("books", "forced", token("forced", 0)) {
		take("forced1", "forced", "get", nil)
	}
	if credential("club", "club-books", token("club-books", 0)) {
		take("refused", "club-books", "get", nil)
	}
	if credential("shelf", "fails-shelf", token("fails-shelf", 0)) {
		take("pages", "fails-shelf", "list", nil)
	}
	for _, user := range []string{"live-desk", "fails-desk", "refused-desk"} {
		password := "password-of-" + user
		if user == "refused-desk" {
			password = "another-password"
		}
		if credential("desk", user, object{"properties": object{"username": user, "password": password}}) {
			take(user, user, "get", nil)
		}
	}
	for kind, secret := range map[string]object{
		"key":    {"api_key": "key-of-an-account"},
		"basic":  {"basic": object{"username": "ann", "password": "password-of-ann"}},
		"fields": {"fields": object{"tenant": "t1", "secret": "secret-of-t1"}},
		"oauth1": {"oauth1": object{"consumer_key": "k", "consumer_secret": "consumer-secret", "token": "token-of-ann", "token_secret": "token-secret"}},
	} {
		if credential(kind, kind, secret) {
			take(kind+"1", kind, "get", nil)
			leave(kind+"2", kind, "get", nil)
		}
	}
	if credential("notes", "notes", nil) {
		take("kept", "notes", "keep", nil)
	}
	if credential("since", "since", nil) {
		take("since1", "since", "get", object{"cycle": object{"cycle_step_id": "s1"}})
	}
	if credential("vault", "fails-vault", token("fails-vault", 0)) && credential("vault", "vault", token("vault", 0)) {
		take("locked", "fails-vault", "unlock", object{"parameters": object{"pin": Pin}})
		leave("unlocked", "vault", "unlock", object{"parameters": object{"pin": Pin}})
	}
	if credential("slow", "slow", nil) {
		take("slow1", "slow", "get", nil)
		take("slow2", "slow", "get", nil)
	}
	if credential("shelf", "hangs-shelf", token("hangs-shelf", 0)) { // the last: it never settles
		take("hanging", "hangs-shelf", "list", nil)
	}
	return s
}

func step(id, credential, method string, more object) object {
	s := object{"execution_id": id, "credential_id": credential, "method": method}
	for k, v := range more {
		s[k] = v
	}
	return s
}

// token is what a credential of an account has after n renewals.
func token(account string, n int) object {
	count := string(rune('0' + n))
	return object{"client_id": "client-of-" + account, "client_secret": "client-secret", "oauth2": object{
		"access_token": account + "." + count, "refresh_token": account + ".r" + count, "token_type": "Bearer", "expiry": "2099-01-01T00:00:00Z"}}
}
