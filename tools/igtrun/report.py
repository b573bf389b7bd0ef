# SPDX-License-Identifier: GPL-2.0
"""What a run says: while it runs, a table at its end, and files for other programs."""

import collections
import os
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ET

from . import lists, outcome

# Seconds between two lines of progress, on a terminal and in a log.
TTY_EVERY, LOG_EVERY = 0.3, 15
# The most lines of a kind in what is printed.
MOST_LINES = 60
# The most reports of kernel logs; the others are named only.
MOST_REPORTS = 5


class Progress:
    """Shows differences at once, and how far the run is."""

    def __init__(self, tests, expectations, out=sys.stderr):
        self.tests, self.expectations, self.out = tests, expectations, out
        self.tty = out.isatty()
        self.counts = collections.Counter()
        self.done, self.unlike = 0, 0
        self.started = self.last = time.time()

    def say(self, text):
        print(("\r\033[K" if self.tty else "") + text, file=self.out, flush=True)

    def test(self, number, result):
        name = lists.name(*self.tests[number])
        self.done += 1
        self.counts[result.status] += 1
        different = self.expectations.difference(name, result)
        if different:
            self.unlike += 1
            self.say(f"    {name}: {different}")
        now = time.time()
        if now - self.last >= (TTY_EVERY if self.tty else LOG_EVERY):
            self.last = now
            text = f"    {self.done} of {len(self.tests)}: {self.tally()} ({now - self.started:.0f} s), {name}"
            if self.tty:
                print(f"\r\033[K{text[:shutil.get_terminal_size().columns - 1]}", end="", file=self.out, flush=True)
            else:
                self.say(text)

    def tally(self):
        words = [f"{self.counts[s]} {s.lower()}" for s in outcome.STATUSES if self.counts[s]]
        return ", ".join(words + ([f"{self.unlike} not as expected"] if self.unlike else []))

    def end(self):
        if self.tty:
            print("\r\033[K", end="", file=self.out, flush=True)


