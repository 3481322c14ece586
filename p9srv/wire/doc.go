// Package wire is the 9P message codec: bytes to message structs and back, for
// servers and clients alike. It opens no sockets, starts no goroutines and
// keeps no state.
//
// A message on the wire is
//
//	size[4] type[1] tag[2] body[size-7]
//
// with every number little-endian, a string s as length[2] bytes[length], a
// QID as type[1] version[4] path[8]. The dialect is 9P2000.L as Linux speaks
// it (include/net/9p/9p.h, net/9p/client.c; diod's protocol.md); the type
// numbers of 9P2000 and 9P2000.u are named, so that a header of theirs reads.
//
// # Decoding
//
//	h, err := wire.ParseHeader(frame)       // size, type, tag
//	var m wire.Twalk                        // on the stack, or used again and again
//	err = m.Decode(frame[wire.HeaderSize:h.Size])
//
// Decode overwrites every field. Payloads (Twrite.Data, Rread.Data,
// Rreaddir.Data) alias the frame and are valid as long as it is; strings are
// copies and may be kept. Slices of strings and QIDs are used again from one
// Decode to the next. No input makes Decode panic or allocate more than a small
// multiple of the frame's length; what is too short, too long or inconsistent
// is an error that wraps ErrMessage.
//
// # Encoding
//
// Append puts a whole frame, header included, behind what a buffer holds:
//
//	buf = m.Append(buf, tag)
//
// A large payload need not be copied: AppendReadHeader and AppendWriteHeader
// write what stands before it, and the payload can follow from elsewhere or be
// read into place; see also DirPacker for folders.
//
// New makes a message by its type and Text shows any message in one line;
// both are for traces, tools and tests, not for the hot path.
package wire
