package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/p9srv/plain"
)

// oldScript works on a mount of an old dialect and says what it sees. Links,
// devices, owners and more permission bits than nine are for 9P2000.u alone.
const oldScript = `
work() {
	cd /mnt && mkdir -p t && cd t || return
	echo hello > f && cat f
	mkdir d && echo more >> f && mv f g && cat g
	chmod 640 g && stat -c '%A %s' g
	truncate -s 3 g && stat -c %s g
	for i in $(seq 1 300); do echo $i > d/file-with-a-long-name-$i; done
	ls d | wc -l
	cat d/* | wc -l
	dd if=/dev/zero of=big bs=64k count=40 2>/dev/null && stat -c %s big
	sync; rm -r d big
	touch -d '2001-02-03 04:05:06' g && stat -c %Y g
	cat none 2>/dev/null || echo none
	rmdir ../t 2>&1 | grep -o 'not empty'
}
unix() {
	ln -s g s && readlink s && cat s
	echo; ln g h && stat -c '%h %U' g
	mkfifo p && stat -c %F p
	chmod 4755 h && stat -c %A g
	rm s h p
}
`

const oldWant = `hello
hello
more
-rw-r----- 11
3
300
300
2621440
981173106
none
not empty
`

const oldUnixWant = `g
hel
2 root
fifo
-rwsr-xr-x
`

// TestOldDialects has Linux's 9P client work in 9P2000.u and 9P2000 on a
// journaled tree and on a plain one.
func TestOldDialects(t *testing.T) {
	t.Parallel() // with the other guests
	need(t, MissingNet())
	tr, journal := journaled(t)
	dir := t.TempDir()
	pt, err := plain.Open(dir, plain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pt.Close(); err != nil {
			t.Error(err)
		}
	})
	addrs := map[int]string{5640: journal, 5641: serveAttacher(t, pt)}
	var script, want strings.Builder
	script.WriteString("export TZ=UTC\n" + oldScript)
	for port := 5640; port <= 5641; port++ {
		for _, d := range []string{"9p2000.u", "9p2000"} {
			fmt.Fprintf(&script, "echo '== %[1]s %[2]d'\nmkdir -p /mnt; mount -t 9p -o trans=tcp,port=%[2]d,version=%[1]s,msize=32768,cache=none,uname=root $HOST /mnt\nwork\n", d, port)
			fmt.Fprintf(&want, "== %s %d\n%s", d, port, oldWant)
			if d == "9p2000.u" {
				script.WriteString("unix\n")
				want.WriteString(oldUnixWant)
			}
			script.WriteString("cd /; rm -r /mnt/t; ls -d /mnt/t 2>/dev/null; umount /mnt\n")
		}
	}
	// Four mounts in one guest, slow with the race detector.
	r, err := Run(t.Context(), Config{Script: script.String(), Forward: addrs, Timeout: 3 * time.Minute})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.Stderr, r.Console)
	}
	if r.Stdout != want.String() || r.Stderr != "" {
		t.Errorf("stdout:\n%s\nwant:\n%s\nstderr: %s", r.Stdout, &want, r.Stderr)
	}
	agrees(t, tr)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
