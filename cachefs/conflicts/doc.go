// Package conflicts is a host's list of open conflicts, with the bytes that are
// kept of them: what the tree does not show of two versions.
//
// It is a folder: list holds the conflicts, a JSON object a line, and kept-ID the
// bytes of one. Bytes are kept for 30 days and up to 1 GiB together, by default;
// beyond, the oldest conflicts that have some go first. Other files in the folder
// are left alone.
//
// All methods may be called at the same time.
package conflicts
