#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""KTAP, the format in which every suite reports.

  ktap.py watch FILE                copies standard input to FILE, and shows the progress
  ktap.py count PARSER FILE [SKIPS] prints "passed failed skipped" of the KTAP in FILE, then a line "failed NAME" for
                                    each failed test, and a line "note TEXT" for each other message; uses the
                                    kernel's own parser, in the directory PARSER

A skipped test counts as failed unless the file SKIPS, which may be missing, has it with the same reason. The lines of
the file are

  NAME -- REASON

with the name of a test as it is printed, "program: subtest", in which * and ? stand for characters, and the reason that
the test prints, or

  include FILE

with the name of another list in the same directory, whose entries also apply. Comments start with #. A note names each
entry of a test that did not skip or does not exist.
"""

import fnmatch
import io
import os
import re
import sys
import time

RESULT = re.compile(r"^( *)(not )?ok \d+ ?-? ?([^#]*?)\s*(?:#\s*(.*))?$")
SUBTEST = re.compile(r"^ +# Subtest: (.*)")


class Watcher:
    """Shows each failure at once, and a line for each group of tests that is over."""

    def __init__(self):
        self.tty = sys.stderr.isatty()
        self.clear()
        self.log = []
        self.group = None

    def clear(self):
        self.passed = self.failed = self.skipped = 0
        self.began = time.monotonic()

    def counts(self):
        words = [f"{self.passed} passed"]
        words += [f"{n} {what}" for n, what in ((self.failed, "failed"), (self.skipped, "skipped")) if n]
        return ", ".join(words)

    def say(self, text):
        print(("\r\033[K" if self.tty else "") + text, file=sys.stderr, flush=True)

    def line(self, text):
        name = SUBTEST.match(text)
        if name:
            self.group = name[1]
        result = RESULT.match(text)
        if not result:
            self.log.append(text)
            return
        indent, bad, name, remark = result.groups()
        if not indent:
            # The end of a group; its members have been counted.
            if self.passed + self.failed + self.skipped:
                self.say(f"    {name}: {self.counts()}, {time.monotonic() - self.began:.0f} s")
            elif bad:
                self.fail(name, remark)
            self.clear()
        elif bad:
            self.failed += 1
            self.fail(f"{self.group}: {name}" if self.group else name, remark)
        elif remark and remark.upper().startswith("SKIP"):
            self.skipped += 1
        else:
            self.passed += 1
        self.log = []
        if self.tty and indent:
            print(f"\r\033[K    {self.group}: {self.counts()}", end="", file=sys.stderr, flush=True)

    def fail(self, name, remark):
        self.say(f"    FAILED {name}" + (f" ({remark})" if remark else ""))
        for line in self.log[-30:]:
            self.say("      | " + line.strip().removeprefix("# "))


def watch(path):
    watcher = Watcher()
    with open(path, "w") as out:
        for raw in sys.stdin.buffer:
            text = raw.decode(errors="replace").rstrip("\r\n")
            out.write(text + "\n")
            out.flush()
            watcher.line(text)


def documents(text):
    """Each top-level KTAP document: the parser takes one at a time."""
    found = []
    for line in text.split("\n"):
        if line.startswith("KTAP version") or not found:
            found.append([])
        found[-1].append(line)
    return [d for d in found if d[0].startswith("KTAP version")]


class BadList(Exception):
    """A list of expected skips that is not what it should be."""


class Skips:
    """The tests of a suite that are expected to skip on a kernel."""

    def __init__(self, text="", directory=None):
        self.expected = []
        for number, line in enumerate(text.split("\n"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if directory and line.startswith("include "):
                other = os.path.join(directory, line.removeprefix("include ").strip())
                if not os.path.exists(other):
                    raise BadList(f"line {number}: there is no such list: {line}")
                with open(other) as f:
                    # That list includes no others.
                    self.expected += Skips(f.read()).expected
                continue
            name, separator, reason = (part.strip() for part in line.partition(" -- "))
            if not (name and separator and reason):
                raise BadList(f"line {number}: not 'NAME -- REASON': {line}")
            self.expected.append((name, reason))
        self.seen = set()

    @classmethod
    def read(cls, path):
        """Those in a file; none where there is no such file."""
        try:
            with open(path) as f:
                text = f.read()
        except FileNotFoundError:
            return cls()
        try:
            return cls(text, os.path.dirname(path))
        except BadList as e:
            raise BadList(f"{path}: {e}") from None

    def allow(self, name, reason):
        """Whether a test may skip for this reason."""
        for entry in self.expected:
            if fnmatch.fnmatchcase(name, entry[0]) and entry[1] in reason:
                self.seen.add(entry)
                return True
        return False

    def notes(self, ran):
        """What to say of entries for which no test skipped, of the names of those that ran."""
        for entry in self.expected:
            if entry in self.seen:
                continue
            runs = fnmatch.filter(ran, entry[0])
            what = f"{', '.join(runs)} ran" if runs else "there is no such test"
            yield f"expected to skip, but {what}: {entry[0]} -- {entry[1]}"


class Counts:
    """What the tests of a report came to."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures, self.ran = [], []

    def add(self, test, skips, parser, under=""):
        """Takes in a test, with those below it."""
        name = f"{under}: {test.name}" if under else test.name
        if test.subtests:
            for sub in test.subtests:
                self.add(sub, skips, parser, "" if test.name == "main" else name)
        elif test.status == parser.TestStatus.SKIPPED:
            if skips.allow(name, test.skip_reason):
                self.skipped += 1
            else:
                self.fail(f"{name} (skipped: {test.skip_reason or 'for no reason'})")
        elif test.ok_status():
            self.passed += 1
            self.ran.append(name)
        else:
            self.fail(name)

    def fail(self, name):
        self.failed += 1
        self.failures.append(name)


def tally(parser, text, skips):
    """Counts the tests in a report. Returns the counts and what else there is to say."""
    from kunit_printer import Printer

    counts, errors = Counts(), []
    for lines in documents(text):
        # The parser prints every test as it goes; of that, only errors are wanted.
        said = io.StringIO()
        test = parser.parse_run_tests(lines, Printer(output=said))
        before = counts.failed
        counts.add(test, skips, parser)
        # Such as tests that were announced and never ran, or a group that failed by itself.
        if counts.failed == before and (test.counts.errors or test.counts.failed or test.counts.crashed):
            counts.failed += 1
        errors += re.findall(r"\[ERROR\] (.*)", said.getvalue())
    counts.failures += errors
    return counts, list(skips.notes(counts.ran))


def count(parser_dir, path, skips_path=None):
    sys.path.insert(0, parser_dir)
    import kunit_parser

    try:
        skips = Skips.read(skips_path) if skips_path else Skips()
    except BadList as e:
        print(0, 1, 0)
        print(f"failed {e}")
        return
    with open(path, errors="replace") as f:
        counts, notes = tally(kunit_parser, f.read(), skips)
    print(counts.passed, counts.failed, counts.skipped)
    for name in counts.failures:
        print(f"failed {name}")
    for note in notes:
        print(f"note {note}")


def main():
    if sys.argv[1] == "watch":
        watch(sys.argv[2])
    elif sys.argv[1] == "count":
        count(*sys.argv[2:5])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
