// Package asuser runs file operations with a user's file-system ids, so that
// the kernel's own rules decide what the user may do. It needs root.
//
// Ids belong to threads. A User keeps a few threads that wear its ids and no
// capabilities, pinned for as long as they live, so that an operation costs a
// hand-over and no change of ids, and so that no thread of anything else ever
// wears them.
package asuser
