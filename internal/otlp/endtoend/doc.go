// Package endtoend holds tests of traces and logs over real processes: workers
// and enqueue as they are built, a real Redis, a collector.
package endtoend
