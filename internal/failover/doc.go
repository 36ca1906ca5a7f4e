// Package failover holds the tests that kill, freeze and replace masters of Redis
// under worker processes: real sentinels, a real cluster, and the real programs.
package failover
