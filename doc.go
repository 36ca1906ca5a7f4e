// Package stepworker is the root of a worker pool for the API steps of
// integration flows, in which a dead credential is a non-event. The code is in
// packages jobs, connectors, hooks and credentials; the programs in cmd.
package stepworker
