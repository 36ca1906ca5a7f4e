// Package location reads the notation that names a place in a value, such as
// data.[records].id, and finds what stands there.
package location
