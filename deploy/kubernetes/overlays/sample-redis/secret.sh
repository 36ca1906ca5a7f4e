#!/bin/sh
# Prints the Secret of this overlay with fresh keys and passwords; each run makes
# others, so apply it once. To keep the sealing key:
#   kubectl get secret -n stepworker stepworker -o jsonpath='{.data.keys}' | base64 -d
set -eu
password=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)
cat <<EOF
apiVersion: v1
kind: Secret
metadata: {name: stepworker}
stringData:
  keys: "$(head -c 32 /dev/urandom | base64)"
  dashboard-password: "$(head -c 32 /dev/urandom | sha256sum | cut -c1-24)"
  redis-url: "redis://:$password@stepworker-redis:6379/0"
  redis.conf: "requirepass $password"
EOF
