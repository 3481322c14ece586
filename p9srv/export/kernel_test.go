package export

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/testscripts/guest"
)

// kernelScript is what the kernel's own client does with a master, the session
// of mezzo-9p(7) in it.
const kernelScript = `
set -e
m() { mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,access=user,msize=131072,cache=$1 $HOST /mnt; }
mkdir -p /mnt
m none
E=/mnt/.mezzo
cat $E/status
touch /mnt/hello
grep hello $E/log | tail -n 1
[ "$(wc -c <$E/log)" = "$(stat -c %s $E/log)" ]
[ "$(wc -c <$E/kml)" = "$(stat -c %s $E/kml)" ]
cp $E/kml /tmp/kml
ls -a /mnt | grep -q mezzo && exit 3
ls $E | tr '\n' ' '; echo
mkdir /mnt/d
echo data >/mnt/d/f
echo more >>/mnt/d/f
ln /mnt/d/f /mnt/d/g
ln -s f /mnt/d/l
mkfifo /mnt/d/p
mknod /mnt/d/n c 1 3
mv /mnt/d/g /mnt/moved
chmod 4750 /mnt/moved
touch -d '2001-02-03 04:05:06' /mnt/moved
stat -c '%a %h %s %Y' /mnt/moved
readlink /mnt/d/l
exec 4<>/mnt/d/gone
rm /mnt/d/gone
echo unlinked >&4
chmod 600 /proc/self/fd/4
cat /proc/self/fd/4
exec 4>&-
# The kernel's inode numbers are the oids and 2.
cat $E/oid/$(printf %016x $(($(stat -c %i /mnt/d/f) - 2)))
exec 3<>$E/snapshot
echo 'under 0:1 depth 1' >&3
cat <&3 | wc -c
exec 3>&-
exec 3<>$E/feed
echo 'from 0.0 crc 00000000 inline 0' >&3
# The kernel asks on until the buffer is full, so it must not be larger than
# what comes.
dd bs=5 count=1 <&3 2>/dev/null | wc -c
exec 3>&-
dd if=/dev/zero of=/mnt/big bs=1M count=9 2>/dev/null
cmp -n 9437184 /mnt/big /dev/zero && echo same
rm -r /mnt/d
ls /mnt | tr '\n' ' '; echo
sync
umount /mnt
for c in mmap loose; do
	m $c
	cat $E/status | head -n 1
	[ "$(cat $E/log | wc -l)" -gt 5 ]
	umount /mnt
done
echo end
`

// TestKernel has Linux mount the master and use all of it.
func TestKernel(t *testing.T) {
	if lack := guest.MissingNet(); lack != "" {
		t.Skip("missing " + lack)
	}
	m := newMaster(t, JournalOptions{})
	if err := os.Chmod(m.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	srv := p9srv.New(m.e, p9srv.Options{Trace: func(_ uint64, s string) {
		if testing.Verbose() {
			t.Log(s)
		}
	}})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	defer func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r, err := guest.Run(t.Context(), guest.Config{Script: kernelScript, Forward: map[int]string{5640: "unix!" + l.Addr().String()}})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	if r.Code != 0 {
		t.Fatalf("code %d\n%s\n%s\n%s", r.Code, r.Stdout, r.Stderr, m.log)
	}
	for _, want := range []string{
		"role: master\n", `"hello"`, "4750 2 10 981173106\n", "unlinked\n", "data\nmore\n", "\nsame\nbig hello moved \n",
		"chunks clients ctl damaged digest feed kml log mend oid permit policy reint snapshot stage status \n", "\n5\n", "\nend\n",
	} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("%q is not in\n%s\n%s", want, r.Stdout, r.Stderr)
		}
	}
}
