# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: every subtest of every program in /usr/libexec/uapi, each in a process of its own, with a time
# limit. Prints KTAP. The status of a program is the result of its subtest: 0 passed, 77 skipped, anything else failed.
# A program that skips prints its reason.

: "${TESTS_DIR:=/usr/libexec/uapi}" "${TESTS_SECONDS:=150}"

# Printing all of its symbols takes a debug kernel more than a second. So this is done once, and not in each of the
# subtests that inject failures.
if [ -e /proc/self/fail-nth ]; then
	grep ' [Tt] [^ ]*$' /proc/kallsyms | grep -v ']$' >/tmp/kernel-symbols && export VXE_SYMBOLS=/tmp/kernel-symbols
fi

set -- "$TESTS_DIR"/*
[ -e "$1" ] || set --
echo "KTAP version 1"
echo "1..$#"
n=0
for program in "$@"; do
	n=$((n + 1))
	name=${program##*/}
	bad=0 count=0
	if ! subtests=$("$program" --list-subtests 2>/tmp/log) || [ -z "$subtests" ]; then
		sed 's/^/# /' /tmp/log
		echo "not ok $n $name # lists no subtests"
		continue
	fi
	echo "    KTAP version 1"
	echo "    # Subtest: $name"
	echo "    1..$(echo "$subtests" | wc -l)"
	for subtest in $subtests; do
		count=$((count + 1))
		echo "guest: test $name $subtest" >/dev/kmsg
		timeout -s KILL "$TESTS_SECONDS" "$program" --run-subtest "$subtest" </dev/null >/tmp/log 2>&1
		status=$?
		case $status in
		0) echo "    ok $count $subtest" ;;
		77)
			reason=$(sed -n '/^Test requirement not met: /{s///;p;q}' /tmp/log | tr '#' ' ')
			echo "    ok $count $subtest # SKIP $reason"
			;;
		*)
			bad=$((bad + 1))
			tail -n 40 /tmp/log | sed 's/^/    # /'
			[ $status != 137 ] || echo "    # killed; the limit is $TESTS_SECONDS s"
			echo "    not ok $count $subtest"
			;;
		esac
	done
	killall -q -9 "$name"
	if [ $bad = 0 ]; then echo "ok $n $name"; else echo "not ok $n $name"; fi
done
# The report has the failed tests; the status is that of the runner.
exit 0
