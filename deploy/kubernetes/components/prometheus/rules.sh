#!/bin/sh
# Prints the alert rules as the Prometheus operator takes them:
#   deploy/kubernetes/components/prometheus/rules.sh | kubectl apply -n stepworker -f -
set -eu
cat <<EOF
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: stepworker, labels: {app.kubernetes.io/name: stepworker}}
spec:
$(sed 's/^/  /' "$(dirname "$0")/../../../prometheus/stepworker.rules.yml")
EOF
