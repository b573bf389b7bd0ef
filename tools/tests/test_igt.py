# SPDX-License-Identifier: GPL-2.0
"""How IGT's output is read, and how results are judged by what is expected."""

import io
import os
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ET

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from igtrun import expect, guests, lists, outcome, protocol, report  # noqa: E402

START = """IGT-Version: 2.5-NO-GIT (x86_64) (Linux: 7.3.4 x86_64)
Using IGT_SRANDOM=1 for randomisation
Opened device: /dev/dri/card0
"""
PASSED = START + """Starting subtest: once
\x1b[1mSubtest once: SUCCESS (0.056s)\x1b[0m
"""
SKIPPED = START + """Test requirement not met in function main, file ../tests/intel/xe_madvise.c:1114:
Test requirement: xe_has_purgeable_support(fd)
Kernel does not support purgeable buffer objects
Last errno: 2, No such file or directory
\x1b[1mSubtest once: SKIP (0.000s)\x1b[0m
"""
FAILED = START + """Starting subtest: once
[3.755491] (xe_create:72) xe/xe_ioctl-CRITICAL: Test assertion failure function xe_vm_create, file ../lib/xe.c:167:
[3.759281] (xe_create:72) xe/xe_ioctl-CRITICAL: Failed assertion: igt_ioctl(fd, (((2U|1U) << (8)) | 0), &create) == 0
[3.761180] (xe_create:72) xe/xe_ioctl-CRITICAL: Last errno: 95, Operation not supported
[3.761653] (xe_create:72) xe/xe_ioctl-CRITICAL: error: -1 != 0
Stack trace:
  #0 [__igt_fail_assert+0x102]
Subtest once failed.
**** DEBUG ****
[3.755491] (xe_create:72) xe/xe_ioctl-CRITICAL: Test assertion failure function other, file ../lib/xe.c:167:
****  END  ****
\x1b[1mSubtest once: FAIL (0.335s)\x1b[0m
"""
REASONS = "# why\n"


def parse(status, output, subtest="once", limit=None):
    return outcome.parse(subtest, status, output, limit)


