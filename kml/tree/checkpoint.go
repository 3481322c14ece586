package tree

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	bolt "go.etcd.io/bbolt"

	"github.com/mezzofs/mezzo/kml"
)

// A checkpoint is an index's file written out as of one position: from it and
// the log since, an index is made again that was lost or damaged, also when the
// log has lost its beginning. It is
//
//	header  "MEZZOIDX", u32 version, 16 bytes fileset, u64 cursor, u32 CRC of
//	        the log's chain there, u32 the cursor's own (SetCursorCRC), u32 CRC
//	blocks  u32 length, u32 length unpacked, u32 CRC, packed entries
//	end     a block of length 8: u64 number of entries
//
// little-endian. Every CRC is a CRC-32C that goes on from the one before, so a
// block that is missing, doubled or elsewhere shows. Entries are packed with
// DEFLATE, block by block: a byte that names the bucket, then with their lengths
// (uvarints) what the key shares with the entry's before, the rest of the key,
// and the value. Buckets and keys rise.
const (
	checkpointMagic   = "MEZZOIDX"
	checkpointVersion = 1
	checkpointHeader  = 48
	checkpointBlock   = 256 << 10 // bytes of entries, and then some
	maxBlock          = 16 << 20
)

// checkpointOf names what a checkpoint is of.
type checkpointOf struct {
	fileset [16]byte
	cursor  kml.Position // the index is as of here
	chain   uint32       // the log's CRC there
	crc     uint32       // see SetCursorCRC
}

// checkpointWriter writes entries in blocks.
type checkpointWriter struct {
	w     io.Writer
	crc   uint32
	n     uint64
	raw   []byte
	key   []byte // the last one
	pack  *flate.Writer
	out   bytes.Buffer
	wrote int64
}

// dump writes the index's file as it is at this moment. chain gives the CRC of
// the log at the position it is as of.
func (x *Index) dump(w io.Writer, fileset [16]byte, chain func(kml.Position) (uint32, error)) (of checkpointOf, size int64, err error) {
	of.fileset = fileset
	c := &checkpointWriter{w: w}
	if c.pack, err = flate.NewWriter(nil, flate.BestSpeed); err != nil {
		return of, 0, err
	}
	err = x.view(func(tx *bolt.Tx) error {
		f, err := stateOf(tx)
		if err != nil {
			return err
		}
		of.cursor, of.crc = f.cursor, f.crc
		if of.chain, err = chain(of.cursor); err != nil {
			return err
		}
		if err := c.write(of.header()); err != nil {
			return err
		}
		if err := entries(tx, c.entry); err != nil {
			return err
		}
		return c.end()
	})
	return of, c.wrote, err
}

// header is the header less its CRC.
func (of checkpointOf) header() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, checkpointHeader), checkpointMagic...)
	b = le.AppendUint32(b, checkpointVersion)
	b = append(b, of.fileset[:]...)
	b = le.AppendUint64(b, uint64(of.cursor))
	b = le.AppendUint32(b, of.chain)
	return le.AppendUint32(b, of.crc)
}

// write writes b with the CRC that goes on over it.
func (c *checkpointWriter) write(b []byte) error {
	c.crc = crc32.Update(c.crc, castagnoli, b)
	n, err := c.w.Write(binary.LittleEndian.AppendUint32(b, c.crc))
	c.wrote += int64(n)
	return err
}

func (c *checkpointWriter) entry(bucket int, k, v []byte) error {
	if len(c.raw) >= checkpointBlock {
		if err := c.block(); err != nil {
			return err
		}
	}
	same := 0
	for same < len(k) && same < len(c.key) && k[same] == c.key[same] {
		same++
	}
	c.raw = append(c.raw, byte(bucket))
	for _, n := range []int{same, len(k) - same, len(v)} {
		c.raw = binary.AppendUvarint(c.raw, uint64(n))
	}
	c.raw = append(append(c.raw, k[same:]...), v...)
	c.key = append(c.key[:0], k...)
	c.n++
	return nil
}

