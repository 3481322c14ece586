package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// asker asks the journal extension of a tree what is in that, see mezzo-9p(7). It
// is for one goroutine.
type asker struct {
	up  *upstream
	f   linkFile
	in  int64
	out int64
	buf []byte
}

// errAnswer is an answer that makes no sense.
var errAnswer = errors.New("an answer about a tree that is not understood")

// refusedQuestion is an answer that says why there is none.
type refusedQuestion struct{ text string }

func (e *refusedQuestion) Error() string { return e.text }

// newAsker connects to what is served at an address.
func newAsker(ctx context.Context, o *Options) (*asker, error) {
	up := &upstream{o: o}
	up.ctx, up.cancel = context.WithCancel(ctx)
	var err error
	if up.streams, err = o.dial(ctx, o, nil); err != nil {
		up.close()
		return nil, explain(o.Addr, err)
	}
	f, err := up.open(ctx, up.streams, unix.O_RDWR, "digest")
	if err != nil {
		up.close()
		return nil, explain(o.Addr, err)
	}
	return &asker{up: up, f: f}, nil
}

func (a *asker) close() {
	_ = a.f.Close()
	a.up.close()
}

func (a *asker) ask(ctx context.Context, format string, args ...any) error {
	b := fmt.Appendf(nil, format+"\n", args...)
	n, err := writeAll(ctx, a.f, b, a.out)
	a.out += int64(n)
	return err
}

// line is the next line of an answer; it waits as long as the link lives.
func (a *asker) line(ctx context.Context) (string, error) {
	const most = 1 << 20
	for {
		if i := bytes.IndexByte(a.buf, '\n'); i >= 0 {
			line := string(a.buf[:i])
			a.buf = a.buf[i+1:]
			if text, bad := strings.CutPrefix(line, "error "); bad {
				return "", &refusedQuestion{text}
			}
			return line, nil
		}
		if len(a.buf) > most {
			return "", errAnswer
		}
		p := make([]byte, 256<<10)
		n, err := a.f.ReadOnce(ctx, p, a.in)
		if errors.Is(err, unix.EINTR) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", errStreamEnd
		}
		a.in += int64(n)
		a.buf = append(a.buf[:len(a.buf):len(a.buf)], p[:n]...)
	}
}

// choice is what a replica keeps.
func (a *asker) choice(ctx context.Context) (tree.DigestOptions, error) {
	if err := a.ask(ctx, "choice"); err != nil {
		return tree.DigestOptions{}, err
	}
	line, err := a.line(ctx)
	if err != nil {
		return tree.DigestOptions{}, err
	}
	text, ok := strings.CutPrefix(line, "choice")
	if !ok {
		return tree.DigestOptions{}, errAnswer
	}
	return tree.ParseDigestOptions(text)
}

// tree has the whole tree read.
func (a *asker) tree(ctx context.Context, o tree.DigestOptions, progress func(names, bytes int64)) (*tree.DigestEntry, error) {
	if err := a.ask(ctx, "tree %s", o); err != nil {
		return nil, err
	}
	for {
		line, err := a.line(ctx)
		if err != nil {
			return nil, err
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "progress":
			var names, bytes int64
			if n, err := fmt.Sscanf(rest, "%d %d", &names, &bytes); n != 2 || err != nil {
				return nil, errAnswer
			}
			progress(names, bytes)
		case "root":
			return tree.ParseDigestEntry(rest)
		default:
			return nil, errAnswer
		}
	}
}

// listing reads the entries of a folder one by one.
type listing struct {
	a     *asker
	ended bool
}

func (a *asker) list(ctx context.Context, ref int64) (*listing, error) {
	return &listing{a: a}, a.ask(ctx, "list %d", ref)
}

// next is the next entry, nil behind the last.
func (l *listing) next(ctx context.Context) (*tree.DigestEntry, error) {
	if l.ended {
		return nil, nil
	}
	line, err := l.a.line(ctx)
	if err != nil {
		return nil, err
	}
	if line == "end" {
		l.ended = true
		return nil, nil
	}
	return tree.ParseDigestEntry(line)
}

// seen is what a name holds at some moment.
type seen struct {
	at    kml.Position // or later
	known bool         // the index has the name
	e     *tree.DigestEntry
}

func (a *asker) look(ctx context.Context, parent kml.OID, name string) (s seen, err error) {
	if err := a.ask(ctx, "look %v %s", parent, strconv.Quote(name)); err != nil {
		return s, err
	}
	line, err := a.line(ctx)
	if err != nil {
		return s, err
	}
	var pos uint64
	var known string
	if n, err := fmt.Sscanf(line, "at %d %s", &pos, &known); n != 2 || err != nil {
		return s, errAnswer
	}
	s.at, s.known = kml.Position(pos), known == "known"
	if line, err = a.line(ctx); err != nil || line == "none" {
		return s, err
	}
	s.e, err = tree.ParseDigestEntry(line)
	return s, err
}

// control has the tree obey a line.
func (a *asker) control(ctx context.Context, line string) error {
	f, err := a.up.streams.Open(ctx, unix.O_WRONLY, "ctl")
	if err != nil {
		return err
	}
	_, err = writeAll(ctx, f, []byte(line+"\n"), 0)
	return errors.Join(err, f.Close())
}
