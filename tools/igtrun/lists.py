# SPDX-License-Identifier: GPL-2.0
"""The tests of IGT: their names, and lists of them.

A test's name is BINARY@SUBTEST, or BINARY for a program without subtests. A list has one pattern a line, in which * and
? stand for characters:

  xe_vm                    all subtests of a program
  xe_vm@bind-*             some
  igt@xe_vm@bind-once      the same, as in the lists of Intel's CI
  - kms_*                  leaves out what the lines above it chose
  testlist PATH            the lines of a list that IGT's package has, below its directory of tests

Comments start with #. The order is that of the lines, and within a line that of the program's own list.
"""

import fnmatch
import os
import subprocess

TESTS = "usr/libexec/igt-gpu-tools"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
# The status of a program that has no subtests to list.
NO_SUBTESTS = 79


class BadList(Exception):
    """A list of tests that is not what it should be."""


def name(binary, subtest):
    return f"{binary}@{subtest}" if subtest else binary


class Package:
    """IGT, as tools/igt-tools unpacked it."""

    def __init__(self, top):
        self.top = top
        self.known = {}

    def binaries(self):
        where = os.path.join(self.top, TESTS)
        return sorted(e.name for e in os.scandir(where) if e.is_file() and "." not in e.name)

    def subtests(self, binary):
        """The subtests of a program, or [None] if it has none."""
        if binary not in self.known:
            self.known[binary] = self._list(binary)
        return self.known[binary]

    def _list(self, binary):
        run = subprocess.run(
            [os.path.join(self.top, LOADER), "--library-path", os.path.join(self.top, LIBRARIES),
             os.path.join(self.top, TESTS, binary), "--list-subtests"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        if run.returncode == NO_SUBTESTS:
            return [None]
        if run.returncode:
            raise BadList(f"{binary} lists no subtests (status {run.returncode}): {run.stderr.strip()[:200]}")
        return run.stdout.split()

    def testlist(self, path):
        try:
            with open(os.path.join(self.top, TESTS, path)) as f:
                return f.read()
        except FileNotFoundError:
            raise BadList(f"IGT's package has no list {path}") from None


class Chosen:
    """The tests of a list, in order: pairs of a program and its subtest."""

    def __init__(self, package):
        self.package = package
        self.all = package.binaries()
        self.tests = {}

    def line(self, text, where):
        """Takes in a line of a list."""
        text = text.partition("#")[0].strip()
        if not text:
            return
        if text.startswith("testlist "):
            self.text(self.package.testlist(text.split(None, 1)[1]), text.split(None, 1)[1])
        elif text.startswith("- "):
            leave_out = text[2:].strip()
            self.tests = {t: None for t in self.tests if not matches(leave_out, *t)}
        else:
            found = list(self.matching(text))
            if not found:
                raise BadList(f"{where}: there is no test {text}")
            self.tests.update(dict.fromkeys(found))

    def matching(self, pattern):
        binary, subtest = split(pattern)
        for b in fnmatch.filter(self.all, binary):
            for s in self.package.subtests(b):
                if matches(pattern, b, s):
                    yield b, s

    def text(self, text, where):
        for number, line in enumerate(text.split("\n"), 1):
            self.line(line, f"{where}, line {number}")


def split(pattern):
    """The parts of a pattern: for the program, and for the subtest or None."""
    binary, _, subtest = pattern.removeprefix("igt@").partition("@")
    return binary, subtest.partition("@")[0] or None


def matches(pattern, binary, subtest):
    b, s = split(pattern)
    return fnmatch.fnmatchcase(binary, b) and (s is None or fnmatch.fnmatchcase(subtest or "", s))


def read(package, path):
    """The tests of the list in a file."""
    chosen = Chosen(package)
    with open(path) as f:
        chosen.text(f.read(), path)
    return list(chosen.tests)


def choose(package, binary, subtest):
    """The tests that two patterns name."""
    chosen = Chosen(package)
    chosen.line(name(binary, subtest), "TEST=, SUBTEST=")
    return list(chosen.tests)