class Output(unittest.TestCase):
    def test_success(self):
        result = parse(0, PASSED)
        self.assertEqual((result.status, result.reason), (outcome.PASS, ""))

    def test_a_console_that_ends_lines_by_two_characters_changes_nothing(self):
        self.assertEqual(parse(0, PASSED.replace("\n", "\r\n")).status, outcome.PASS)

    def test_a_success_that_the_program_does_not_say_is_none(self):
        self.assertEqual(parse(0, START).status, outcome.FAIL)
        self.assertEqual(parse(0, PASSED, subtest="twice").status, outcome.FAIL)
        self.assertEqual(parse(0, SKIPPED).status, outcome.FAIL)
        self.assertEqual(parse(77, PASSED).status, outcome.FAIL)

    def test_what_a_test_prints_is_not_its_result(self):
        self.assertEqual(parse(0, START + "what: Subtest once: SUCCESS (0.1s)\n").status, outcome.FAIL)

    def test_a_skip_has_the_reason_that_the_test_gives(self):
        result = parse(77, SKIPPED)
        self.assertEqual((result.status, result.reason),
                         (outcome.SKIP, "Kernel does not support purgeable buffer objects"))

    def test_a_reason_without_an_end_of_line(self):
        self.assertEqual(parse(77, SKIPPED.replace("objects\n", "objects")).reason,
                         "Kernel does not support purgeable buffer objects")

    def test_or_the_condition(self):
        result = parse(77, SKIPPED.replace("Kernel does not support purgeable buffer objects\n", ""))
        self.assertEqual(result.reason, "xe_has_purgeable_support(fd)")

    def test_or_what_it_printed_last(self):
        output = START + "No dynamic tests executed.\n\x1b[1mSubtest once: SKIP (0.0s)\x1b[0m\n"
        self.assertEqual(parse(77, output).reason, "No dynamic tests executed.")

    def test_a_failure_has_its_first_assertion(self):
        result = parse(98, FAILED)
        self.assertEqual(result.status, outcome.FAIL)
        self.assertEqual(result.reason, "xe_vm_create: errno 95, Operation not supported; -1 != 0")
        result = parse(98, FAILED.replace("igt_ioctl(fd, (((2U|1U) << (8)) | 0), &create) == 0", "data == 1"))
        self.assertEqual(result.reason, "xe_vm_create: data == 1; errno 95, Operation not supported; -1 != 0")

    def test_a_failure_in_a_thread_or_a_process_for_a_device(self):
        for who in ("<g:1> ", "[thread:75] ", "<g:0> [thread:75] "):
            result = parse(98, FAILED.replace("(xe_create:72) ", "(xe_create:72) " + who))
            self.assertEqual(result.reason, "xe_vm_create: errno 95, Operation not supported; -1 != 0")

    def test_a_dynamic_subtest_is_not_the_subtest(self):
        output = PASSED.replace("Subtest once", "Dynamic subtest once")
        self.assertEqual(parse(0, output).status, outcome.FAIL)

    def test_a_signal_is_a_crash(self):
        result = parse(139, START + "Received signal SIGSEGV.\n\x1b[1mSubtest once: CRASH (0.3s)\x1b[0m\n")
        self.assertEqual((result.status, result.reason), (outcome.CRASH, "ended by SIGSEGV"))
        self.assertEqual(parse(98, START + "\x1b[1mSubtest once: CRASH (0.3s)\x1b[0m\n").status, outcome.CRASH)
        self.assertEqual(parse(134, FAILED).reason,
                         "ended by SIGABRT; xe_vm_create: errno 95, Operation not supported; -1 != 0")

    def test_a_test_that_was_killed_after_its_time(self):
        result = parse(137, PASSED, limit=180)
        self.assertEqual((result.status, result.reason), (outcome.TIMEOUT, "not done after 180 s"))

    def test_an_unknown_test_fails(self):
        result = parse(79, START + "(template:79) igt_core-CRITICAL: Unknown subtest: once\n")
        self.assertEqual((result.status, result.reason), (outcome.FAIL, "Unknown subtest: once"))

    def test_a_program_without_subtests(self):
        self.assertEqual(parse(0, START + "\x1b[1mSUCCESS (0.1s)\x1b[0m\n", subtest=None).status, outcome.PASS)
        self.assertEqual(parse(0, START, subtest=None).status, outcome.FAIL)


class Guest(unittest.TestCase):
    """What the script in the guest prints."""

    def read(self, *lines, limit=180):
        times = iter(range(0, 1000, 3))
        reader = protocol.Reader({7: ("xe_vm", "once")}, limit, clock=lambda: next(times))
        return [found for line in lines if (found := reader.line(line + "\n"))], reader

    def test_a_test(self):
        output = ["| " + line for line in PASSED.split("\n")]
        found, _ = self.read("@begin 7", "@jobs a: 5 a: 1", *output, "@jobs a: 7 a: 1", "@end 7 0 ")
        [(number, result, stuck)] = found
        self.assertEqual((number, result.status, result.jobs, result.vacuous, result.seconds, stuck),
                         (7, outcome.PASS, 2, False, 3, False))

    def test_one_without_work_is_vacuous(self):
        output = ["| " + line for line in PASSED.split("\n")]
        found, _ = self.read("@begin 7", "@jobs a: 5", *output, "@jobs a: 5", "@end 7 0 ")
        self.assertTrue(found[0][1].vacuous)

    def test_without_counters_nobody_knows(self):
        for counters in ([], ["@jobs"]):
            output = ["| " + line for line in PASSED.split("\n")]
            found, _ = self.read("@begin 7", *counters, *output, *counters, "@end 7 0 ")
            self.assertEqual((found[0][1].jobs, found[0][1].vacuous), (None, False))

    def test_a_failure_is_not_vacuous(self):
        found, _ = self.read("@begin 7", "@jobs a: 5", "@jobs a: 5", "@end 7 98 ")
        self.assertFalse(found[0][1].vacuous)

    def test_a_counter_that_was_reset(self):
        self.assertEqual(protocol.jobs([5, 3]), 3)
        self.assertEqual(protocol.jobs([5, 5]), 0)
        self.assertIsNone(protocol.jobs([5]))

    def test_what_a_test_prints_ends_no_test(self):
        found, reader = self.read("@begin 7", "| @end 7 0", "| @begin 8", "end 7 0", "@end 8 0")
        self.assertEqual((found, reader.running), ([], 7))

    def test_late_and_stuck(self):
        found, _ = self.read("@begin 7", "@end 7 137 late", limit=5)
        self.assertEqual((found[0][1].status, found[0][1].reason), (outcome.TIMEOUT, "not done after 5 s"))
        found, _ = self.read("@begin 7", "@end 7 0 stuck")
        self.assertEqual((found[0][1].status, found[0][2]), (outcome.TIMEOUT, True))
        self.assertTrue(found[0][1].reports)

    def test_a_report_belongs_to_the_test_that_was_running(self):
        with tempfile.NamedTemporaryFile("w") as log:
            log.write("[ 1.0] guest: test xe_vm@once\n[ 2.0] guest: test xe_vm@twice\n"
                      "[ 3.0] WARNING: mm/x.c:1 at f+0x1/0x2, CPU#0: sh/1\n" + "[ 3.1] x\n" * 70 +
                      "[ 4.0] guest: test after all others\n[ 5.0] guest: leaked memory:\n")
            log.flush()
            found = [(name, kind) for name, kind, _, _ in guests.reports_of(log.name)]
        self.assertEqual(found, [("xe_vm@twice", "warning"), (None, "leaked memory")])


