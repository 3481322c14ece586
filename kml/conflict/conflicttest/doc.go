// Package conflicttest has what tests of conflicts need: a master and its clients
// in memory (Master, Client), and the table of what must happen when two hosts
// change the same thing (Cells), which can be run through any World.
//
// The table is testdata/matrix.txt, to be read by a person. A cell is a line:
//
//	ROW x COLUMN @PLACE | one: OP; OP | two: OP; OP | PATH=WHAT PATH=WHAT ... [| kept: WHAT]
//
// Both hosts begin with the tree that Setup makes, part, and do their operations;
// then the changes of one reach the master before those of two, and the tree is
// the same everywhere. Operations are words: see Op.
package conflicttest
