// Package replay works with a log alone, without the tree it tells of: it knows
// which object has which names at each position, and makes a plain directory
// what a log says.
//
//	kml.Scanner ---- records ----> Names      (object -> its names)
//	                       \-----> Replayer   (a directory, a state file in it)
//
// A log carries no contents. The Replayer takes a file's contents from another
// tree where they fit what the last store says, and else leaves a hole of the
// right size and says so.
//
// # What is certain when
//
// The state file tells how far a directory is. Before a record touches the
// directory the file says so, with the inode it is about; after it, that it is
// done. Both are writes into the page cache, so a killed replay goes on where it
// was: the one record that is in doubt is decided by looking. After a crash of
// the machine the state file and the directory may tell different stories; that
// is refused, unless the replay had ended.
//
// Nothing here has goroutines; a value is for one goroutine at a time.
package replay
