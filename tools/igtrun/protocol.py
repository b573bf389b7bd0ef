# SPDX-License-Identifier: GPL-2.0
"""Reads what tools/guest/igt-tests.sh prints in the guest."""

import re
import time

from . import outcome

COUNT = re.compile(r": (\d+)")


class Reader:
    """Turns the lines of one guest into outcomes."""

    def __init__(self, tests, limit, clock=time.time):
        """tests: pairs of a program and its subtest, by number; limit: seconds of a test."""
        self.tests = tests
        self.limit = limit
        self.clock = clock
        self.running = None
        self.begun = None
        self.lines = []
        self.counts = []

    def line(self, text):
        """Takes in a line. Returns (number, outcome, whether the guest is stuck) at the end of a test, else None."""
        text = text.rstrip("\r\n")
        if text.startswith("| "):
            self.lines.append(text[2:])
            return None
        verb, _, rest = text.partition(" ")
        words = rest.split()
        if verb == "@begin":
            self.running, self.begun = int(words[0]), self.clock()
            self.lines, self.counts = [], []
        elif verb == "@jobs":
            found = COUNT.findall(rest)
            self.counts.append(sum(map(int, found)) if found else None)
        elif verb == "@end" and self.running == int(words[0]):
            return self._end(int(words[1]), words[2:])
        return None

    def _end(self, status, how):
        number, self.running = self.running, None
        _, subtest = self.tests[number]
        result = outcome.parse(subtest, status, "\n".join(self.lines), self.limit if "late" in how else None)
        result.seconds = self.clock() - self.begun
        result.jobs = jobs(self.counts)
        if "stuck" in how:
            result.status, result.reason = outcome.TIMEOUT, "its processes do not end, not even by SIGKILL"
            result.reports.append("processes that do not end")
        return number, result, "stuck" in how


def jobs(counts):
    """The jobs that a test made the devices execute, from the counters before and after it."""
    if len(counts) != 2 or None in counts:
        return None
    before, after = counts
    # Who resets the counters, or removes a device, does so between the two.
    return after - before if after >= before else after
