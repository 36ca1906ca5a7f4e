#!/bin/sh
# The secrets of an installation with compose: made where there are none, in two
# volumes, readable by those who need them. Nothing of them is ever on a command
# line or in a log.
set -eu
umask 077
keys=/run/keys auth=/run/redis-auth
worker=65532 redis=1000 # groups that read

random() { head -c 32 /dev/urandom | "$@"; }

# put FILE GROUP stores its input, whole or not at all.
put() {
	cat >"$1.new"
	[ -s "$1.new" ] || { echo "secrets: nothing to put into $1" >&2; exit 1; }
	chgrp "$2" "$1.new"
	chmod 0440 "$1.new"
	mv "$1.new" "$1"
}

make() {
	[ -s $keys/keys ] || { random base64 | put $keys/keys $worker; echo "secrets: made a new sealing key; keep it (save)"; }
	[ -s $keys/dashboard-password ] || random sha256sum | cut -c1-24 | put $keys/dashboard-password $worker
	[ -s $auth/redis.conf ] || random sha256sum | sed 's/^\([0-9a-f]*\).*/requirepass \1/' | put $auth/redis.conf $redis
	# Of the password, so that the two never differ.
	sed 's|^requirepass \(.*\)|redis://:\1@redis:6379/0|' $auth/redis.conf | put $auth/url $worker
	echo "secrets: ready; the dashboard's password: docker compose run --rm secrets password"
}

case "${1-make}" in
make) make ;;
password) cat $keys/dashboard-password ;;
# save writes all secrets to standard output, load reads them into empty volumes.
save) tar -c -f - -C / run/keys run/redis-auth ;;
load)
	[ ! -e $keys/keys ] || { echo "secrets: there are some already; docker compose down, and remove the volumes keys and redis-auth first" >&2; exit 1; }
	tar -x -f - -C /
	echo "secrets: loaded"
	;;
# The steps of "Replace the sealing keys" in docs/operations.md.
add-key) { cat $keys/keys; random base64; } | put $keys/keys $worker ;;
first-key) { tail -n 1 $keys/keys; sed '$d' $keys/keys; } | put $keys/keys $worker ;;
drop-keys) head -n 1 $keys/keys | put $keys/keys $worker ;;
*)
	echo "secrets: make, password, save, load, add-key, first-key or drop-keys" >&2
	exit 2
	;;
esac
