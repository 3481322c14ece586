#!/bin/sh
# Measures mezzo replicate beside cp, rsync, Unison and lsyncd, each on the same
# files in the same run. What is not installed is skipped, and said.
# usage: bench_replicate.sh MEZZO [SCRATCH]; FILES, MIB, ROUNDS, CREATES and
# REPLICAS make it smaller or larger.
set -eu
mezzo=$1
dir=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/bench.XXXXXX")
files=${FILES:-10000} mib=${MIB:-1024} rounds=${ROUNDS:-200} creates=${CREATES:-2000} replicas=${REPLICAS:-20}
master= copies= others=
end() {
	fusermount3 -u "$dir/mnt" 2>/dev/null || true
	for p in $copies $others $master; do kill "$p" 2>/dev/null || true; done
	wait
	rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM
cd "$dir"

have() { command -v "$1" >/dev/null 2>&1; }
now() { date +%s%N; }
# since BEGIN: seconds.
since() { awk "BEGIN { printf \"%.2f\", ($(now) - $1) / 1e9 }"; }
# seconds COMMAND...: how long it takes, synced.
seconds() {
	sync -f .
	a=$(now)
	"$@" >/dev/null 2>&1
	sync -f .
	since "$a"
}
# cpu PID: seconds of processor time that it has used, with those of its threads.
cpu() { awk '{ sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / 100 }' "/proc/$1/stat"; }
row() { printf '%-44s %8s %8s %8s %8s %8s\n' "$@"; }
line() { printf '%-44s %s\n' "$@"; }

# serve FOLDER [FLAG...]: it is a fileset, and served.
serve() {
	folder=$1
	shift
	[ -e "$folder/.mezzo" ] || "$mezzo" init "$folder" >/dev/null
	"$mezzo" serve "$@" "$folder" >/dev/null 2>&1 &
	master=$!
	until [ -S "$folder/.mezzo/socket" ]; do sleep 0.05; done
}
stop() {
	kill "$1"
	wait "$1" || true
}
# replicate ADDR DIR: it follows, and is equal; its process is $copy.
replicate() {
	"$mezzo" replicate "$1" "$2" >/dev/null 2>&1 &
	copy=$!
	copies="$copies $copy"
	until "$mezzo" sync --wait "$2" >/dev/null 2>&1; do sleep 0.05; done
}

# A server for rsync over ssh, on loopback and with keys of its own.
ssh_port=
start_sshd() {
	have ssh && have ssh-keygen && [ -x /usr/sbin/sshd ] && have rsync || return 0
	mkdir -p ssh /run/sshd
	chmod 700 ssh
	ssh-keygen -q -t ed25519 -N '' -f ssh/host && ssh-keygen -q -t ed25519 -N '' -f ssh/user && cp ssh/user.pub ssh/authorized || return 0
	port=$((20000 + $$ % 20000))
	/usr/sbin/sshd -D -f /dev/null -p $port -h "$dir/ssh/host" -o ListenAddress=127.0.0.1 -o PidFile=none \
		-o AuthorizedKeysFile="$dir/ssh/authorized" -o StrictModes=no -o UsePAM=no -o PermitRootLogin=yes 2>/dev/null &
	others="$others $!"
	remote="ssh -p $port -i $dir/ssh/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		if $remote 127.0.0.1 true 2>/dev/null; then
			ssh_port=$port
			return 0
		fi
		sleep 0.1
	done
}

compare() {
	c=$(seconds cp -a "$2" "c-$2")
	r=- s=- u=-
	if have rsync; then r=$(seconds rsync -a --exclude .mezzo "$2/" "r-$2/"); fi
	if [ -n "$ssh_port" ]; then s=$(seconds rsync -a --exclude .mezzo -e "$remote" "$2/" "127.0.0.1:$dir/s-$2/"); fi
	if have unison; then
		mkdir "u-$2"
		u=$(UNISON=$dir/unison seconds unison -batch -silent -times -perms -1 -owner -group -ignore 'Path .mezzo' "$dir/$2" "$dir/u-$2")
	fi
	serve "$2"
	m=$(seconds "$mezzo" replicate --once "$2" "m-$2")
	stop $master
	master=
	row "$1" "$c" "$r" "$s" "$u" "$m"
	rm -rf "c-$2" "r-$2" "s-$2" "u-$2"
}

# latency FROM TO: milliseconds from the close of a file to its being seen.
cat >latency.pl <<'PERL'
use strict; use Time::HiRes qw(time sleep);
my ($from, $to, $n) = @ARGV;
my @t;
for my $i (1 .. $n) {
	sleep(0.02);
	open(my $f, ">", "$from/lat$i") or die "$from: $!"; print $f "contents $i\n"; close($f) or die $!;
	my $a = time;
	until (-s "$to/lat$i") { die "lat$i was never seen\n" if time - $a > 30 }
	push @t, 1000 * (time - $a);
}
@t = sort { $a <=> $b } @t;
printf "p50 %.1f ms, p99 %.1f ms\n", $t[$n / 2], $t[int($n * 0.99)];
PERL
# creates FROM TO: how many files a second, until all are there.
cat >creates.pl <<'PERL'
use strict; use Time::HiRes qw(time);
my ($from, $to, $n) = @ARGV;
mkdir "$from/made" or die $!;
my $a = time;
for my $i (1 .. $n) { open(my $f, ">", "$from/made/$i") or die $!; close($f) }
my $w = time - $a;
until (-e "$to/made/$n") { die "never seen\n" if time - $a > 60 }
while (1) { opendir(my $d, "$to/made"); my $c = grep { !/^\./ } readdir($d); last if $c == $n; die "never seen\n" if time - $a > 60 }
my $e = time - $a;
printf "written at %.0f/s, carried at %.0f/s\n", $n / $w, $n / $e;
PERL

start_sshd
for p in rsync unison lsyncd syncthing; do have $p || line "not installed, so not compared:" $p; done
[ -n "$ssh_port" ] || line 'not compared:' 'rsync over ssh (no sshd that this user may run)'

mkdir small large
i=0
while [ $i -lt 100 ]; do
	mkdir small/d$i
	head -c $((files * 4096 / 100)) /dev/urandom | split -a 4 -b 4096 - small/d$i/f
	i=$((i + 1))
done
head -c $((mib * 1048576)) /dev/urandom >large/file
row 'first copy, seconds' cp+sync rsync rsync/ssh unison mezzo
compare "$files files of 4 KiB" small
compare "one file of $mib MiB" large

serve small
replicate small m-small
line "close to visible, found in the master's folder" "$(perl latency.pl small m-small $rounds)"
line "$creates creates, found in the master's folder" "$(perl creates.pl small m-small $creates)"
rm -rf small/made small/lat*
if [ -c /dev/fuse ]; then
	mkdir mnt
	"$mezzo" mount --cache cache small mnt >/dev/null 2>&1
	line 'close to visible, written in a mount' "$(perl latency.pl mnt m-small $rounds)"
	line "$creates creates, written in a mount" "$(perl creates.pl mnt m-small $creates)"
	rm -rf mnt/made mnt/lat*
	"$mezzo" sync --wait mnt >/dev/null
	fusermount3 -u mnt
else
	line 'not measured: writes in a mount' 'no /dev/fuse'
fi
if have lsyncd; then
	mkdir l-from l-to
	lsyncd -nodaemon -delay 0 -rsync "$dir/l-from" "$dir/l-to" >/dev/null 2>&1 &
	lsyncd=$!
	others="$others $lsyncd"
	sleep 2
	line 'close to visible, lsyncd' "$(perl latency.pl l-from l-to $((rounds / 10 + 1)) 2>&1)"
	line "$creates creates, lsyncd" "$(perl creates.pl l-from l-to $creates 2>&1)"
	kill $lsyncd 2>/dev/null || true
fi

mkdir small/all && mv small/d* small/all/
until [ -d m-small/all/d99 ]; do sleep 0.05; done
"$mezzo" sync --wait m-small >/dev/null
a=$(now)
mv small/all small/renamed
until [ -d m-small/renamed ]; do :; done
b=$(now)
line "rename of a folder of $files files" "$(((b - a) / 1000)) us"
a=$(cpu $copy) c=$(cpu $master)
sleep 10
line 'CPU in 10 s of rest' "replica $(cpu $copy | awk "{ printf \"%.2f\", \$1 - $a }") s, master $(cpu $master | awk "{ printf \"%.2f\", \$1 - $c }") s"
stop $copy
stop $master

# 4 KiB changed in a large file, in bytes that the replica's connections received.
received() { ss -Htinp 2>/dev/null | grep -A1 "pid=$copy," | sed -n 's/.*bytes_received:\([0-9]*\).*/\1/p' | awk '{ s += $1 } END { print s + 0 }'; }
port=$((40000 + $$ % 20000))
serve large --listen "tcp!127.0.0.1!$port"
if have ss; then
	replicate "tcp!127.0.0.1!$port" m-large
	a=$(received) t=$(now)
	head -c 4096 /dev/urandom | dd of=large/file bs=4096 seek=$((mib * 100)) conv=notrunc 2>/dev/null
	until cmp -s -i $((mib * 409600)) -n 4096 large/file m-large/file; do :; done
	e=$(since "$t")
	"$mezzo" sync --wait m-large >/dev/null
	line "4 KiB changed in $mib MiB, found" "$(($(received) - a)) bytes, $e s"
	if [ -c /dev/fuse ]; then
		"$mezzo" mount --cache cache2 large mnt >/dev/null 2>&1
		a=$(received) t=$(now)
		head -c 4096 /dev/urandom | dd of=mnt/file bs=4096 seek=$((mib * 50)) conv=notrunc 2>/dev/null
		"$mezzo" sync --wait mnt >/dev/null
		until cmp -s -i $((mib * 204800)) -n 4096 large/file m-large/file; do :; done
		e=$(since "$t")
		"$mezzo" sync --wait m-large >/dev/null
		line "4 KiB changed in $mib MiB, in a mount" "$(($(received) - a)) bytes, $e s"
		fusermount3 -u mnt
	fi
	stop $copy
else
	line 'not measured: bytes on the wire' 'no ss'
fi
stop $master
rm -rf large m-large

# Many replicas of one master.
mkdir fan
cp -a m-small/renamed/d0 m-small/renamed/d1 m-small/renamed/d2 m-small/renamed/d3 fan/
serve fan
a=$(cpu $master) t=$(now) i=0 first=$copies
while [ $i -lt "$replicas" ]; do
	"$mezzo" replicate fan m-fan$i >/dev/null 2>&1 &
	copies="$copies $!"
	i=$((i + 1))
done
wait_all() {
	i=0
	while [ $i -lt "$replicas" ]; do
		until "$mezzo" sync --wait m-fan$i >/dev/null 2>&1; do sleep 0.1; done
		i=$((i + 1))
	done
}
wait_all
line "$replicas replicas: first copy of $(find fan -name .mezzo -prune -o -type f -print | wc -l) files" \
	"$(since "$t") s, $(cpu $master | awk "{ printf \"%.1f\", 1000 * (\$1 - $a) / $replicas }") ms of the master's CPU each"
a=$(cpu $master) t=$(now)
perl creates.pl fan m-fan0 "$creates" >/dev/null
until [ "$(i=0; while [ $i -lt "$replicas" ]; do find m-fan$i/made -type f | wc -l; i=$((i + 1)); done | sort -u)" = "$creates" ]; do sleep 0.1; done
line "$replicas replicas: $creates creates" \
	"$(since "$t") s, $(cpu $master | awk "{ printf \"%.1f\", 1000 * (\$1 - $a) / $replicas }") ms of the master's CPU each"