func (c *checkpointWriter) block() error {
	c.out.Reset()
	c.pack.Reset(&c.out)
	if _, err := c.pack.Write(c.raw); err != nil {
		return err
	}
	if err := c.pack.Close(); err != nil {
		return err
	}
	if err := c.frame(c.out.Bytes(), len(c.raw)); err != nil {
		return err
	}
	c.raw, c.key = c.raw[:0], c.key[:0]
	return nil
}

// frame writes a block: the CRC is over lengths and contents.
func (c *checkpointWriter) frame(b []byte, raw int) error {
	var head [12]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(b)))
	binary.LittleEndian.PutUint32(head[4:], uint32(raw))
	c.crc = crc32.Update(crc32.Update(c.crc, castagnoli, head[:8]), castagnoli, b)
	binary.LittleEndian.PutUint32(head[8:], c.crc)
	n, err := c.w.Write(head[:])
	c.wrote += int64(n)
	if err == nil {
		n, err = c.w.Write(b)
		c.wrote += int64(n)
	}
	return err
}

func (c *checkpointWriter) end() error {
	if len(c.raw) > 0 {
		if err := c.block(); err != nil {
			return err
		}
	}
	return c.frame(binary.LittleEndian.AppendUint64(nil, c.n), 0)
}

// errCheckpoint is a checkpoint that is not what was written.
var errCheckpoint = errors.New("checkpoint is damaged")

// checkpointReader reads a checkpoint, and gives nothing it has not checked.
type checkpointReader struct {
	r   *bufio.Reader
	of  checkpointOf
	crc uint32
	n   uint64
	buf []byte
	raw []byte
}

// openCheckpoint reads the header; os.ErrNotExist, kml.ErrNewer, errCheckpoint.
func openCheckpoint(r io.Reader) (*checkpointReader, error) {
	c := &checkpointReader{r: bufio.NewReaderSize(r, 1<<20)}
	var b [checkpointHeader]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return nil, short(err)
	}
	if string(b[:8]) != checkpointMagic {
		return nil, errCheckpoint
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v > checkpointVersion {
		return nil, fmt.Errorf("version %d: %w", v, kml.ErrNewer)
	}
	c.crc = crc32.Checksum(b[:checkpointHeader-4], castagnoli)
	if c.crc != le.Uint32(b[checkpointHeader-4:]) {
		return nil, errCheckpoint
	}
	c.of = checkpointOf{fileset: [16]byte(b[12:28]), cursor: kml.Position(le.Uint64(b[28:])), chain: le.Uint32(b[36:]), crc: le.Uint32(b[40:])}
	return c, nil
}

// short turns an early end into damage.
func short(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("cut short: %w", errCheckpoint)
	}
	return err
}

// next unpacks one block; io.EOF behind the last.
func (c *checkpointReader) next() error {
	var head [12]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return short(err)
	}
	le := binary.LittleEndian
	n, raw := le.Uint32(head[:]), le.Uint32(head[4:])
	if n > maxBlock || raw > maxBlock {
		return errCheckpoint
	}
	c.buf = grown(c.buf, int(n))
	if _, err := io.ReadFull(c.r, c.buf); err != nil {
		return short(err)
	}
	c.crc = crc32.Update(crc32.Update(c.crc, castagnoli, head[:8]), castagnoli, c.buf)
	if c.crc != le.Uint32(head[8:]) {
		return errCheckpoint
	}
	if raw == 0 {
		if n != 8 || le.Uint64(c.buf) != c.n {
			return errCheckpoint
		}
		return io.EOF
	}
	c.raw = grown(c.raw, int(raw))
	z := flate.NewReader(bytes.NewReader(c.buf))
	if _, err := io.ReadFull(z, c.raw); err != nil {
		return fmt.Errorf("unpacking: %w: %w", errCheckpoint, err)
	}
	return z.Close()
}

