# SPDX-License-Identifier: GPL-2.0
"""What became of a test: read from its exit status and from what it printed.

The statuses have the names that the lists of the kernel's DRM CI use. A test of which IGT's own lines say something else
than its exit status has failed.
"""

import dataclasses
import re
import signal

PASS, SKIP, FAIL, CRASH, TIMEOUT = "Pass", "Skip", "Fail", "Crash", "Timeout"
STATUSES = (PASS, SKIP, FAIL, CRASH, TIMEOUT)

# Exit statuses of IGT's programs (lib/igt_core.h).
EXIT_PASS, EXIT_SKIP, EXIT_INVALID = 0, 77, 79
# How a shell reports that a signal ended a program.
BY_SIGNAL = 128

RESULT = re.compile(r"^Subtest (\S+): (SUCCESS|SKIP|FAIL|CRASH)\b")
# A program without subtests.
WHOLE = re.compile(r"^(SUCCESS|SKIP|FAIL|CRASH) \([0-9.]+s\)")
SAID = {"SUCCESS": PASS, "SKIP": SKIP, "FAIL": FAIL, "CRASH": CRASH}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The prefix of a message: [time] (program:pid) <device> [thread] domain-LEVEL:
PREFIX = re.compile(r"^(?:\[[ 0-9.]+\] )?\(\S+:\d+\) (?:<[^>]*> )?(?:\[[^]]*\] )?(?:\S+-)?[A-Z]+: ")
ASSERTION = re.compile(r"^Test assertion failure function (\w+), file (\S+):$")
ERRNO = re.compile(r"^Last errno: (\d+, .*)")
FAILED = "Failed assertion: "
REQUIREMENT = "Test requirement: "
# What a program prints before it comes to the test.
PREAMBLE = re.compile(r"^(IGT-Version|Using IGT_SRANDOM|Opened device|Starting (dynamic )?subtest)\b")
DEBUG = "**** DEBUG ****"
REASON_LENGTH = 240


@dataclasses.dataclass
class Outcome:
    """The result of one test."""

    status: str
    reason: str = ""
    seconds: float = 0.0
    # The number of jobs that the devices executed; None if no device counts them.
    jobs: int | None = None
    output: str = ""
    # What the kernel reported meanwhile, or that the guest died: no list of expectations excuses it.
    reports: list = dataclasses.field(default_factory=list)

    @property
    def vacuous(self):
        """Whether it passed without any work of a GPU."""
        return self.status == PASS and self.jobs == 0


def clean(output):
    """The lines of a test's output, without colours and prefixes."""
    return [PREFIX.sub("", COLOUR.sub("", line.rstrip("\r"))) for line in output.split("\n")]


def parse(subtest, exit_status, output, limit=None):
    """The outcome of a test from its exit status and its output. `limit`: its seconds, if it was killed after these."""
    lines = clean(output)
    if limit is not None:
        return Outcome(TIMEOUT, f"not done after {limit} s", output=output)
    said = None
    for line in lines:
        match = RESULT.match(line) if subtest else None
        if match and match[1] == subtest:
            said = SAID[match[2]]
        elif not subtest and WHOLE.match(line):
            said = SAID[WHOLE.match(line)[1]]
    if exit_status == EXIT_INVALID:
        status, reason = FAIL, last(lines) or "IGT does not know this test"
    elif exit_status > BY_SIGNAL:
        told = assertion(lines)
        status, reason = CRASH, killed_by(exit_status - BY_SIGNAL) + (f"; {told}" if told else "")
    elif exit_status == EXIT_PASS:
        status, reason = PASS, ""
    elif exit_status == EXIT_SKIP:
        status, reason = SKIP, skip_reason(lines)
    else:
        status, reason = FAIL, fail_reason(lines)
    if status in (PASS, SKIP) and said != status:
        status, reason = FAIL, f"the program ended with {exit_status}, but {'says ' + said if said else 'says no result'}"
    elif status == FAIL and said == CRASH:
        status = CRASH
    return Outcome(status, shorten(reason), output=output)


def killed_by(number):
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended with status {BY_SIGNAL + number}"


def shorten(text):
    text = " ".join(text.split())
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"


def last(lines):
    """The last line with something to say."""
    for line in reversed(lines):
        if line.strip() and not RESULT.match(line) and not WHOLE.match(line) and not PREAMBLE.match(line):
            return line.strip()
    return ""


def skip_reason(lines):
    """Why a test skips: the text that it gives, else the condition that does not hold."""
    at = [i for i, line in enumerate(lines) if line.startswith(REQUIREMENT)]
    if not at:
        return last(lines)
    text = []
    for line in lines[at[-1] + 1:]:
        if ERRNO.match(line) or RESULT.match(line) or WHOLE.match(line) or not line.strip():
            break
        # The text may have no end of line.
        told, errno, _ = line.partition("Last errno: ")
        text.append(told.strip())
        if errno:
            break
    return " ".join(text) or lines[at[-1]].removeprefix(REQUIREMENT)


def assertion(lines):
    """The first assertion of a test that does not hold, if there is one."""
    for i, line in enumerate(lines):
        match = ASSERTION.match(line)
        if not match:
            continue
        told = []
        for more in lines[i + 1:i + 5]:
            # An ioctl as the compiler saw it says less than the function's name.
            if more.startswith(FAILED) and "<<" not in more:
                told.append(more.removeprefix(FAILED)[:80])
            elif ERRNO.match(more):
                told.append("errno " + ERRNO.match(more)[1])
            elif more.startswith("error: "):
                told.append(more.removeprefix("error: "))
        return f"{match[1]}: {'; '.join(told)}"
    return None


def fail_reason(lines):
    """Why a test fails: its first assertion that does not hold, else the last line."""
    end = next((i for i, line in enumerate(lines) if line == DEBUG), len(lines))
    return assertion(lines) or last(lines[:end])
