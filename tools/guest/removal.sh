# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: rounds of the removal of a device and its module, as one test: five hundred times VXE_ITERATIONS.
# Prints KTAP.

echo "KTAP version 1"
echo "1..1"
export VXE_ITERATIONS VXE_TIMEOUT=1100
if /usr/libexec/uapi/vxe_provider --run-subtest removed >/tmp/log 2>&1; then
	result=ok
else
	result="not ok"
fi
sed 's/^/# /' /tmp/log
echo "$result 1 removal"
[ "$result" = ok ]
