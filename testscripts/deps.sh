#!/bin/sh
# Installs what the tests need where it may (root, with apt-get), and says what
# is missing where it may not. Tests that lack something skip and say so.

set -u

# command=package, for each program a test runs
needs='fusermount3=fuse3 linux.uml=user-mode-linux qemu-system-x86_64=qemu-system-x86
busybox=busybox-static kmod=kmod cpio=cpio mandoc=mandoc diod=diod setfattr=attr
setfacl=acl ip=iproute2 git=git'

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
if [ ! -c /dev/fuse ]; then
	echo "deps: no /dev/fuse: the tests that mount skip; load it with: modprobe fuse" >&2
fi
exit 0
