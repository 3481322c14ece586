//go:build !race

package kml

// raceFactor divides the rounds of random tests.
const raceFactor = 1
