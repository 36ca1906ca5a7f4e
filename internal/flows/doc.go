// Package flows tests the two programs as a flow sees them: with a Redis user of
// its own, and while workers are killed. It has nothing but tests.
package flows
