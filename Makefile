.PHONY: test race bench soak lint redis prometheus systemd demo deploy

# Everything the tests need, then the tests: the longest first, and more packages
# at once than there are cores, since many wait for leases and failovers. Without
# the cache of results: it does not know of programs that tests build and run.
test: redis prometheus deploy
	go test -p 4 -count=1 -timeout 10m ./jobs ./cmd/worker ./hooks ./internal/flows ./internal/upgrade ./...

# Compose file, Kubernetes manifests and systemd unit: a module of its own, for
# the types of those who read them.
deploy: systemd
	cd deploy/check && go test -count=1 -timeout 10m ./... # what it reads is not of its module, so no cache

# The packages whose tests run their code in this process; of those that run
# programs the detector sees nothing.
race: redis
	go test -race -short -p 4 -timeout 20m ./jobs ./hooks ./credentials ./connectors/... ./cmd/enqueue ./internal/cli ./internal/faultproxy ./internal/otlp ./internal/redismetrics ./internal/strictjson

bench: redis
	go run ./internal/bench

# A hundred workers killed at random moments; about five minutes.
soak: redis
	go run ./internal/soak

lint:
	test -z "$$(gofmt -l .)"
	go vet ./...
	go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...
	cd deploy/check && go vet ./...

demo:
	go run ./cmd/worker demo

# The tests start their own redis-server; it only has to be installed.
redis:
	@command -v redis-server >/dev/null || { \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq redis-server; \
	  else echo "redis-server is missing. Debian, Ubuntu: sudo apt-get install redis-server; macOS: brew install redis"; exit 1; fi; }

# The two programs of Debian's package, without its service: nothing is started
# and no port is taken. Tests of the alert rules are left out where it can't be had.
prometheus:
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    dir=$$(mktemp -d) && chmod 755 $$dir && cd $$dir && apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq prometheus && \
	    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C /usr/local --strip-components=2 ./usr/bin/prometheus ./usr/bin/promtool && rm -r $$dir; \
	  else echo "prometheus is missing: the tests of the alert rules are skipped"; fi; }

# systemd-analyze, which reads the unit; where it cannot be installed its test skips.
systemd:
	@command -v systemd-analyze >/dev/null || { \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd; fi; }