class Report:
    """The results of a run: pairs of a test's name and its outcome, in order."""

    def __init__(self, results, expectations, errors=(), excerpts=(), notes=(), title=""):
        self.results, self.expectations = results, expectations
        self.errors, self.excerpts, self.notes, self.title = list(errors), list(excerpts), list(notes), title
        self.differences = [(name, d) for name, r in results if (d := expectations.difference(name, r))]

    @property
    def good(self):
        return bool(self.results) and not self.differences and not self.errors

    def programs(self):
        """The results of each program, in order."""
        found = {}
        for name, result in self.results:
            found.setdefault(name.partition("@")[0], []).append((name, result))
        return found

    def text(self):
        """The table, and what there is to say below it."""
        return "\n".join([*self._table(), *self._skips(), *self._list("expected to fail", self._expected()),
                          *self._list("flaky, and failed", self._flaky()), *self._list("noticed", self.notes),
                          *self._list("not as expected", [f"{n}: {d}" for n, d in self.differences] + self.errors),
                          "", self.summary()])

    def _table(self):
        programs = self.programs()
        width = max([len("program"), *map(len, programs)])
        yield f"{'program':<{width}} {'pass':>6} {'fail':>6} {'skip':>6} {'vacuous':>8} {'seconds':>8}"
        for program, results in [*programs.items(), ("all", self.results)]:
            yield f"{program:<{width}} " + " ".join(self._row([r for _, r in results]))

    @staticmethod
    def _row(results):
        passed = sum(r.status == outcome.PASS for r in results)
        skipped = sum(r.status == outcome.SKIP for r in results)
        unknown = any(r.jobs is None for r in results if r.status == outcome.PASS)
        vacuous = "-" if unknown else sum(r.vacuous for r in results)
        cells = (passed, len(results) - passed - skipped, skipped, vacuous, round(sum(r.seconds for r in results)))
        return (f"{cell:>{width}}" for cell, width in zip(cells, (6, 6, 6, 8, 8)))

    def _skips(self):
        reasons = collections.Counter(
            (name.partition("@")[0], r.reason) for name, r in self.results if r.status == outcome.SKIP)
        return self._list("skipped", [f"{n:>4} {program}: {reason}" for (program, reason), n in reasons.items()])

    def _expected(self):
        for name, r in self.results:
            status, reason = self.expectations.of(name)
            if status not in (outcome.PASS, outcome.SKIP) and r.status == status and not r.reports:
                yield f"{name}: {reason}"

    def _flaky(self):
        for name, r in self.results:
            if r.status not in (outcome.PASS, outcome.SKIP) and self.expectations.flaky(name) and not r.reports:
                yield f"{name}: {r.status}: {r.reason}"

    @staticmethod
    def _list(title, lines):
        lines = list(lines)
        if lines:
            yield f"\n{title}:"
            yield from (f"  {line}" for line in lines[:MOST_LINES])
            if len(lines) > MOST_LINES:
                yield f"  and {len(lines) - MOST_LINES} more"

    def summary(self):
        counts = collections.Counter(r.status for _, r in self.results)
        vacuous = sum(r.vacuous for _, r in self.results)
        words = [f"{counts[outcome.PASS]} passed" + (f" ({vacuous} without work of a GPU)" if vacuous else "")]
        failed = sum(counts[s] for s in (outcome.FAIL, outcome.CRASH, outcome.TIMEOUT))
        words.append(f"{failed} failed")
        words.append(f"{counts[outcome.SKIP]} skipped")
        unlike = len(self.differences) + len(self.errors)
        return ", ".join(words) + ("; all as expected" if self.good else f"; {unlike} not as expected")

    def kernel_reports(self):
        """What the kernel reported, with the lines of its log."""
        for title, lines, log in self.excerpts:
            yield "\n".join([title, *(f"  | {line}" for line in lines), f"whole log: {log}"])

    def junit(self, path):
        """Writes JUnit's XML. A test that fails as expected is skipped there; a difference is a failure."""
        unlike = dict(self.differences)
        top = ET.Element("testsuites", name=f"IGT {self.title}".strip())
        for program, results in self.programs().items():
            suite = ET.SubElement(
                top, "testsuite", name=program, tests=str(len(results)),
                failures=str(sum(n in unlike for n, _ in results)), time=f"{sum(r.seconds for _, r in results):.1f}")
            skipped = 0
            for name, r in results:
                case = ET.SubElement(suite, "testcase", classname=program, time=f"{r.seconds:.1f}",
                                     name=name.partition("@")[2] or program)
                if name in unlike:
                    ET.SubElement(case, "failure", message=printable(unlike[name])).text = printable(r.output)
                elif r.status != outcome.PASS:
                    skipped += 1
                    why = r.reason if r.status == outcome.SKIP else f"{r.status}, as expected: {r.reason}"
                    ET.SubElement(case, "skipped", message=printable(why))
            suite.set("skipped", str(skipped))
        if self.errors:
            suite = ET.SubElement(top, "testsuite", name="guests", tests=str(len(self.errors)),
                                  failures=str(len(self.errors)))
            for n, error in enumerate(self.errors, 1):
                case = ET.SubElement(suite, "testcase", classname="guests", name=f"guest {n}")
                ET.SubElement(case, "failure", message=printable(error))
        ET.indent(top)
        ET.ElementTree(top).write(path, encoding="utf-8", xml_declaration=True)

    def ktap(self, path):
        """Writes KTAP, in the form of the other suites."""
        unlike = dict(self.differences)
        programs = self.programs()
        lines = ["KTAP version 1", f"1..{len(programs)}"]
        for n, (program, results) in enumerate(programs.items(), 1):
            lines += ["    KTAP version 1", f"    # Subtest: {program}", f"    1..{len(results)}"]
            for m, (name, r) in enumerate(results, 1):
                subtest = name.partition("@")[2] or program
                if name in unlike:
                    lines += [f"    # {line}" for line in [unlike[name], *outcome.clean(r.output)[-30:]]]
                    lines.append(f"    not ok {m} {subtest}")
                elif r.status == outcome.PASS:
                    lines.append(f"    ok {m} {subtest}")
                else:
                    why = r.reason if r.status == outcome.SKIP else f"{r.status}, as expected"
                    lines.append(f"    ok {m} {subtest} # SKIP {why.replace('#', ' ')}")
            bad = any(name in unlike for name, _ in results)
            lines.append(f"{'not ok' if bad else 'ok'} {n} {program}")
        with open(path, "w") as f:
            f.write("\n".join(lines) + "\n")

    def files(self, directory):
        """Writes the result of each test, the output of those that did not pass, and new expectations."""
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(os.path.join(directory, "output"))
        with open(os.path.join(directory, "results.txt"), "w") as f:
            for name, r in self.results:
                vacuous = " vacuous" if r.vacuous else ""
                f.write(f"{name},{r.status}{vacuous} {r.seconds:.1f}s{' ' + r.reason if r.reason else ''}\n")
        for name, r in self.results:
            if r.status != outcome.PASS or r.reports:
                with open(os.path.join(directory, "output", name + ".txt"), "w") as f:
                    f.write("\n".join([*r.reports, r.output]) + "\n")
        outdated = {self.expectations.entry(name): None for name, d in self.differences}
        with open(os.path.join(directory, "outdated.txt"), "w") as f:
            f.writelines(f"{entry}\n" for entry in outdated if entry)
        for status, file in ((outcome.FAIL, "fails.txt"), (outcome.SKIP, "skips.txt")):
            with open(os.path.join(directory, file), "w") as f:
                f.write(self._expectations(status))

    def _expectations(self, kind):
        """Entries that would make what differs expected, by reason. Reports of the kernel have none."""
        by_reason = {}
        for name, r in self.results:
            skip = r.status == outcome.SKIP
            if r.status == outcome.PASS or r.reports or skip != (kind == outcome.SKIP):
                continue
            if self.expectations.difference(name, r):
                by_reason.setdefault(r.reason, []).append(re.escape(name).replace("\\-", "-") if skip
                                                          else f"{name},{r.status}")
        return "\n".join(f"# {reason or 'no reason given'}\n" + "\n".join(names) + "\n"
                         for reason, names in by_reason.items())


def printable(text):
    """Without the characters that XML cannot have."""
    return "".join(c if c in "\t\n" or ord(c) >= 32 else " " for c in text if not 0xD800 <= ord(c) < 0xE000)
