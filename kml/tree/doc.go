// Package tree is the journaled tree: a directory in which every change is a
// record in a log, and an index that knows every object by its oid.
//
// # Two layouts, one behaviour
//
// A Tree keeps its objects in an ordinary directory whose names and attributes
// are the truth (a master, a full replica). A Cache keeps names and attributes
// in the index and the bytes of its objects, as far as they are present, in
// files named by oid (an on-demand client). Both are driven by the same records
// through the same index, and both are an FS, which is what front ends serve.
package tree
