// Package monitoring is the tests of what operators watch: each number of
// /metrics of a real worker, the alert rules and the scrape configuration of
// deploy/prometheus in a real Prometheus, the dashboard of deploy/grafana, and
// what docs/operations.md says of them.
package monitoring
