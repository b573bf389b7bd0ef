# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the tools share: where things are, messages for people, locks, and how a
# thing is made once, so that interrupting it leaves nothing broken.
#
# To be sourced by bash scripts. Everything said to people goes to standard error;
# standard output carries results only, such as the path of what was made.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TOOLS=$TOP/tools
BUILD=$TOP/build
CACHE=${GPUSVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gpusvm}
mkdir -p "$CACHE/locks"
CACHE=$(cd "$CACHE" && pwd -P)
export GPUSVM_CACHE=$CACHE
JOBS=${JOBS:-$(nproc)}

if [[ -t 2 ]]; then
	BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[m'
else
	BOLD='' RED='' PLAIN=''
fi

# A step begins: what it does.
step() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }

# More about the step.
note() { printf '    %s\n' "$*" >&2; }

# The end: what went wrong, then on further lines what to do about it.
die() {
	printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
	shift
	local line
	for line in "$@"; do printf '    %s\n' "$line" >&2; done
	exit 1
}

# A short hash of standard input, to name what was made of it.
short_hash() { sha256sum | cut -c1-12; }

# Lines that mean something: no comments, no blanks.
meaning() { sed -e 's/[[:space:]]*$//' -e '/^$/d' -e '/^# CONFIG_/!{/^#/d}' "$@"; }

# lock NAME: waits until no other process holds NAME, then holds it until this script
# and all that it started have ended.
lock() {
	local lock_fd
	exec {lock_fd}>"$CACHE/locks/$1"
	flock -n "$lock_fd" && return
	note "waiting for another run that is busy with $1"
	flock "$lock_fd"
}

# progress TOTAL LABEL: reads the lines of a long job and tells how far it is.
# On a terminal it is one line that moves; in a log, one line each fifteen seconds.
progress() {
	local total=$1 label=$2 n=0 percent start=$SECONDS last=$SECONDS every=15
	[[ ! -t 2 ]] || every=1
	while IFS= read -r _; do
		n=$((n + 1))
		((SECONDS - last >= every)) || continue
		last=$SECONDS percent=$((n * 100 / total))
		show_progress "$((percent > 99 ? 99 : percent))" "$n of about $total"
	done
	show_progress 100 "$n"
	[[ ! -t 2 ]] || echo >&2
}
show_progress() {
	local text="    $label: $1% ($2 steps, $((SECONDS - start)) s)"
	if [[ -t 2 ]]; then printf '\r%s\e[K' "$text" >&2; else printf '%s\n' "$text" >&2; fi
}

# Something failed that no script expected to: say where, or the user sees nothing. A
# tool that failed has said why itself.
unexpected() {
	local status=$?
	[[ $BASH_COMMAND == *TOOLS/* || $BASH_COMMAND == *exit* || $BASH_COMMAND == return* ]] ||
		printf '%serror:%s %s line %s: "%s" failed (status %s)\n' "$RED" "$PLAIN" \
			"${BASH_SOURCE[1]#"$TOP"/}" "${BASH_LINENO[0]}" "$BASH_COMMAND" "$status" >&2
}
set -E
trap unexpected ERR

# The last lines of a log, after a failure.
show_tail() {
	local line
	note "the last lines of $1:"
	tail -n "${2:-25}" "$1" | while IFS= read -r line; do printf '    | %s\n' "$line" >&2; done
}

need_root() {
	((EUID == 0)) || die "this needs root, for debootstrap and chroot" \
		"run it as root, or in a privileged container"
}

# exec_private DIR COMMAND...: becomes the command, in a mount namespace of its own, so
# that what it mounts below DIR ends with it.
exec_private() {
	local dir=$1
	shift
	if mountpoint -q /; then
		exec unshare -m --propagation private "$@"
	fi
	# In a chroot, / is no mount, and nothing says whether what holds it is shared with
	# other namespaces: make DIR a mount that is not, and remove it afterwards.
	# shellcheck disable=SC2016
	exec unshare -m --propagation unchanged bash -c '
		dir=$1
		shift
		mount --bind "$dir" "$dir" && mount --make-rprivate "$dir" || exit
		trap : INT TERM
		"$@"
		status=$?
		umount -l "$dir"
		exit "$status"' - "$dir" "$@"
}

# host_packages COMMAND=PACKAGE...: installs on the host what is missing there.
host_packages() {
	local pair missing=()
	for pair in "$@"; do
		[[ -e ${pair%%=*} ]] || command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]})) || return 0
	need_root
	step "installing on this machine: ${missing[*]}"
	command -v apt-get >/dev/null || die "this machine has no apt-get" \
		"install by other means: ${missing[*]}"
	local log=$CACHE/host-packages.log
	{ DEBIAN_FRONTEND=noninteractive apt-get update &&
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
		>"$log" 2>&1 </dev/null || {
		show_tail "$log"
		die "could not install ${missing[*]}" "see $log; then install them by hand and run this again"
	}
}

# Which kernel is meant: KERNEL=debug|plain|kcsan.
check_kernel_name() {
	case $1 in
	debug | plain | kcsan) ;;
	*) die "KERNEL=$1 is not known" \
		"KERNEL is debug (all checkers but one), plain (none) or kcsan (data races)" ;;
	esac
}

# What vxe-stress is told on a kernel. With KCSAN a step takes several times as long: so that most sequences end
# before their device goes, and all within their time, they are smaller, and devices go more seldom.
stress_options() { [[ $1 != kcsan ]] || echo "--processes 2 --pages 600 --remove 20000"; }

# For guests whose tests have their time limits, or work much alone: KCSAN watches less than "run" has it do.
# Other kernels do not know these parameters, and take no offence.
KCSAN_LESS="kcsan.skip_watch=100 kcsan.udelay_task=80"

# The Debian package pins, "kind name=version", of the kinds given.
pins() {
	local kinds=" $* " kind pin rest
	meaning "$TOOLS/packages" | while read -r kind pin rest; do
		[[ $kinds == *" $kind "* ]] && printf '%s\n' "$pin"
	done || true
}
