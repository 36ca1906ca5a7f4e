// Package dates reads dates as people and programs write them, and writes them
// in the formats of .NET, which connector files use.
package dates
