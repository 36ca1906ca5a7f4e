// Package httpfield reads header fields that have a grammar of their own:
// challenges (RFC 9110 section 11.6.1) and links (RFC 8288 section 3).
package httpfield
