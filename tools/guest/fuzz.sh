# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: the fuzzer, as one test, on several devices with little memory, with FUZZ_SEED. Prints
# KTAP.

echo "KTAP version 1"
echo "1..1"
if modprobe vxe devices=2 vram_mb=32 && modprobe vxe2 vram_mb=16 &&
	gpusvm-fuzz --seed "$FUZZ_SEED" --seconds 120 --limit 10000 --patience 150 >/tmp/log 2>&1; then
	result=ok
else
	result="not ok"
fi
sed 's/^/# /' /tmp/log
echo "$result 1 fuzz"
[ "$result" = ok ]
