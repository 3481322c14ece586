// Package node makes files, folders, links and devices what a record of the log
// says of them: with owner, extended attributes, mode and times, in the order in
// which none undoes another. Whoever makes a directory from a log goes through
// it.
//
// Nothing here follows a symbolic link in the last step of a name. The functions
// may be called at the same time.
package node
