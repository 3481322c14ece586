// Package disk has file systems whose power tests can cut: on a loop device,
// stopped by the file system's own ioctl, or on a disk that loses any part of what
// was written since its last flush.
//
// Such a disk is served over FUSE by a process of its own, the test binary run
// again, so that a test that is killed leaves nothing behind that waits for
// itself. A test binary that uses one calls Serve first in its TestMain.
package disk
