package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxWrite is the largest read or write request, in bytes: the kernel's limit
// of 256 pages.
const maxWrite = 1 << 20

// mountpoint is a mount that was made.
type mountpoint struct {
	path   string // absolute, without symbolic links
	dev    uint32 // minor device number, the connection's number in fusectl
	direct bool   // made by mount(2), not by the helper
}

// CheckMountPoint says, before anything else is done, whether Mount could mount
// at path: ErrMounted, ErrNotDir, ErrNotEmpty and the like. What a killed
// server of ours left mounted there is taken away.
func CheckMountPoint(path string) error {
	_, err := checkPoint(path)
	return err
}

// checkPoint says whether path can be mounted on, and its real name. It does
// not enter a mount that is there.
func checkPoint(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	// The folder above is resolved first: the last step may be a dead mount.
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	real := filepath.Join(dir, filepath.Base(abs))
	if err := clearDead(real); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if real, err = filepath.EvalSymlinks(real); errors.Is(err, unix.ENOTCONN) {
		return "", fmt.Errorf("%s: %w", path, ErrMounted)
	} else if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if _, err := findMount(real); err == nil {
		return "", fmt.Errorf("%s: %w", path, ErrMounted)
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("%s: %w", path, ErrNotDir)
	}
	names, err := os.ReadDir(real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if len(names) > 0 {
		return "", fmt.Errorf("%s: %w", path, ErrNotEmpty)
	}
	return real, nil
}

// clearDead takes away a mount of ours whose server was killed; any other
// mount at path is ErrMounted.
func clearDead(path string) error {
	t, err := findMount(path)
	if err != nil {
		return nil
	}
	if t.fstype != fsType {
		return ErrMounted
	}
	if !isDead(path) {
		return ErrMounted
	}
	// The lazy way does not wait: hence Background.
	if err := (mountpoint{path: path, direct: os.Geteuid() == 0}).detach(context.Background(), true); err != nil {
		return fmt.Errorf("%w: %w", ErrMounted, err)
	}
	if _, err := findMount(path); err == nil {
		return ErrMounted // one below another
	}
	return nil
}

// isDead reports whether a mount has lost its server. A server that is there
// and does not answer would hold the question for ever: after a moment it
// counts as alive, and the goroutine that asked ends with that server.
func isDead(path string) bool {
	answer := make(chan error, 1)
	go func() {
		// What stat(2) says may be in the kernel's cache; this is not.
		answer <- unix.Statfs(path, new(unix.Statfs_t))
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN)
	case <-time.After(time.Second):
		return false
	}
}

// mount makes the mount and returns the descriptor of its connection.
func mount(path string, o Options) (fd int, m mountpoint, err error) {
	real, err := checkPoint(path)
	if err != nil {
		return -1, m, err
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return -1, m, fmt.Errorf("%s: %w", path, ErrNoDevice)
	}
	m = mountpoint{path: real, direct: os.Geteuid() == 0}
	if m.direct {
		fd, err = mountDirect(real, o)
	} else {
		fd, err = mountHelper(real, o)
	}
	if err != nil {
		return -1, m, fmt.Errorf("%s: %w", path, err)
	}
	t, err := findMount(real)
	if err != nil {
		unix.Close(fd)
		return -1, m, fmt.Errorf("%s: mounted, but not in the mount table: %w", path, err)
	}
	m.dev = t.minor
	return fd, m, nil
}

// source is what the mount table shows as the device.
func (o Options) source() string {
	if o.Name == "" {
		return "mezzo"
	}
	return o.Name
}

func mountDirect(path string, o Options) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d",
		fd, os.Geteuid(), os.Getegid(), maxWrite)
	if o.AllowOther {
		data += ",allow_other"
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.source(), path, fsType, flags, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount: %w", err)
	}
	return fd, nil
}

// helper is the path of fusermount3, or of its older name.
func helper() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", ErrNoHelper
}

