// Package jobs decides when a step runs. It knows asynq and Redis; how a
// method is called is package connectors' business, what a credential is and
// how it is renewed safely is package credentials'.
//
// [Client] enqueues steps and reads results. [Pool] runs them: each execution
// is one asynq task of type step:run whose task id is the execution id, from
// first to last.
//
// # Life of an execution
//
//	            ┌────────────────── resumed ◄──────────────────┐
//	            ▼                                              │
//	enqueued ► pending ► active ──► completed (succeeded, warning)
//	            ▲          │  └───► archived  (failed)
//	            │          └─────► retry: "parked: …"   waits for one refresh
//	            │                         "held: …"     waits for a person
//	            │                         "deferred: …" waits for the API's clock
//	            └───── timer ◄────        a fault, with backoff
//
// A waiting execution holds no worker. What must outlive an attempt (budgets,
// action_data, since when it waits) stands in a Redis hash of its own, because
// asynq offers no place for it.
//
// # Why nothing is lost
//
// A step joins its credential's waiting set and reads the version in one Redis
// script; a refresh raises the version and then reads the set. Redis orders
// the two, so one of them always sees the other. Its retry timer and the
// sweeper close what a crash leaves open.
package jobs
