//go:build race

package tree

// raceFactor divides the rounds of random tests: the race detector makes them
// ten times as slow.
const raceFactor = 5
