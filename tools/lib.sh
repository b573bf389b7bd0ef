# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Functions that the tools share: paths, messages, locks, and steps that are done once and can be interrupted.
#
# Sourced by bash scripts. All messages go to standard error; standard output has results only, such as a path.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TOOLS=$TOP/tools
BUILD=$TOP/build
CACHE=${GPUSVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gpusvm}
if ! mkdir -p "$CACHE/locks" || [[ ! -w $CACHE || ! -w $CACHE/locks ]]; then
	echo "error: the cache $CACHE cannot be written: name another directory with GPUSVM_CACHE=" >&2
	exit 1
fi
CACHE=$(cd "$CACHE" && pwd -P)
export GPUSVM_CACHE=$CACHE
JOBS=${JOBS:-$(nproc)}
# The directory of chroot, which is not in the PATH of ordinary users.
PATH=$PATH:/usr/sbin:/sbin

if [[ -t 2 ]]; then
	BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[m'
else
	BOLD='' RED='' PLAIN=''
fi

# Prints the start of a step.
step() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }

# The same for a long step that is done once: tools/prepare knows its number, and what remains.
long_step() { step "$1 (${GPUSVM_STEP:-once; about $2})"; }

# Prints details of the step.
note() { printf '    %s\n' "$*" >&2; }

# Exits with a message: what failed, then on further lines how to fix it.
die() {
	printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
	shift
	local line
	for line in "$@"; do printf '    %s\n' "$line" >&2; done
	exit 1
}

# A short hash of standard input, for the name of a result.
short_hash() { sha256sum | cut -c1-12; }

# The lines of a file that are not comments or blank.
meaning() { sed -e 's/[[:space:]]*$//' -e '/^$/d' -e '/^# CONFIG_/!{/^#/d}' "$@"; }

# lock NAME: waits until no other process holds NAME, then holds it until this script and all its child processes
# have ended.
lock() {
	local lock_fd
	exec {lock_fd}>"$CACHE/locks/$1"
	flock -n "$lock_fd" && return
	note "waiting for another run that is busy with $1"
	flock "$lock_fd"
}

# progress TOTAL LABEL: reads the lines of a long job and shows its progress. On a terminal this is one line that is
# updated; in a log, one line every fifteen seconds.
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