class Expecting(unittest.TestCase):
    def difference(self, expectations, status, name="xe_vm@once", **more):
        return expectations.difference(name, outcome.Outcome(status, "told", **more))

    def test_without_lists_all_pass(self):
        nothing = expect.Expectations()
        self.assertIsNone(self.difference(nothing, outcome.PASS))
        for status in (outcome.SKIP, outcome.FAIL, outcome.CRASH, outcome.TIMEOUT):
            self.assertIn("told", self.difference(nothing, status))

    def test_a_failure_of_the_same_kind(self):
        fails = expect.Expectations(fails=REASONS + "xe_vm@once,Fail\n")
        self.assertIsNone(self.difference(fails, outcome.FAIL))
        for status in (outcome.PASS, outcome.SKIP, outcome.CRASH, outcome.TIMEOUT):
            self.assertIn("why", self.difference(fails, status))
        self.assertIsNone(self.difference(fails, outcome.PASS, name="xe_vm@once-more"))

    def test_a_skip(self):
        skips = expect.Expectations(skips=REASONS + "xe_vm@on.*\n")
        self.assertIsNone(self.difference(skips, outcome.SKIP))
        self.assertIsNotNone(self.difference(skips, outcome.PASS))
        self.assertIsNotNone(self.difference(skips, outcome.SKIP, name="other_xe_vm@once"))

    def test_a_name_in_fails_comes_before_a_pattern_in_skips(self):
        both = expect.Expectations(fails=REASONS + "xe_vm@once,Fail\n", skips=REASONS + "xe_vm@.*\n")
        self.assertIsNone(self.difference(both, outcome.FAIL))
        self.assertIsNotNone(self.difference(both, outcome.SKIP))

    def test_a_flake(self):
        flakes = expect.Expectations(flakes=REASONS + "xe_vm@once\n")
        for status in outcome.STATUSES:
            self.assertIsNone(self.difference(flakes, status))

    def test_no_list_excuses_a_report_of_the_kernel(self):
        for lists_ in ({"flakes": REASONS + ".*"}, {"fails": REASONS + "xe_vm@once,Fail"}, {}):
            found = self.difference(expect.Expectations(**lists_), outcome.FAIL, reports=["a warning"])
            self.assertIn("a warning", found)
        self.assertIsNotNone(self.difference(expect.Expectations(), outcome.PASS, reports=["a warning"]))

    def test_each_entry_has_a_reason(self):
        self.assertEqual([(n, e, r) for n, e, r in expect.entries("# SPDX-License-Identifier: X\n\n# a\n# b\nx\ny\n#c\nz\n", "")],
                         [(5, "x", "a b"), (6, "y", "a b"), (8, "z", "c")])
        for bad in ("x,Fail", "# why\n\nx,Fail", "# SPDX-License-Identifier: GPL-2.0\nx,Fail", "#\nx,Fail"):
            with self.assertRaises(expect.BadExpectation):
                expect.Expectations(fails=bad)

    def test_bad_entries(self):
        for bad in ("x", "x,Skip", "x,Pass", "x,Fail\nx,Crash"):
            with self.assertRaises(expect.BadExpectation):
                expect.Expectations(fails=REASONS + bad)
        with self.assertRaises(expect.BadExpectation):
            expect.Expectations(skips=REASONS + "xe_(vm")

    def test_an_entry_of_no_test_is_noticed(self):
        fails = expect.Expectations(fails=REASONS + "xe_vm@gone,Fail\nxe_vm@once,Fail\nother@gone,Fail\n")
        [note] = fails.unknown({"xe_vm"}, {"xe_vm@once"})
        self.assertIn("xe_vm@gone", note)

    def test_the_lists_of_the_repository_are_well_formed(self):
        here = os.path.dirname(os.path.abspath(__file__))
        expect.Expectations.read(os.path.join(here, "../../tests/igt-expect"))


