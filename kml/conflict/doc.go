// Package conflict decides what becomes of a host's own change when the master's
// tree is not the one it was made on. It holds no tree, reads no files and talks
// to nobody: it is given a record and a view of the tree (State), and answers
// with the records to put in its place (Verdict).
//
//	s := conflict.Settler{Host: host, Tree: t, Policy: policies.For}
//	for _, e := range local log, in order {
//		v, err := s.Settle(e.Rec())
//		... put v.Items in the place of e, and on the tree ...
//		... keep v.Losses ...
//	}
//
// # What a caller does
//
// The master's records are in the tree, and the local records that are concerned
// are off it (Concerned says which). Then each is settled, in order, on the tree
// as it is by then: the master's, with the local records settled before on top.
// A record that is not in conflict comes back as it is, or the same with newer
// bases. Each of these is one Verdict:
//
//	Items empty          the change is dropped
//	Items                the records that stand in its place, in order; Bytes says
//	                     where the contents of each store come from. A store that
//	                     follows the item that makes its object has no base: it is
//	                     made against that item
//	Aliases              two objects became one: handles on From are on To now
//	Moves                what was made or moved here has a conflict name
//	Copy                 the bytes of Here went to the object OID: so do its handles
//	Merge                try to merge contents first; with a result its Items
//	                     stand, call Settler.Merged, and nothing is lost; else
//	                     those of the verdict
//	Losses               what to keep, and to tell a person; bytes of Theirs are
//	                     to be had before the items are sent
//
// A Settler remembers objects that became one, names that moved and conflict
// copies until the end of the pass, and puts them into the records that follow.
// The pass must therefore go on to the last local record that is concerned.
//
// Frozen records are not settled: the master decides about them first. One that
// it refuses with a conflict is thawed and settled.
//
// # The table
//
// Conflicts are per name in folders, by value in attributes (a record carries old
// and new), by version and content for data. With the policy both:
//
//	local record      conflict when, at the master        result
//	create, symlink,  the name holds another object       same type and contents: they become one;
//	mknod, link                                           else the local one takes the conflict name
//	mkdir             the name is taken                   by a folder: they become one;
//	                                                      else the folder takes the conflict name
//	any with a parent the parent is gone                  the parents are made again, same oids
//	link              the object is gone                  it is made again, same oid
//	store             the data changed since the base     same bytes: none; else the bytes become a copy
//	store             the object is gone                  it is made again, same oid and name
//	rename, target    the name holds neither the victim   what was moved takes the conflict name;
//	                  at its base nor nothing             a policy sees a store to that name
//	rename, source    moved; gone                         the master's place stands; dropped, and a
//	                                                      store that follows makes the object again
//	rename, folder    the new parent is inside it         dropped
//	unlink, last link the data changed                    the object stays
//	unlink, rmdir     the name holds another, or nothing  dropped
//	rmdir             it has entries                      it stays
//	setattr, xattr    the field has neither the old nor   the master's value stands, the other is
//	                  the new value                       kept; times never conflict
//
// # Concurrency
//
// A Settler is for one goroutine. Everything else is pure.
package conflict
