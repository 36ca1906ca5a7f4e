// Package deploy embeds the sample connectors.
package deploy

import "embed"

// Connectors are the sample connectors, in the folder connectors.
//
//go:embed connectors
var Connectors embed.FS