class Package(lists.Package):
    """One that needs no programs."""

    PROGRAMS = {"core_auth": [None], "xe_exec_basic": ["once"], "xe_vm": ["bind-once", "bind-twice", "stress"]}

    def __init__(self):
        super().__init__("")

    def binaries(self):
        return sorted(self.PROGRAMS)

    def _list(self, binary):
        return self.PROGRAMS[binary]

    def testlist(self, path):
        return "igt@xe_vm@stress\nigt@core_auth\n"


class Lists(unittest.TestCase):
    def names(self, text):
        chosen = lists.Chosen(Package())
        chosen.text(text, "list")
        return [lists.name(*test) for test in chosen.tests]

    def test_patterns(self):
        self.assertEqual(self.names("xe_vm@bind-*"), ["xe_vm@bind-once", "xe_vm@bind-twice"])
        self.assertEqual(self.names("xe_*@once # and a comment\n\n"), ["xe_exec_basic@once"])
        self.assertEqual(self.names("igt@xe_vm@stress@dynamic"), ["xe_vm@stress"])
        self.assertEqual(self.names("core_auth"), ["core_auth"])

    def test_order_and_repetition(self):
        self.assertEqual(self.names("xe_vm@stress\nxe_vm"), ["xe_vm@stress", "xe_vm@bind-once", "xe_vm@bind-twice"])

    def test_leaving_out(self):
        self.assertEqual(self.names("*\n- xe_vm@bind*\n- core_*"), ["xe_exec_basic@once", "xe_vm@stress"])

    def test_a_list_of_the_package(self):
        self.assertEqual(self.names("testlist intel-ci-tests/a\n- core_auth"), ["xe_vm@stress"])

    def test_a_pattern_of_no_test(self):
        for bad in ("xe_vm@nothing", "xe_nothing"):
            with self.assertRaises(lists.BadList):
                self.names(bad)

    def test_a_program_and_its_subtests(self):
        self.assertEqual(lists.choose(Package(), "xe_vm", "bind-*"), [("xe_vm", "bind-once"), ("xe_vm", "bind-twice")])


