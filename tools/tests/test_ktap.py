# SPDX-License-Identifier: GPL-2.0
"""What counts as passed, failed and skipped in a report, and what is said of it.

The kernel's parser is in the directory that KUNIT_PARSER names.
"""

import contextlib
import io
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import ktap  # noqa: E402

PARSER = os.environ.get("KUNIT_PARSER", "")

REPORT = """KTAP version 1
1..2
    KTAP version 1
    # Subtest: vxe_one
    1..3
    ok 1 works
    ok 2 huge # SKIP MAP_HUGETLB: no memory
    ok 3 other # SKIP there is no xe device
ok 1 vxe_one
    KTAP version 1
    # Subtest: vxe_two
    1..2
    ok 1 works
    not ok 2 breaks
not ok 2 vxe_two
"""


def count(report, skips=None, others=None):
    """The counts, the failures and the notes that the program prints. Other lists of skips have names."""
    with tempfile.TemporaryDirectory() as work:
        paths = [os.path.join(work, name) for name in ("report", "skips")]
        for name, text in (others or {}).items():
            with open(os.path.join(work, name), "w") as f:
                f.write(text)
        for path, text in zip(paths, (report, skips)):
            if text is not None:
                with open(path, "w") as f:
                    f.write(text)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            ktap.count(PARSER, *paths)
    first, *lines = out.getvalue().split("\n")
    told = {"failed": [], "note": []}
    for line in filter(None, lines):
        what, text = line.split(" ", 1)
        told[what].append(text)
    return [int(n) for n in first.split()], told["failed"], told["note"]


class Skipping(unittest.TestCase):
    def test_a_skip_that_nobody_expects_fails(self):
        counts, failed, notes = count(REPORT)
        self.assertEqual(counts, [2, 3, 0])
        self.assertEqual(
            failed,
            [
                "vxe_one: huge (skipped: MAP_HUGETLB: no memory)",
                "vxe_one: other (skipped: there is no xe device)",
                "vxe_two: breaks",
            ],
        )
        self.assertEqual(notes, [])

    def test_an_expected_one_does_not(self):
        skips = "# why\n\nvxe_one: huge -- MAP_HUGETLB\nvxe_*: oth?r -- no xe device\n"
        counts, failed, notes = count(REPORT, skips)
        self.assertEqual(counts, [2, 1, 2])
        self.assertEqual((failed, notes), (["vxe_two: breaks"], []))

    def test_a_list_includes_another(self):
        others = {"plain.txt": "# why\nvxe_one: huge -- MAP_HUGETLB\n"}
        skips = "include plain.txt\nvxe_one: other -- no xe device\n"
        counts, failed, notes = count(REPORT, skips, others)
        self.assertEqual(counts, [2, 1, 2])
        self.assertEqual((failed, notes), (["vxe_two: breaks"], []))
        for bad in ("include other.txt", "include "):
            counts, failed, _ = count(REPORT, bad, others)
            self.assertEqual(counts, [0, 1, 0])
            self.assertEqual(len(failed), 1)

    def test_for_another_reason_it_fails(self):
        counts, failed, _ = count(REPORT, "vxe_one: * -- MAP_HUGETLB")
        self.assertEqual(counts, [2, 2, 1])
        self.assertIn("vxe_one: other (skipped: there is no xe device)", failed)

    def test_all_skipped_is_not_well(self):
        report = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..1\n    ok 1 b # SKIP\nok 1 a\n"
        counts, failed, _ = count(report)
        self.assertEqual((counts, failed), ([0, 1, 0], ["a: b (skipped: for no reason)"]))

    def test_what_runs_though_it_should_skip_is_told(self):
        skips = "vxe_one: huge -- MAP_HUGETLB\nvxe_one: other -- device\nvxe_one: works -- old kernel\ngone: x -- y\n"
        counts, _, notes = count(REPORT, skips)
        self.assertEqual(counts, [2, 1, 2])
        self.assertEqual(
            notes,
            [
                "expected to skip, but vxe_one: works ran: vxe_one: works -- old kernel",
                "expected to skip, but there is no such test: gone: x -- y",
            ],
        )

    def test_an_entry_needs_a_reason(self):
        for bad in ("vxe_one: huge", "vxe_one: huge -- ", " -- because"):
            counts, failed, _ = count(REPORT, bad)
            self.assertEqual(counts, [0, 1, 0])
            self.assertIn("not 'NAME -- REASON'", failed[0])


class Counting(unittest.TestCase):
    def test_tests_that_never_ran_fail(self):
        report = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..3\n    ok 1 b\n"
        counts, failed, _ = count(report)
        self.assertEqual(counts[0], 1)
        self.assertGreaterEqual(counts[1], 1)
        self.assertTrue(any("missing expected subtest" in name for name in failed), failed)

    def test_a_group_that_fails_by_itself_fails(self):
        report = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..1\n    ok 1 b\nnot ok 1 a\n"
        counts, _, _ = count(report)
        self.assertEqual(counts, [1, 1, 0])

    def test_an_empty_report_fails(self):
        self.assertEqual(count("")[0], [0, 0, 0])
        counts, failed, _ = count("KTAP version 1\n1..0\n")
        self.assertEqual(counts, [0, 1, 0])
        self.assertTrue(failed)

    def test_each_document_counts(self):
        report = "KTAP version 1\n1..1\nok 1 a\nKTAP version 1\n1..1\nnot ok 1 b\n"
        self.assertEqual(count(report)[:2], ([1, 1, 0], ["b"]))


if __name__ == "__main__":
    unittest.main()
