// Package inline makes JavaScript that hook hosts run of a value that begins
// with =, so that what is merged into it can never become code.
package inline
