# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Selects the version of a package among those that the archive offers. To be sourced.

# choose_version NAME WANT [SERIES]: reads the output of "apt-cache madison", for NAME and maybe other packages.
# Prints WANT if it is offered, else the newest version, else nothing. Versions of the release itself precede those of
# its backports, whose compilers and emulators are different. With SERIES, such as 7.3, only versions of it count.
choose_version() {
	local name=$1 want=$2 series=${3:-} package version where rank best='' best_rank=-1
	while IFS='|' read -r package version where; do
		package=${package//[[:space:]]/} version=${version//[[:space:]]/}
		[[ $package == "$name" && -n $version && $where == *Packages* ]] || continue
		[[ -z $series || $version == "$series" || $version == "$series"[.~+-]* ]] || continue
		rank=1
		[[ $where != *-backports/* ]] || rank=0
		[[ $version != "$want" ]] || rank=2
		((rank >= best_rank)) || continue
		if ((rank > best_rank)) || dpkg --compare-versions "$version" gt "$best"; then
			best=$version best_rank=$rank
		fi
	done
	[[ -z $best ]] || printf '%s\n' "$best"
}
