package mergefields

import (
	"net/url"
	"strings"
)

// Escape is percent-encoding of all but the unreserved characters (RFC 3986
// section 2.3, RFC 5849 section 3.6). It is how all that we write stands in a
// query or a form: who reads either takes %20 for a blank, and not all take a
// plus for one.
func Escape(s string) string { return EscapeBlanks(url.QueryEscape(s)) }

// EscapeBlanks is a query that was encoded as a form, without its pluses.
func EscapeBlanks(query string) string { return strings.ReplaceAll(query, "+", "%20") }
