// Package glob matches paths with patterns.
//
// A pattern without a slash is matched with the last part of a path; one with a
// slash with the whole path from the root, part by part, as path.Match does,
// where a part ** stands for any number of folders, none included.
//
//	*.log          every file whose name ends in .log
//	/docs/*.txt    in the folder docs of the root
//	/src/**/gen.go in src and all folders below
//
// A slash in front only says that the pattern begins at the root, as all with a
// slash do.
package glob
