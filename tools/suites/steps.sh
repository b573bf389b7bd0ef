# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For suites whose tests are commands on this machine: runs them and reports in KTAP.
# To be sourced; use: steps_begin FILE COUNT, then step_test NAME COMMAND...

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

steps_begin() {
	STEPS_FILE=$1 STEPS_DONE=0
	printf 'KTAP version 1\n1..%d\n' "$2" >"$STEPS_FILE"
}

# One test: the command passes if its status is 0. Its output is shown, and stored.
step_test() {
	local name=$1 log status=0
	shift
	log=$(mktemp)
	"$@" >"$log" 2>&1 </dev/null || status=$?
	STEPS_DONE=$((STEPS_DONE + 1))
	if ((status == 0)); then
		echo "ok $STEPS_DONE $name" >>"$STEPS_FILE"
	else
		cat "$log" >&2
		{ tail -n 60 "$log" | sed 's/^/# /'; echo "not ok $STEPS_DONE $name"; } >>"$STEPS_FILE"
	fi
	rm -f "$log"
}
