package guest

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestEmulate(t *testing.T) {
	need(t, MissingQEMU())
	isolate(t)
	r, err := Run(t.Context(), Config{
		Emulate: true,
		Script:  `echo "out $WORD $(id -u) $(cat /etc/given)"; echo err >&2; grep -wE '9p|fuse' /proc/filesystems; exit 7`,
		Modules: []string{"fuse"},
		Files:   map[string]string{"/etc/given": "file"},
		Env:     []string{"WORD=it's here"},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	t.Log(r.Took)
	if r.Code != 7 || !strings.HasPrefix(r.Stdout, "out it's here 0 file\n") || !strings.Contains(r.Stdout, "nodev\t9p\n") ||
		!strings.Contains(r.Stdout, "nodev\tfuse\n") || r.Stderr != "err\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
}

// TestEmulatedV9FS has Debian's kernel work on a journaled tree over TCP.
func TestEmulatedV9FS(t *testing.T) {
	t.Parallel() // with the other guests
	need(t, Config{Emulate: true, Forward: map[int]string{}}.missing())
	if testing.Short() {
		t.Skip("emulates a machine for half a minute")
	}
	tr, addr := journaled(t)
	m := mode{"loose", "client"}
	skip := func(m mode) []string { return slices.Sorted(maps.Keys(m.limits())) }
	judge(t, Config{
		Emulate: true,
		Script:  workScript([]mode{m}, skip),
		Forward: map[int]string{5640: addr},
	}, program(t, "work"), 1)
	agrees(t, tr)
}

// portScript mounts by virtio-serial, without any network: works, mounts the
// ports again in another mode, and once more after the relay was killed.
const portScript = `
test -e /sys/class/net/eth0 && echo "there is a network" >&2
mkdir -p /mnt/a /mnt/b
umask 0
POSIXACL=,posixacl
ONLY=
for m in mmap,client none,user; do
	cache=${m%,*} access=${m#*,}
	echo "== $m"
	mezzo mount-port -o cache=$cache,access=$access$POSIXACL first /mnt/a || exit 1
	mezzo mount-port -o cache=$cache,access=$access$POSIXACL second /mnt/b || exit 1
	mezzo mount-port second /mnt/b 2>/tmp/busy && echo "a port was mounted twice" >&2
	grep -q busy /tmp/busy || cat /tmp/busy >&2
	mkdir /mnt/a/$m
	work -second /mnt/b/$m -full /mnt/a/full -skip "$SKIP" -only "$ONLY" /mnt/a/$m
	echo "code $?"
	umount /mnt/a && umount /mnt/b || exit 1
	until [ -z "$(pidof mezzo)" ]; do usleep 10000; done
	SKIP= POSIXACL= ONLY=copy,truncate,opentrunc,blocks,append,sync,mapread,statfs,rename,unlinkopen,links,xattrs,fcntl,append2
done
mezzo mount-port first /mnt/a && echo kept >/mnt/a/kept || exit 1
kill -9 $(pidof mezzo)
until ! cat /mnt/a/kept 2>/dev/null; do usleep 10000; done
umount -l /mnt/a
mezzo mount-port -o ro first /mnt/a || exit 1
grep -q kept /mnt/a/kept || echo "not kept" >&2
touch /mnt/a/x 2>/dev/null && echo "wrote to a read-only mount" >&2
umount /mnt/a
mezzo mount-port nowhere /mnt/a 2>&1 | grep -q 'no such port: there are .*first' || echo "no complaint" >&2
`

// TestPort has a guest without a network mount over virtio-serial ports, by
// mezzo mount-port.
func TestPort(t *testing.T) {
	t.Parallel() // with the other guests
	need(t, MissingQEMU())
	if testing.Short() {
		t.Skip("emulates a machine for half a minute")
	}
	mezzo := filepath.Join(t.TempDir(), "mezzo")
	if err := Build(t.Context(), mezzo, "../../cmd/mezzo"); err != nil {
		t.Fatal(err)
	}
	tr, addr := journaled(t)
	sock := strings.TrimPrefix(addr, "unix!")
	judge(t, Config{
		Emulate:  true,
		Script:   portScript,
		Binaries: map[string]string{"mezzo": mezzo},
		Ports:    map[string]string{"first": sock, "second": sock},
		Env:      []string{"SKIP=" + strings.Join(slices.Sorted(maps.Keys(mode{"mmap", "client"}.limits())), ",")},
	}, program(t, "work"), 2)
	agrees(t, tr)
}
