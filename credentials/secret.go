package credentials

// Secret is text that cannot be printed.
type Secret struct{ s string }
