package p9srv

import (
	"fmt"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// trace shows the frames in b, one line each.
func (s *session) trace(dir string, b []byte) {
	for len(b) > 0 {
		h, err := wire.ParseHeader(b)
		if err != nil || uint64(h.Size) > uint64(len(b)) {
			s.srv.opts.Trace(s.num, fmt.Sprintf("%s %d bytes that are no frame", dir, len(b)))
			return
		}
		frame := b[:h.Size]
		b = b[h.Size:]
		tag, m, err := wire.Unmarshal(frame)
		if err != nil {
			s.srv.opts.Trace(s.num, fmt.Sprintf("%s tag %d %v", dir, tag, err))
			continue
		}
		s.srv.opts.Trace(s.num, dir+" "+wire.Text(tag, m))
	}
}