// mountHelper lets fusermount3 mount and hand the descriptor over; its
// protocol is that of libfuse's lib/mount.c.
func mountHelper(path string, o Options) (int, error) {
	bin, err := helper()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer local.Close()
	defer remote.Close()
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	opts := fmt.Sprintf("fsname=%s,subtype=mezzo,default_permissions,max_read=%d", escape.Replace(o.source()), maxWrite)
	if o.AllowOther {
		opts += ",allow_other"
	}
	if o.ReadOnly {
		opts += ",ro"
	}
	cmd := exec.Command(bin, "-o", opts, "--", path)
	cmd.ExtraFiles = []*os.File{remote}
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return -1, fmt.Errorf("%w: %s (%w)", ErrHelper, strings.TrimSpace(said.String()), err)
	}
	return receiveFd(int(local.Fd()))
}

// receiveFd takes the descriptor the helper sent.
func receiveFd(sock int) (int, error) {
	buf, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("%w: it sent no descriptor", ErrHelper)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%w: it sent no descriptor", ErrHelper)
	}
	return fds[0], nil
}

var errNoMount = errors.New("nothing is mounted there")

// tableEntry is what the mount table says of a mount.
type tableEntry struct {
	minor  uint32 // minor device number
	fstype string
}

// fsType is our mounts' type in the mount table.
const fsType = "fuse.mezzo"

// findMount looks path up in the mount table and returns what is on top there.
// It touches no file system.
func findMount(path string) (tableEntry, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return tableEntry{}, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var top tableEntry
	found := false
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 5 || unescape.Replace(f[4]) != path {
			continue
		}
		_, s, _ := strings.Cut(f[2], ":")
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return top, fmt.Errorf("mountinfo: %q: %w", f[2], err)
		}
		top, found = tableEntry{minor: uint32(n)}, true
		if _, after, ok := strings.Cut(line, " - "); ok {
			top.fstype, _, _ = strings.Cut(after, " ")
		}
	}
	if !found {
		return top, errNoMount
	}
	return top, nil
}

// mounted reports whether m still stands at its place.
func (m mountpoint) mounted() bool {
	t, err := findMount(m.path)
	return err == nil && t.minor == m.dev
}

// unmount takes the mount away; lazily when it is in use or ctx has ended,
// and then lazy is true.
func (m mountpoint) unmount(ctx context.Context) (lazy bool, err error) {
	const tries = 5 // a program that just left may hold a reference for a moment
	for try := 0; ; try++ {
		if !m.mounted() {
			return false, nil
		}
		if err = m.detach(ctx, false); err == nil {
			return false, nil
		}
		if try == tries || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(5<<try) * time.Millisecond):
		}
	}
	// The lazy way does not wait, so ctx has no say in it: hence Background.
	if err = m.detach(context.Background(), true); err != nil {
		return true, fmt.Errorf("%s: %w", m.path, err)
	}
	return true, nil
}

func (m mountpoint) detach(ctx context.Context, lazy bool) error {
	if m.direct {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			// MNT_FORCE is FUSE's way to end a connection where fusectl is
			// not mounted; see abort.
			flags |= unix.MNT_DETACH | unix.MNT_FORCE
		}
		return unix.Unmount(m.path, flags)
	}
	bin, err := helper()
	if err != nil {
		return err
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	out, err := exec.CommandContext(ctx, bin, append(args, "--", m.path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s (%w)", ErrHelper, bytes.TrimSpace(out), err)
	}
	return nil
}

// abort ends the connection: every request in flight and every open file of it
// fails from then on. A forced unmount has done it already; fusectl does it for
// the user who mounted, where it is mounted.
func (m mountpoint) abort() error {
	p := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.dev)
	err := os.WriteFile(p, []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		if m.direct && m.mounted() {
			// It does not wait: hence Background.
			return m.detach(context.Background(), true)
		}
		return nil
	}
	return err
}