// grown is b with n bytes.
func grown(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// each calls f with all entries. Key and value are f's until it returns.
func (c *checkpointReader) each(f func(bucket int, k, v []byte) error) error {
	var key []byte
	for {
		err := c.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		key = key[:0]
		for b := c.raw; len(b) > 0; c.n++ {
			bucket := int(b[0])
			r := objectReader{b: b[1:]}
			same, rest, size := r.u(), r.u(), r.u()
			if r.bad || bucket >= len(kept()) || same > uint64(len(key)) || rest > uint64(len(r.b)) || size > uint64(len(r.b))-rest {
				return errCheckpoint
			}
			key = append(key[:same], r.b[:rest]...)
			if err := f(bucket, key, r.b[rest:rest+size]); err != nil {
				return err
			}
			b = r.b[rest+size:]
		}
	}
}

// readCheckpoint says what a checkpoint is of; with whole it reads all of it.
func readCheckpoint(path string, whole bool) (of checkpointOf, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return of, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return of, 0, err
	}
	c, err := openCheckpoint(f)
	if err == nil && whole {
		err = c.each(func(int, []byte, []byte) error { return nil })
	}
	if err != nil {
		return of, 0, fmt.Errorf("%s: %w", path, err)
	}
	return c.of, st.Size(), nil
}

// restoreBatch is how many entries go into a new index in one transaction.
const restoreBatch = 50000

// restoreIndex makes the index at path from a checkpoint. With strip it is of
// another place, and knows no inodes.
func restoreIndex(path, checkpoint string, strip bool) (err error) {
	f, err := os.Open(checkpoint)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := openCheckpoint(f)
	if err != nil {
		return fmt.Errorf("%s: %w", checkpoint, err)
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(fresh, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true, InitialMmapSize: mmapAhead})
	if err != nil {
		return err
	}
	if err := fillIndex(db, c, strip); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", checkpoint, err), db.Close(), os.Remove(fresh))
	}
	if err := errors.Join(db.Sync(), db.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, path) // the caller's next flush syncs the folder's other news
}

func fillIndex(db *bolt.DB, c *checkpointReader, strip bool) error {
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of the last; an error after a Commit
	bs := [](*bolt.Bucket)(nil)
	state := fileState{cursor: c.of.cursor, crc: c.of.crc}
	open := func() error {
		bs = bs[:0]
		for _, name := range kept() {
			b, err := tx.CreateBucketIfNotExists(name)
			if err != nil {
				return err
			}
			b.FillPercent = 0.9 // keys rise
			bs = append(bs, b)
		}
		return nil
	}
	if err := open(); err != nil {
		return err
	}
	err = c.each(func(bucket int, k, v []byte) error {
		if state.n > 0 && state.n%restoreBatch == 0 {
			if err := tx.Commit(); err != nil {
				return err
			}
			if tx, err = db.Begin(true); err != nil {
				return err
			}
			if err := open(); err != nil {
				return err
			}
		}
		if strip && bucket == 0 {
			if v, err = bare(k, v); err != nil {
				return err
			}
		} else if strip && bucket == 3 {
			return nil
		}
		v = seal(k, v)
		state.count(v)
		return bs[bucket].Put(bytes.Clone(k), v)
	})
	if err != nil {
		return err
	}
	meta, err := tx.CreateBucketIfNotExists(buckets.meta)
	if err == nil {
		err = errors.Join(meta.Put([]byte("version"), []byte{indexVersion}), state.put(tx))
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// bare is an encoded object without what belongs to an inode.
func bare(k, v []byte) ([]byte, error) {
	if len(k) != 8 {
		return nil, errObject
	}
	o, err := decodeObject(kml.OID(binary.BigEndian.Uint64(k)), v)
	if err != nil {
		return nil, err
	}
	o.Ino, o.Handle, o.Fp = 0, nil, Fingerprint{}
	return o.encode(), nil
}
