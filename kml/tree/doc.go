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
//
// # After a crash of the machine
//
// A file named running says that a process has the fileset open, and in which
// run of the machine. Found there at Open it means that the process was killed
// (same run: all it wrote is in the page cache, and the tables of intents and
// of open-dirty files say what to finish), or that the machine crashed (another
// run). Then only what a commit mark covers is known to be on disk: history
// ends there, a new epoch begins with a fresh site for the master, and the
// records behind the mark are evidence, held against the directory one by one.
// A record whose effect is there is logged again under its first origin. A file
// that was last changed while the crashed run went on and is not what its
// version says is damaged: it keeps its version, reading it is EIO, and it is no
// edit. A copied or restored fileset begins a new epoch at its log's end and
// finds its objects again by name.
package tree
