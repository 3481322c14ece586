package tree

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

func benchTree(b *testing.B) *Tree {
	b.Helper()
	dir := b.TempDir()
	if err := Init(dir, Options{NoWatch: true}); err != nil {
		b.Fatal(err)
	}
	tr, err := Open(dir, Options{NoWatch: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tr.Close() })
	return tr
}

// BenchmarkMutate is journaled operations, each beside the bare system calls.
func BenchmarkMutate(b *testing.B) {
	tr := benchTree(b)
	bare := b.TempDir()
	check := func(b *testing.B, err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	name := func() string { n++; return "f" + strconv.Itoa(n) }
	for _, c := range []struct {
		op   string
		tree func(b *testing.B)
		bare func(b *testing.B)
	}{
		{"create+unlink", func(b *testing.B) {
			s := name()
			_, h, err := tr.Create(ctx, nil, kml.RootOID, s, unix.O_RDWR, 0o644)
			check(b, err)
			check(b, h.Close())
			check(b, tr.Unlink(ctx, nil, kml.RootOID, s))
		}, func(b *testing.B) {
			s := filepath.Join(bare, name())
			fd, err := unix.Open(s, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
			check(b, err)
			check(b, unix.Close(fd))
			check(b, unix.Unlink(s))
		}},
		{"mkdir+rmdir", func(b *testing.B) {
			s := name()
			_, err := tr.Mkdir(ctx, nil, kml.RootOID, s, 0o755)
			check(b, err)
			check(b, tr.Rmdir(ctx, nil, kml.RootOID, s))
		}, func(b *testing.B) {
			s := filepath.Join(bare, name())
			check(b, unix.Mkdir(s, 0o755))
			check(b, unix.Rmdir(s))
		}},
	} {
		b.Run(c.op+"/tree", func(b *testing.B) {
			for b.Loop() {
				c.tree(b)
			}
		})
		b.Run(c.op+"/bare", func(b *testing.B) {
			for b.Loop() {
				c.bare(b)
			}
		})
	}
	// One object and one file, changed again and again.
	a, h, err := tr.Create(ctx, nil, kml.RootOID, "x", unix.O_RDWR, 0o644)
	check(b, err)
	check(b, h.Close())
	check(b, os.WriteFile(filepath.Join(bare, "x"), nil, 0o644))
	b.Run("rename/tree", func(b *testing.B) {
		for from, to := "x", "y"; b.Loop(); from, to = to, from {
			check(b, tr.Rename(ctx, nil, kml.RootOID, from, kml.RootOID, to, 0))
		}
	})
	b.Run("rename/bare", func(b *testing.B) {
		for from, to := bare+"/x", bare+"/y"; b.Loop(); from, to = to, from {
			check(b, os.Rename(from, to))
		}
		os.Rename(bare+"/y", bare+"/x")
	})
	b.Run("chmod/tree", func(b *testing.B) {
		for i := uint32(0); b.Loop(); i++ {
			_, err := tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o600 + i%2})
			check(b, err)
		}
	})
	b.Run("chmod/bare", func(b *testing.B) {
		for i := uint32(0); b.Loop(); i++ {
			check(b, unix.Chmod(bare+"/x", 0o600+i%2))
		}
	})
	b.Run("getattr/tree", func(b *testing.B) {
		for b.Loop() {
			_, err := tr.Getattr(ctx, nil, a.OID)
			check(b, err)
		}
	})
	b.Run("getattr/bare", func(b *testing.B) {
		var st unix.Stat_t
		for b.Loop() {
			check(b, unix.Lstat(bare+"/x", &st))
		}
	})
	b.Run("lookup/tree", func(b *testing.B) {
		for b.Loop() {
			if _, err := tr.Lookup(ctx, nil, kml.RootOID, "x"); err != nil {
				if _, err := tr.Lookup(ctx, nil, kml.RootOID, "y"); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkAs is what being a user adds to an operation.
func BenchmarkAs(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to be somebody else")
	}
	for _, u := range []struct {
		name string
		c    *Cred
	}{{"process", nil}, {"user", &Cred{UID: 1234, GID: 1234, Groups: []uint32{7}}}} {
		b.Run(u.name, func(b *testing.B) {
			for b.Loop() {
				if err := u.c.as(func() error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
