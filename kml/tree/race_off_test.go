//go:build !race

package tree

// raceFactor divides the rounds of random tests.
const raceFactor = 1