# A command failed for which no script has a message: prints where. A tool that failed has printed its own message.
unexpected() {
	local status=$?
	[[ $BASH_COMMAND == *TOOLS/* || $BASH_COMMAND == *exit* || $BASH_COMMAND == return* ]] ||
		printf '%serror:%s %s line %s: "%s" failed (status %s)\n' "$RED" "$PLAIN" \
			"${BASH_SOURCE[1]#"$TOP"/}" "${BASH_LINENO[0]}" "$BASH_COMMAND" "$status" >&2
}
set -E
trap unexpected ERR

# Ctrl-C is not a failure of the interrupted command. Only the outermost script prints a message.
OUTER=${GPUSVM_SCRIPT:-}
export GPUSVM_SCRIPT=$0
interrupted() {
	trap - INT
	[[ -n $OUTER ]] || printf '%sinterrupted%s\n' "$BOLD" "$PLAIN" >&2
	exit 130
}
trap interrupted INT

# in_background LOG COMMAND...: starts a command whose output goes to LOG. The command ends with this script.
# end_background: waits for it; its status is the command's.
JOB=
in_background() {
	local log=$1
	shift
	# In a process group of its own, so that all its processes can be killed.
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	JOB=$!
	set +m
	trap '[[ -z $JOB ]] || kill -- -"$JOB" 2>/dev/null || true' EXIT
}
end_background() {
	local job=$JOB
	wait "$job" || { JOB=; return 1; }
	JOB=
}

# Prints the last lines of a log, after a failure.
show_tail() {
	local line
	note "the last lines of $1:"
	tail -n "${2:-25}" "$1" | while IFS= read -r line; do printf '    | %s\n' "$line" >&2; done
}

# The command that creates a mount namespace. For an ordinary user it also creates a user namespace, in which the user
# is root, and the users of a Debian system are the user's subordinate ids.
MOUNT_NAMESPACE=(unshare -m)
((EUID == 0)) || MOUNT_NAMESPACE=(unshare --map-root-user --map-auto -m)

# Exits with a clear message if mounts and chroot are not allowed.
need_namespaces() {
	local why user file
	if ((EUID == 0)); then
		why=$(unshare -m --propagation unchanged true 2>&1) && return
	else
		why=$("${MOUNT_NAMESPACE[@]}" --propagation private true 2>&1) && return
	fi
	((EUID != 0)) || die "this machine does not let root mount: ${why#unshare: }" \
		"in a container, run it privileged (docker run --privileged)"
	user=$(id -un)
	command -v newuidmap >/dev/null || die "the commands newuidmap and newgidmap are missing" \
		"an administrator has to run:  apt-get install uidmap" "or run this as root"
	for file in /etc/subuid /etc/subgid; do
		grep -qE "^($user|$UID):" "$file" 2>/dev/null || die "$user has no subordinate ids in $file" \
			"an administrator has to run:  usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user" \
			"(with a range that no other user has there), or run this as root"
	done
	forbidden kernel/unprivileged_userns_clone 0 1
	forbidden kernel/apparmor_restrict_unprivileged_userns 1 0
	forbidden user/max_user_namespaces 0 10000
	mountpoint -q / || die "in a chroot an ordinary user can have no user namespace" "run this outside of it, or as root"
	die "this machine lets $user have no user namespace: ${why#unshare: }" "run this as root, or on another machine"
}
# forbidden NAME VALUE OTHER: exits if the sysctl NAME has VALUE, which forbids user namespaces.
forbidden() {
	local file=/proc/sys/$1
	[[ ! -r $file || $(<"$file") != "$2" ]] || die "user namespaces are forbidden here: ${1//\//.} is $2" \
		"an administrator has to run:  sysctl -w ${1//\//.}=$3" "or run this as root"
}

# exec_private DIR COMMAND...: executes the command in a mount namespace of its own, with which its mounts below DIR
# end. An ordinary user is root there.
exec_private() {
	local dir=$1
	shift
	if mountpoint -q / || ((EUID != 0)); then
		exec "${MOUNT_NAMESPACE[@]}" --propagation private "$@"
	fi
	# In a chroot, / is not a mount point, and the kernel does not tell whether the mount that contains it is shared with
	# other namespaces: make DIR a private mount, and remove it afterwards.
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

# remove DIR...: removes directories that the user's subordinate ids may own parts of.
remove() {
	if ((EUID != 0)) && "${MOUNT_NAMESPACE[@]}" rm -rf --one-file-system "$@" 2>/dev/null; then return; fi
	rm -rf --one-file-system "$@"
}

# need_machine GIB: exits with a clear message if the machine has less than GIB of free disk, or too little memory. It
# is called before a download or build, with the size of this and the later steps: the root has 2.1 GiB, the source 1.8,
# a kernel 0.3 (debug: 0.6) and as much again during its build, the userspace programs 0.6.
need_machine() {
	local gib=$1 machine free memory needed
	machine=$(uname -m)
	[[ $machine == x86_64 ]] || die "this machine is $machine: the guest and its toolchain are for x86-64 only" \
		"run this on an x86-64 machine"
	free=$(($(stat -f -c '%a * %S' "$CACHE") / 1073741824))
	((free >= gib)) || die "not enough disk space in $CACHE: $gib GiB are needed, $free GiB are free" \
		"make room there, or name another place: GPUSVM_CACHE=directory make ..."
	# A compiler takes at most 160 MiB, but rustc on the kernel crate, and a guest, take more.
	needed=$((1536 + 160 * JOBS))
	((needed >= 3072)) || needed=3072
	memory=$(awk '$1 == "MemAvailable:" || $1 == "SwapFree:" { kib += $2 } END { printf "%d", kib / 1024 }' /proc/meminfo)
	((memory >= needed)) || die "not enough memory: $needed MiB are needed, $memory MiB are free" \
		"end other programs$( ((needed == 3072)) || echo ", or build with fewer processes at once: JOBS=4 make ...")"
}

# host_packages COMMAND=PACKAGE...: installs packages whose command the host lacks.
host_packages() {
	local pair missing=()
	for pair in "$@"; do
		[[ -e ${pair%%=*} ]] || command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]})) || return 0
	((EUID == 0)) || die "missing on this machine: ${missing[*]}" \
		"an administrator has to run:  apt-get install --no-install-recommends ${missing[*]}"
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

# Checks the name of a kernel: KERNEL=debug|plain|kcsan|arm64|arm64-64k|stock.
check_kernel_name() {
	case $1 in
	debug | plain | kcsan | arm64 | arm64-64k | stock) ;;
	*) die "KERNEL=$1 is not known" \
		"KERNEL is debug (all checkers but one), plain (none), kcsan (data races), arm64 or arm64-64k" \
		"(debug for 64-bit Arm with pages of 4 or 64 KiB), or stock (Debian's own)" ;;
	esac
}

# The architecture of a kernel, as the kernel's source calls it; the suffix of the directory of its userspace programs,
# which depend on the architecture and the page size; and its image in the directory of its build.
kernel_arch() { if [[ $1 == arm64* ]]; then echo arm64; else echo x86; fi; }
kernel_programs() { if [[ $1 == arm64* ]]; then echo "-$1"; fi; }
kernel_image() { if [[ $1 == arm64* ]]; then echo arch/arm64/boot/Image; else echo arch/x86/boot/bzImage; fi; }

# The options of vxe-stress for a kernel. With KCSAN a step takes several times as long. So sequences are smaller, and
# devices are unbound less often, for most sequences to end before their device is unbound, and all within their time.
stress_options() { [[ $1 != kcsan ]] || echo "--processes 2 --pages 600 --remove 20000"; }

# For guests whose tests have time limits, or run long: KCSAN watches fewer accesses than with "run". Other kernels
# ignore these parameters.
KCSAN_LESS="kcsan.skip_watch=100 kcsan.udelay_task=80"

# packages_of FILE KIND...: the packages of the given kinds in a list such as tools/packages, as "name=version".
packages_of() {
	local file=$1 kind pin rest
	shift
	local kinds=" $* "
	meaning "$file" | while read -r kind pin rest; do
		[[ $kinds == *" $kind "* ]] && printf '%s\n' "$pin"
	done || true
}
pins() { packages_of "$TOOLS/packages" "$@"; }
