// Package mergefields knows templates: texts, bodies and URLs in which {{name}}
// stands for a value. Where values come from is a [Lookup]'s to know.
package mergefields
