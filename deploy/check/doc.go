// Package check holds what must be true of everything in deploy: that compose
// file, Kubernetes manifests and systemd unit are read by the published types
// of those who read them, that what they refer to exists, and that every option
// they give is one of the real programs. It is a module of its own, so that the
// product does not depend on Kubernetes.
package check
