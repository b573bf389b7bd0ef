# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: two hundred rounds of the removal of a device and its module, as one test (with
# VXE_ITERATIONS=1 it is five hundred). Prints KTAP.

echo "KTAP version 1"
echo "1..1"
if VXE_ITERATIONS=${VXE_ITERATIONS:-0.4} VXE_TIMEOUT=1100 /usr/libexec/igt/vxe_provider --run-subtest removed >/tmp/log 2>&1; then
	result=ok
else
	result="not ok"
fi
sed 's/^/# /' /tmp/log
echo "$result 1 removal"
[ "$result" = ok ]
