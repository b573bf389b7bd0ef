# SPDX-License-Identifier: GPL-2.0
"""What is expected of the tests: the lists of a directory, in the form of the kernel's DRM CI.

  fails.txt    NAME,STATUS: this test ends with this status, which is Fail, Crash or Timeout
  skips.txt    a name, or a regular expression that matches a whole name: these tests skip, by their own decision
  flakes.txt   likewise: of these tests no result is a difference

A list may be missing. Comments start with #. An entry needs a reason: the comment right above it, or above the entries
before it; an empty line ends what a comment stands for. Any difference fails a run, a test that passes against what is
expected, too.
"""

import os
import re

from . import outcome

FAILS, SKIPS, FLAKES = "fails.txt", "skips.txt", "flakes.txt"


class BadExpectation(Exception):
    """A list of expectations that is not what it should be."""


def entries(text, where):
    """(line number, entry, reason) of each entry in a list."""
    reason, fresh = [], True
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line:
            reason, fresh = [], True
        elif line.startswith("#"):
            # A comment after entries begins anew.
            reason = reason if fresh else []
            fresh = True
            reason.append(line.lstrip("# "))
        else:
            fresh = False
            told = " ".join(r for r in reason if r and not r.startswith("SPDX-"))
            if not told:
                raise BadExpectation(f"{where}, line {number}: there is no comment with the reason above {line}")
            yield number, line, told


class Expectations:
    """The lists of a directory."""

    def __init__(self, fails="", skips="", flakes=""):
        self.fails = {}
        for number, line, reason in entries(fails, FAILS):
            name, comma, status = line.rpartition(",")
            if not comma or status not in (outcome.FAIL, outcome.CRASH, outcome.TIMEOUT):
                raise BadExpectation(f"{FAILS}, line {number}: not NAME,Fail or Crash or Timeout: {line}")
            if name in self.fails:
                raise BadExpectation(f"{FAILS}, line {number}: {name} is there twice")
            self.fails[name] = (status, reason)
        self.skips = list(self._patterns(skips, SKIPS))
        self.flakes = list(self._patterns(flakes, FLAKES))

    @staticmethod
    def _patterns(text, where):
        for number, line, reason in entries(text, where):
            try:
                yield re.compile(line), reason
            except re.error as e:
                raise BadExpectation(f"{where}, line {number}: not a regular expression: {line} ({e})") from None

    @classmethod
    def read(cls, directory):
        texts = []
        for name in (FAILS, SKIPS, FLAKES):
            try:
                with open(os.path.join(directory, name)) as f:
                    texts.append(f.read())
            except FileNotFoundError:
                texts.append("")
        try:
            return cls(*texts)
        except BadExpectation as e:
            raise BadExpectation(f"{directory}/{e}") from None

    def flaky(self, name):
        """The reason why no result of this test counts, if there is one."""
        return next((reason for pattern, reason in self.flakes if pattern.fullmatch(name)), None)

    def of(self, name):
        """The status that is expected of a test, and the reason."""
        if name in self.fails:
            return self.fails[name]
        for pattern, reason in self.skips:
            if pattern.fullmatch(name):
                return outcome.SKIP, reason
        return outcome.PASS, ""

    def entry(self, name):
        """The line of `fails.txt` or `skips.txt` that says what is expected of a test, if there is one."""
        if name in self.fails:
            return f"{name},{self.fails[name][0]}"
        return next((pattern.pattern for pattern, _ in self.skips if pattern.fullmatch(name)), None)

    def difference(self, name, result):
        """What is not as expected, as a line, or None."""
        if result.reports:
            return f"{result.status}, with {result.reports[0]}"
        expected, reason = self.of(name)
        if result.status == expected or self.flaky(name):
            return None
        told = f"{result.status}, but {expected} is expected"
        if reason:
            told += f" ({reason})"
        return told + (f": {result.reason}" if result.reason else "")

    def unknown(self, binaries, names):
        """Entries of `fails.txt` that name no test, although their program was asked for its tests."""
        for name in self.fails:
            if name.partition("@")[0] in binaries and name not in names:
                yield f"{FAILS} has a test that does not exist: {name}"
