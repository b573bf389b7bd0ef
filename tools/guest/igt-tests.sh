# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: the tests of IGT that /etc/igt-tests names, one "NUMBER PROGRAM SUBTEST" a line ("-" for a program
# without subtests), each in a process and a cgroup of its own, for at most IGT_SECONDS. Prints what tools/igtrun reads:
#
#   @begin NUMBER
#   @jobs NAME: COUNT ...              the jobs that each device has executed until now
#   | OUTPUT                           each line that the test prints
#   @jobs NAME: COUNT ...
#   @end NUMBER STATUS [late|stuck]    late: it was killed; stuck: its processes do not end
#
# After a test that is stuck the guest runs no other.

TESTS=/usr/libexec/igt-gpu-tools
GROUP=/sys/fs/cgroup/test
# The most that is shown of a test's output, in bytes.
MOST=200000

mount -t cgroup2 none /sys/fs/cgroup || exit 1
cd $TESTS || exit 1

# Prints the counters of the devices, each once: the number of a card is that of its directory. A test may have bound a
# device anew.
jobs_done() {
	stats=
	for card in /dev/dri/card*; do
		for file in /sys/kernel/debug/dri/"${card#/dev/dri/card}"/gt*/stats; do
			[ ! -r "$file" ] || stats="$stats $file"
		done
	done
	# shellcheck disable=SC2046,SC2086
	[ -z "$stats" ] || echo "@jobs" $(grep -h "^$IGT_COUNTER:" $stats)
}

empty() { grep -q '^populated 0' $GROUP/cgroup.events; }

# What is left of a test, such as processes that it forked, ends with it.
end_group() {
	tries=0
	until empty; do
		[ $tries -lt 150 ] || return 1
		echo 1 >$GROUP/cgroup.kill
		tries=$((tries + 1))
		sleep 0.1
	done
	rmdir $GROUP
}

# Ends the test after its time, and shows where its threads are in the kernel. A pipe that nobody writes to lets it wait
# without a process of its own.
mkfifo /tmp/igt.never
end_late() {
	# shellcheck disable=SC3045
	read -r -t "$IGT_SECONDS" _ <>/tmp/igt.never
	while read -r thread; do
		echo "thread $thread, $(cat /proc/"$thread"/comm):"
		cat /proc/"$thread"/stack
	done <$GROUP/cgroup.threads >/tmp/igt.late 2>/dev/null
	echo 1 >$GROUP/cgroup.kill
}

while read -r number program subtest <&3; do
	test=$program
	[ "$subtest" = - ] || test=$program@$subtest
	echo "guest: test $test" >/dev/kmsg
	echo "@begin $number"
	jobs_done
	mkdir $GROUP || exit 1
	set -- ./"$program"
	[ "$subtest" = - ] || set -- "$@" --run-subtest "$subtest"
	rm -f /tmp/igt.late
	# shellcheck disable=SC2016
	sh -c 'echo $$ >"$1" && shift && exec "$@"' - $GROUP/cgroup.procs "$@" </dev/null >/tmp/igt.log 2>&1 3<&- &
	pid=$!
	end_late </dev/null 3<&- &
	watcher=$!
	wait $pid
	status=$?
	kill $watcher 2>/dev/null
	wait $watcher
	how=
	[ ! -e /tmp/igt.late ] || how=late
	end_group || how=stuck
	tail -c $MOST /tmp/igt.log | sed 's/^/| /'
	# The last line may have no end.
	echo
	[ "$how" != late ] || sed 's/^/| /' /tmp/igt.late
	jobs_done
	echo "@end $number $status $how"
	rm -f /tmp/igt.log
	[ "$how" != stuck ] || exit 1
done 3</etc/igt-tests
echo "guest: test after all others" >/dev/kmsg
exit 0
