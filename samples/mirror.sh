#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Tests the module gpusvm_mirror, which must be loaded. The device mirrors this shell, and
# accesses one of its variables. Prints KTAP; the exit status is 0 if all tests passed.
#
#   make run LOAD='gpusvm gpusvm_mirror' OVERLAY=samples CMD='sh /mirror.sh'

# Makes the C library map each larger allocation separately, and unmap it when it is freed.
[ -n "$MALLOC_MMAP_THRESHOLD_" ] || MALLOC_MMAP_THRESHOLD_=65536 exec sh "$0"

access=/sys/kernel/debug/gpusvm_mirror/access
tests=0 failed=0

check() { # NAME COMMAND...
	local name=$1
	shift
	tests=$((tests + 1))
	if "$@"; then
		echo "ok $tests $name"
	else
		failed=$((failed + 1))
		echo "# $access contains:"
		sed 's/^/# /' $access
		echo "not ok $tests $name"
	fi
}
not() { ! "$@"; }

# The tests below use the shell's builtins only: to run another command the shell forks,
# which invalidates its mirrored memory.

# The device reads (r) or writes (w) an address of this shell.
fault() { echo "$1 $address" 2>/dev/null >$access; }

# Sets $state to the state of the range at $address that the file shows, or to "gone" if
# there is none, and $writable to whether the device may write.
look() {
	local first rest span='' word=''
	state=gone writable=false
	while read -r first rest; do
		case $first in
		0x*..0x*)
			span=$first
			holds "$span" && state=$rest
			;;
		Entry)
			holds "$span" || continue
			case $rest in *"writable: true"*) writable=true ;; esac
			;;
		esac
	done <$access
}
holds() { [ $((address)) -ge $((${1%..*})) ] && [ $((address)) -lt $((${1#*..})) ]; }

is() { # STATE [WRITABLE]
	look
	[ "$state" = "$1" ] && [ "$writable" = "${2:-$writable}" ]
}
gets() { # like "is", but waits up to ten seconds
	local i=0
	until is "$@"; do
		i=$((i + 1))
		[ $i -le 100 ] || return 1
		sleep 0.1
	done
}

# Finds an anonymous mapping of this shell that is about as large as $text.
find_text() {
	local span mode offset device rest size
	while read -r span mode offset device rest; do
		size=$((0x${span#*-} - 0x${span%-*}))
		[ "$mode $device" = "rw-p 00:00" ] || continue
		if [ $size -ge ${#text} ] && [ $size -lt $((2 * ${#text})) ]; then
			address=0x${span%-*}
			return
		fi
	done </proc/$$/maps
	return 1
}

echo "KTAP version 1"
echo "1..12"
text=$(head -c 300000 /dev/zero | tr '\0' x)
check "memory is found" find_text

check "the device writes" fault w
check "the range is mapped for it" is mapped=true true

/bin/true
check "a fork invalidates it: memory becomes copy-on-write" is mapped=false
check "the device reads" fault r
check "the range is mapped for reading" is mapped=true false
check "the device writes again" fault w
check "the copy that this makes is mapped" is mapped=true true

unset text
check "munmap invalidates it, and the garbage collector removes it" gets gone
check "the device cannot read what is unmapped" not fault r

# Mirrors another process, which reads the start of its program.
another() {
	sh -c 'read -r span rest </proc/$$/maps
		echo "r 0x${span%-*}" >"$1" && read -r span state <"$1" && [ "$state" = mapped=true ]' \
		- $access
}
empty() {
	local i=0
	while read -r line <$access; do
		i=$((i + 1))
		[ $i -le 100 ] || return 1
		sleep 0.1
	done
}
check "another process is mirrored instead" another
check "with its end all ranges go" empty
exit $((failed != 0))
