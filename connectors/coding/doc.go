// Package coding takes content codings off answers (RFC 9110 section 8.4), and
// sees to it that no small answer grows without end.
package coding
