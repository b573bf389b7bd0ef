# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: loads and unloads every module of ours, has the sample mirror a shell,
# then runs the KUnit suites of all modules. Prints KTAP; a line "#row NAME" says which row of the table is next.

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
	# Twice: what the first time leaves behind, the second finds.
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
ls $kunit >/tmp/before
# The suites of vxe's GPU and of the wrappers are in the modules that they test.
if ! modprobe vxe 2>/tmp/err || ! modprobe gpusvm_kunit 2>/tmp/err; then
	echo "the modules with KUnit suites do not load: $(cat /tmp/err)" >&2
	exit 1
fi
for suite in "$kunit"/*; do
	grep -qxF "${suite##*/}" /tmp/before && continue
	echo "guest: test kunit ${suite##*/}" >/dev/kmsg
	# Writing runs the suite, to its end.
	echo 1 >"$suite/run"
	cat "$suite/results"
done