class Reporting(unittest.TestCase):
    EXPECTED = dict(fails=REASONS + "xe_vm@fails,Fail\nxe_vm@mended,Fail\n", skips=REASONS + "xe_vm@skips\n")
    RESULTS = [
        ("core_auth", outcome.Outcome(outcome.PASS, jobs=0)),
        ("xe_vm@works", outcome.Outcome(outcome.PASS, jobs=3, seconds=2)),
        ("xe_vm@fails", outcome.Outcome(outcome.FAIL, "an assertion", jobs=0)),
        ("xe_vm@skips", outcome.Outcome(outcome.SKIP, "no display", jobs=0)),
    ]
    MENDED = ("xe_vm@mended", outcome.Outcome(outcome.PASS, jobs=1))
    BROKEN = ("xe_vm@other", outcome.Outcome(outcome.FAIL, "data\x1b != 1", jobs=1, output="\x00 what it printed"))

    def report(self, *more, **given):
        return report.Report([*self.RESULTS, *more], expect.Expectations(**self.EXPECTED), **given)

    def test_as_expected(self):
        done = self.report()
        self.assertTrue(done.good)
        self.assertEqual(done.summary(), "2 passed (1 without work of a GPU), 1 failed, 1 skipped; all as expected")
        rows = [line.split() for line in done.text().split("\n")[1:4]]
        self.assertEqual(rows, [["core_auth", "1", "0", "0", "1", "0"], ["xe_vm", "1", "1", "1", "0", "2"],
                                ["all", "2", "1", "1", "1", "2"]])
        self.assertIn("   1 xe_vm: no display", done.text())

    def test_a_difference_is_named(self):
        for test in (self.MENDED, self.BROKEN):
            done = self.report(test)
            self.assertFalse(done.good)
            self.assertIn(test[0], done.text().split("not as expected:")[1])
            self.assertTrue(done.summary().endswith("1 not as expected"))

    def test_an_error_of_a_guest_is_a_difference(self):
        self.assertFalse(self.report(errors=["a guest did not boot"]).good)

    def test_no_test_is_not_well(self):
        self.assertFalse(report.Report([], expect.Expectations()).good)

    def test_without_counters_nothing_is_said_of_them(self):
        done = self.report(("xe_vm@more", outcome.Outcome(outcome.PASS)))
        self.assertEqual(done.text().split("\n")[2].split()[4], "-")

    def test_junit(self):
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "igt.xml")
            self.report(self.MENDED, self.BROKEN, errors=["a guest did not boot"]).junit(path)
            top = ET.parse(path).getroot()
        self.assertEqual([(s.get("name"), s.get("tests"), s.get("failures"), s.get("skipped")) for s in top],
                         [("core_auth", "1", "0", "0"), ("xe_vm", "5", "2", "2"), ("guests", "1", "1", None)])
        failed = [c.get("name") for c in top.iter("testcase") if c.find("failure") is not None]
        self.assertEqual(failed, ["mended", "other", "guest 1"])

    def test_ktap(self):
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "igt.ktap")
            self.report(self.BROKEN).ktap(path)
            with open(path) as f:
                lines = [line.rstrip("\n") for line in f]
        self.assertEqual([line for line in lines if not line.startswith("    #")], [
            "KTAP version 1", "1..2", "    KTAP version 1", "    1..1", "    ok 1 core_auth", "ok 1 core_auth",
            "    KTAP version 1", "    1..4", "    ok 1 works", "    ok 2 fails # SKIP Fail, as expected",
            "    ok 3 skips # SKIP no display", "    not ok 4 other", "not ok 2 xe_vm",
        ])

    def test_files_say_what_would_be_expected(self):
        with tempfile.TemporaryDirectory() as work:
            out = os.path.join(work, "igt")
            skip = ("xe_vm@a+b", outcome.Outcome(outcome.SKIP, "no memory"))
            skips = ("xe_vm@skips", outcome.Outcome(outcome.PASS))
            self.report(self.BROKEN, self.MENDED, skip, skips).files(out)
            with open(os.path.join(out, "outdated.txt")) as f:
                self.assertEqual(f.read(), "xe_vm@mended,Fail\nxe_vm@skips\n")
            texts = {}
            for file in ("fails.txt", "skips.txt"):
                with open(os.path.join(out, file)) as f:
                    texts[file.removesuffix(".txt")] = f.read()
            self.assertTrue(os.path.exists(os.path.join(out, "output", "xe_vm@other.txt")))
        new = expect.Expectations(**texts)
        self.assertEqual(set(new.fails), {"xe_vm@other"})
        self.assertEqual(new.of("xe_vm@a+b"), (outcome.SKIP, "no memory"))
        self.assertEqual(new.of("xe_vm@aab")[0], outcome.PASS)

    def test_progress(self):
        out = io.StringIO()
        shown = report.Progress([("xe_vm", "other")], expect.Expectations(), out)
        shown.test(0, self.BROKEN[1])
        self.assertIn("xe_vm@other: Fail, but Pass is expected: data", out.getvalue())
        self.assertEqual(shown.tally(), "1 fail, 1 not as expected")


if __name__ == "__main__":
    unittest.main()
