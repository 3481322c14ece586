// Package kml is the log of a fileset's changes: records, their binary and
// text form, and the segmented append-only log they live in.
//
// It knows no tree, no 9P and no network.
package kml
