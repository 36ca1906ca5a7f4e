// Package credentials keeps what a connector's account is made of: secrets,
// sealed, with a version that only grows; and it renews them safely.
//
// [Store.Refresh] is the package's weight. Its order is its guarantee:
//
//  1. Take the credential's lease and write the intent, in one script that
//     also sees whether a newer version is stored (then nothing is asked).
//  2. Ask the provider, once, for at most 40 s; the lease lasts 60 s.
//  3. Save by compare-and-set on owner and version, before anything else,
//     for as long as this process lives.
//
// A refusal or failure is remembered for the version; an answer that never
// came is waited out and asked for once more.
package credentials
