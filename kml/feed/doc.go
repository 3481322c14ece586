// Package feed is what travels over the journal extension: the lines and frames of
// /.mezzo/feed, snapshot, reint and permit. It is a codec only: no I/O, no
// goroutines.
//
// A reader of feed or snapshot writes one request line (Request,
// SnapshotRequest) and reads frames. A client of reint writes and reads
// frames. A frame is
//
//	0      u32  n, the length of what follows: 1 to 1+MaxPayload
//	4      u8   kind
//	5      n-1 bytes of payload
//
// little-endian, without padding. A kind of 128 and above may be skipped by
// who does not know it; an unknown one below is kml.ErrNewer.
//
//	feed      ->  from POSITION crc CRC inline BYTES\n
//	          <-  Greeting, then Record, RecordData, Changing, Damaged, Heartbeat ...
//	snapshot  ->  under OID depth N inline BYTES\n
//	          <-  SnapBegin, Entry or EntryData ..., SnapEnd
//	reint     ->  Hello, Batch ...
//	          <-  Welcome, Result ...
//	permit    ->  Ask, a line each
//	          <-  Reply, a line each
//
// Any answer may be a Failure instead, which ends the stream.
//
// A record inside a frame is in the binary form of package kml with a previous
// CRC of 0; its position is inside, and who keeps a log of its own chains it
// again.
//
// Append and Decoder are the two ends:
//
//	b, err := feed.Append(nil, &feed.Heartbeat{End: end, Durable: durable, Time: now})
//
//	d.Write(b)
//	for {
//		f, ok, err := d.Next()
//		if err != nil || !ok { ... }
//		m, err := f.Message()
//		switch m := m.(type) { case *feed.Heartbeat: ... }
//	}
package feed
