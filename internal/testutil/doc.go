// Package testutil has what tests of several packages need: a check for
// goroutines left behind, golden files, and seeds that are printed.
//
// Flags it adds to a test binary that imports it:
//
//	-update      rewrite golden files with what the test got
//	-seed N      the seed of random tests, to repeat a failure
//	-seed random a new seed for each random test; else it comes from the test's name
//	-long        random tests run for minutes instead of seconds
package testutil
