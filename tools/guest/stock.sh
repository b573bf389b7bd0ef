# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# Runs in the guest: loads gpusvm and unloads it, twice, on Debian's kernel. Prints KTAP.

echo "KTAP version 1"
echo "1..2"
case $(uname -r) in
*+deb*) echo "ok 1 kernel" ;;
*) echo "# it is $(uname -r)"; echo "not ok 1 kernel" ;;
esac
if modprobe gpusvm 2>/tmp/err && modprobe -r gpusvm 2>/tmp/err &&
	modprobe gpusvm 2>/tmp/err && modprobe -r gpusvm 2>/tmp/err; then
	echo "ok 2 gpusvm"
else
	sed 's/^/# /' /tmp/err
	dmesg | tail -n 5 | sed 's/^/# /'
	echo "not ok 2 gpusvm"
fi
