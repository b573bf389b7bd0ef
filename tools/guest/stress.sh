# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: the stress program with STRESS_OPTIONS, as one test, on several devices with little
# memory. Prints KTAP.

echo "KTAP version 1"
echo "1..1"
if modprobe vxe devices=2 vram_mb=32 && modprobe vxe2 vram_mb=16 &&
	vxe-stress $STRESS_OPTIONS >/tmp/log 2>&1; then
	result=ok
else
	result="not ok"
fi
sed 's/^/# /' /tmp/log
echo "$result 1 stress"
[ "$result" = ok ]
