#!/bin/sh
# Measures mezzo replicate beside cp and rsync, each on the same files in the same
# run: a first copy of many small files and of one large one, and, with a replica
# that follows, a rename of a full folder. usage: bench_replicate.sh MEZZO [SCRATCH]
set -eu
mezzo=$1
dir=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/bench.XXXXXX")
master= copy=
end() {
	for p in $copy $master; do kill "$p" 2>/dev/null || true; done
	wait
	rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM
cd "$dir"

# seconds COMMAND...: how long it takes, synced.
seconds() {
	sync -f .
	a=$(date +%s%N)
	"$@" >/dev/null
	sync -f .
	b=$(date +%s%N)
	awk "BEGIN { printf \"%.2f\", ($b - $a) / 1e9 }"
}
row() { printf '%-34s %10s %10s %10s\n' "$@"; }

# serve FOLDER: it is a fileset, and served.
serve() {
	[ -e "$1/.mezzo" ] || "$mezzo" init "$1" >/dev/null
	"$mezzo" serve "$1" >/dev/null &
	master=$!
	until [ -S "$1/.mezzo/socket" ]; do sleep 0.05; done
}
stop() {
	kill "$master"
	wait "$master" || true
	master=
}

compare() {
	c=$(seconds cp -a "$2" "c-$2")
	r=-
	if command -v rsync >/dev/null; then r=$(seconds rsync -a --exclude .mezzo "$2/" "r-$2/"); fi
	serve "$2"
	m=$(seconds "$mezzo" replicate --once "$2" "m-$2")
	stop
	row "$1" "$c" "$r" "$m"
	rm -rf "c-$2" "r-$2"
}

row 'first copy, seconds' cp+sync rsync mezzo
mkdir small large
i=0
while [ $i -lt 100 ]; do
	mkdir small/d$i
	head -c 409600 /dev/urandom | split -a 3 -b 4096 - small/d$i/f
	i=$((i + 1))
done
compare '10,000 files of 4 KiB' small
head -c 1073741824 /dev/urandom >large/file
compare 'one file of 1 GiB' large

serve small
"$mezzo" replicate small m-small 2>/dev/null &
copy=$!
until "$mezzo" sync --wait m-small >/dev/null 2>&1; do sleep 0.05; done
mkdir small/all && mv small/d* small/all/
until [ -d m-small/all/d99 ]; do sleep 0.05; done
"$mezzo" sync --wait m-small >/dev/null
a=$(date +%s%N)
mv small/all small/renamed
until [ -d m-small/renamed ]; do :; done
b=$(date +%s%N)
echo "rename of a folder with 10,000 files, until it is there: $(((b - a) / 1000000)) ms"
a=$(cat /proc/$copy/stat | cut -d' ' -f14,15)
sleep 3
b=$(cat /proc/$copy/stat | cut -d' ' -f14,15)
echo "CPU of an idle replica in 3 s, in ticks of user and system time: from $a to $b"
