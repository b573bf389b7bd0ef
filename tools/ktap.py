#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""KTAP, the format in which every suite reports.

  ktap.py watch FILE              copies standard input to FILE, showing how far it is
  ktap.py count PARSER FILE       prints "passed failed skipped" of the KTAP in FILE, then
                                  the names of what failed; it is parsed by the kernel's
                                  own parser, in the directory PARSER
"""

import io
import re
import sys

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
                self.say(f"    {name}: {self.counts()}")
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


def failures(test, under=""):
    """The names of the failed tests that have no tests below them."""
    name = f"{under}: {test.name}" if under else test.name
    if not test.subtests:
        return [] if test.ok_status() else [name]
    below = "" if test.name == "main" else name
    return [f for sub in test.subtests for f in failures(sub, below)]


def count(parser_dir, path):
    sys.path.insert(0, parser_dir)
    import kunit_parser
    from kunit_printer import Printer

    with open(path, errors="replace") as f:
        found = documents(f.read())
    passed = failed = skipped = 0
    names = []
    for lines in found:
        # The parser prints every test as it goes; of that, only errors are wanted.
        said = io.StringIO()
        test = kunit_parser.parse_run_tests(lines, Printer(output=said))
        c = test.counts
        bad = c.failed + c.crashed
        # An error of the parser, such as tests that were announced and never ran.
        if c.errors and not bad:
            bad = 1
        names += failures(test)
        names += re.findall(r"\[ERROR\] (.*)", said.getvalue())
        passed, failed, skipped = passed + c.passed, failed + bad, skipped + c.skipped
    print(passed, failed, skipped)
    for name in names:
        print(name)


def main():
    if sys.argv[1] == "watch":
        watch(sys.argv[2])
    elif sys.argv[1] == "count":
        count(*sys.argv[2:4])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
