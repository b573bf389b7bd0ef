# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: loads and unloads every module of ours, runs the sample on a shell, then runs the KUnit suites of
# all modules. Prints KTAP; a line "#row NAME" says which row of the table is next.

set -- "/lib/modules/$(uname -r)/extra"/*.ko

echo "#row modules"
echo "KTAP version 1"
echo "1..$#"
n=0
for ko in "$@"; do
	name=${ko##*/}
	name=${name%.ko}
	n=$((n + 1))
	echo "guest: test modules $name" >/dev/kmsg
	# Twice, to find state that the first unload leaves behind.
	if modprobe "$name" 2>/tmp/err && modprobe -r "$name" 2>/tmp/err &&
		modprobe "$name" 2>/tmp/err && modprobe -r "$name" 2>/tmp/err; then
		echo "ok $n $name"
	else
		sed 's/^/# /' /tmp/err
		dmesg | tail -n 5 | sed 's/^/# /'
		echo "not ok $n $name"
	fi
done

echo "#row sample"
modprobe gpusvm_mirror && sh /mirror.sh
modprobe -r gpusvm_mirror

echo "#row kunit"
kunit=/sys/kernel/debug/kunit
# Only one module with suites is loaded with the core at a time: the kernel crate's Queue::try_spawn() gives the works
# of all modules one lock class, so lockdep would report a deadlock that cannot occur.
for module in gpusvm vxe gpusvm_kunit; do
	ls $kunit >/tmp/before
	if ! modprobe $module 2>/tmp/err; then
		echo "$module does not load: $(cat /tmp/err)" >&2
		exit 1
	fi
	for suite in "$kunit"/*; do
		grep -qxF "${suite##*/}" /tmp/before && continue
		echo "guest: test kunit ${suite##*/}" >/dev/kmsg
		# The write returns when the suite has ended.
		echo 1 >"$suite/run"
		cat "$suite/results"
	done
	[ $module = gpusvm ] || rmmod $module
done
