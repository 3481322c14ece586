package guest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
)

func need(t *testing.T, lack string) {
	t.Helper()
	if lack != "" {
		t.Skip("missing " + lack)
	}
}

// isolate gives the test a folder for temporary files and checks at its end
// that the guest left nothing there.
func isolate(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// serve9P serves dir on the listener with the peer library's server.
func serve9P(t *testing.T, dir string, ln net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p9.NewServer(localfs.Attacher(dir)).ServeContext(ctx, ln)
	}()
	t.Cleanup(func() { cancel(); ln.Close(); <-done })
}

func TestScript(t *testing.T) {
	need(t, Missing())
	isolate(t)
	r, err := Run(t.Context(), Config{
		Script:  `echo "out $WORD $(id -u) $(cat /etc/given)"; echo err >&2; grep -wE '9p|fuse' /proc/filesystems; exit 7`,
		Modules: []string{"fuse"},
		Files:   map[string]string{"/etc/given": "file"},
		Env:     []string{"WORD=it's here"},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	if r.Code != 7 || r.Stdout != "out it's here 0 file\nnodev\t9p\nnodev\tfuse\n" || r.Stderr != "err\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
}

func TestTimeout(t *testing.T) {
	need(t, Missing())
	isolate(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("enough")
	var stopped atomic.Pointer[time.Time]
	_, err := Run(ctx, Config{
		Script: "echo started; echo started >/dev/console; while :; do sleep 60; done",
		Console: writerFunc(func(p []byte) {
			cancelOn(p, func() { now := time.Now(); stopped.CompareAndSwap(nil, &now); cancel(stop) })
		}),
	})
	if !errors.Is(err, ErrNoResult) || !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if at := stopped.Load(); at != nil && time.Since(*at) > 30*time.Second {
		t.Errorf("stopped after %v", time.Since(*at))
	}
}

func TestBadConfig(t *testing.T) {
	need(t, Missing())
	isolate(t)
	for name, c := range map[string]Config{
		"dynamic program": {Binaries: map[string]string{"x": kernelPath}},
		"absent program":  {Binaries: map[string]string{"x": "/nonexistent"}},
		"absent module":   {Modules: []string{"nonexistent"}},
		"path outside":    {Files: map[string]string{"../x": ""}},
	} {
		if _, err := Run(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMountOverTAP(t *testing.T) {
	need(t, MissingNet())
	isolate(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	serve9P(t, dir, ln)
	r, err := Run(t.Context(), Config{
		Script: `set -e
mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,msize=65536 $HOST /mnt
ls /mnt
cat /mnt/hello
echo from the guest >/mnt/reply
mkdir /mnt/dir
umount /mnt`,
		Forward: map[int]string{5640: "unix!" + ln.Addr().String()},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	if r.Code != 0 || r.Stdout != "hello\nfrom the host\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "reply")); err != nil || string(got) != "from the guest\n" {
		t.Errorf("reply: %q, %v", got, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "dir")); err != nil || !fi.IsDir() {
		t.Errorf("dir: %v, %v", fi, err)
	}
}

// TestMountOfOurs mounts this project's server in the host and has the kernel
// use it as a folder.
func TestMountOfOurs(t *testing.T) {
	need(t, MissingNet())
	isolate(t)
	dir := t.TempDir()
	addr := "unix!" + filepath.Join(t.TempDir(), "sock")
	ln, err := p9srv.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := p9srv.New(localfs.Attacher(dir), p9srv.Options{})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(t.Context()), ln) }()
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	r, err := Run(t.Context(), Config{
		Script: `set -e
mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,msize=262144,cache=none $HOST /mnt
cd /mnt
mkdir -p a/b
head -c 3000000 /dev/urandom >a/b/big
cp a/b/big copy
cmp a/b/big copy
mv copy a/moved
ln a/moved a/hard
ln -s moved a/soft
cmp a/soft a/b/big
i=0; while [ $i -lt 100 ]; do echo $i >a/f$i; i=$((i+1)); done
ls a | wc -l
rm a/f*
ls a
cat a/absent 2>/dev/null && exit 9
rmdir a/b 2>/dev/null && exit 9
cd /
umount /mnt`,
		Forward: map[int]string{5640: addr},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	if r.Code != 0 || r.Stdout != "104\nb\nhard\nmoved\nsoft\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
}

func TestMountOverLoopback(t *testing.T) {
	need(t, Missing())
	if testing.Short() {
		t.Skip("builds a program")
	}
	isolate(t)
	bin := filepath.Join(t.TempDir(), "p9ufs")
	if err := Build(t.Context(), bin, "./testdata/server"); err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Config{
		Script: `set -e
mkdir /srv; echo inside >/srv/file
server 127.0.0.1:5640 /srv &
until netstat -ltn | grep -q :5640; do usleep 10000; done
mount -t 9p -o trans=tcp,port=5640,version=9p2000.L 127.0.0.1 /mnt
cat /mnt/file
cp /bin/server /mnt/copy
cmp /bin/server /srv/copy`,
		Binaries: map[string]string{"server": bin},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	if r.Code != 0 || r.Stdout != "inside\n" {
		t.Errorf("code %d, stdout %q, stderr %q\n%s", r.Code, r.Stdout, r.Stderr, r.Console)
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func cancelOn(p []byte, f func()) {
	if strings.Contains(string(p), "started") {
		f()
	}
}
