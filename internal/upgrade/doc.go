// Package upgrade holds what builds of this project left in Redis, and shows
// that this build goes on with it.
//
// testdata/*.json are such fixtures. TestRecord makes one from the binaries of a
// build: it drives them against a real Redis and [Provider], with
// testdata/connectors, until executions stand in every state there is, kills the
// worker, and dumps what it finds. A build that knows fewer kinds of connectors
// has fewer of them in its fixture.
package upgrade
