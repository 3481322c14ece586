#!/bin/sh
# soak.sh MINUTES [PACKAGE...]: runs the tests that draw from testutil.Rand or
# testutil.Check with new seeds, round after round, until the time is up. It
# shows each failure, goes on, and ends with 1 if there was one.

set -u
minutes=${1:?usage: soak.sh MINUTES [PACKAGE...]}
shift
end=$(($(date +%s) + minutes * 60))
cd "$(dirname "$0")/../.." || exit 1
root=$PWD
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# The names of a folder's random tests, as a pattern for -run.
tests_of() {
	awk '/^func /{name = $2; sub(/\(.*/, "", name)} /testutil\.(Rand|Check)\(/{print name}' "$1"/*_test.go | sort -u | paste -sd '|' -
}

go list -f '{{.Dir}}' ${*:-./...} >"$work/all" || exit 1
while read -r dir; do
	ls "$dir"/*_test.go >/dev/null 2>&1 && [ -n "$(tests_of "$dir")" ] && echo "$dir"
done <"$work/all" >"$work/dirs"
[ -s "$work/dirs" ] || { echo "soak: no random tests there" >&2; exit 1; }

n=0
while read -r dir; do
	n=$((n + 1))
	(cd "$dir" && go test -c -o "$work/$n.test" .) || exit 1
done <"$work/dirs"

rounds=0 failed=0
while [ "$(date +%s)" -lt "$end" ]; do
	rounds=$((rounds + 1)) n=0
	while read -r dir; do
		n=$((n + 1))
		[ "$(date +%s)" -lt "$end" ] || break
		if ! (cd "$dir" && "$work/$n.test" -test.run "^($(tests_of "$dir"))\$" -test.timeout 20m -seed random) >"$work/log" 2>&1 </dev/null; then
			failed=$((failed + 1))
			echo "soak: ${dir#"$root"/} failed in round $rounds:"
			cat "$work/log"
		fi
	done <"$work/dirs"
done
echo "soak: $rounds rounds, $failed failures"
[ "$failed" = 0 ]
