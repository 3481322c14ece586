// Package man holds the manual pages, which the program carries with it.
package man
