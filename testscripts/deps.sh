#!/bin/sh
# Installs what the tests need where it may (root, with apt-get), and says what
# is missing where it may not. Tests that lack something skip and say so.

set -u

# command=package, for each program a test runs
needs='fusermount3=fuse3 linux.uml=user-mode-linux qemu-system-x86_64=qemu-system-x86
busybox=busybox-static kmod=kmod cpio=cpio mandoc=mandoc diod=diod setfattr=attr
setfacl=acl ip=iproute2 git=git perl=perl sqlite3=sqlite3 ed=ed rsync=rsync
mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs'

PATH=$PATH:/usr/sbin:/sbin
missing=
for n in $needs; do
	command -v "${n%%=*}" >/dev/null 2>&1 || missing="$missing ${n##*=}"
done
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	log=$(mktemp)
	if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
		tail -n 5 "$log" >&2
	fi
	rm -f "$log"
	left=
	for n in $needs; do
		command -v "${n%%=*}" >/dev/null 2>&1 || left="$left ${n##*=}"
	done
	missing=$left
fi
if [ -n "$missing" ]; then
	echo "deps: missing packages:$missing (the tests that need them skip)" >&2
fi

# A guest of QEMU boots Debian's kernel, which is unpacked and never installed:
# what 9P over virtio needs of it, in the cache of who runs the tests.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mezzo-test/kernel
fetch_kernel() {
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null && command -v depmod >/dev/null || return 1
	package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
	[ -n "$package" ] || return 1
	version=${package#linux-image-}
	work=$(mktemp -d) || return 1
	if (cd "$work" && apt-get download -q "$package" && mkdir root &&
		dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C root "./boot/vmlinuz-$version" \
			"./lib/modules/$version/modules.builtin" "./lib/modules/$version/modules.order" \
			"./lib/modules/$version/kernel/fs" "./lib/modules/$version/kernel/net/9p" "./lib/modules/$version/kernel/net/core" \
			"./lib/modules/$version/kernel/drivers/virtio" "./lib/modules/$version/kernel/drivers/char" \
			"./lib/modules/$version/kernel/drivers/net" &&
		depmod -b root "$version") >"$work/log" 2>&1 && mkdir -p "${cache%/*}" && rm -rf "$cache" && mv "$work/root" "$cache"; then
		rm -rf "$work"
		return 0
	fi
	rm -rf "$work"
	return 1
}
if ! ls "$cache"/lib/modules/*/modules.dep >/dev/null 2>&1 && ! fetch_kernel; then
	echo "deps: no kernel for QEMU could be fetched (the tests that boot one skip)" >&2
fi
if [ ! -c /dev/fuse ]; then
	echo "deps: no /dev/fuse: the tests that mount skip; load it with: modprobe fuse" >&2
fi
exit 0
