# SPDX-License-Identifier: GPL-2.0
"""Which version is taken of those that the archive offers, by what "apt-cache madison" said."""

import os
import subprocess
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "versions.sh")

# As it was recorded.
MADISON = """\
     rustc | 1.97.1+dfsg1-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages
     rustc | 1.85.1+dfsg1-1+deb13u1 | http://deb.debian.org/debian trixie/main amd64 Packages
linux-source-7.3 | 7.3.4-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages
linux-source-7.2 | 7.2.12-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages
linux-source-7.2 | 7.2.9-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages
     clang |  1:19.0-63 | http://deb.debian.org/debian trixie/main amd64 Packages
qemu-system-x86 | 1:11.1.3+ds-1~bpo13+1 | http://deb.debian.org/debian trixie-backports/main amd64 Packages
qemu-system-x86 | 1:10.0.13+ds-0+deb13u1 | http://deb.debian.org/debian trixie/main amd64 Packages
      qemu | 1:10.0.13+ds-0+deb13u1 | http://deb.debian.org/debian trixie/main Sources
"""


def line(name, version, suite="trixie-backports"):
    return f"{name} | {version} | http://mirror/debian {suite}/main amd64 Packages\n"


def choose(madison, *arguments):
    run = subprocess.run(["bash", "-euc", '. "$0"; choose_version "$@"', SCRIPT, *arguments],
                         input=madison, capture_output=True, text=True, check=True)
    return run.stdout.strip()


class Choice(unittest.TestCase):
    def test_pinned_version_is_taken(self):
        self.assertEqual(choose(MADISON, "rustc", "1.85.1+dfsg1-1+deb13u1"), "1.85.1+dfsg1-1+deb13u1")
        self.assertEqual(choose(MADISON, "linux-source-7.3", "7.3.4-1~bpo13+1", "7.3"), "7.3.4-1~bpo13+1")

    def test_pinned_version_is_taken_though_newer_ones_are_there(self):
        self.assertEqual(choose(MADISON, "linux-source-7.2", "7.2.9-1~bpo13+1"), "7.2.9-1~bpo13+1")
        self.assertEqual(choose(MADISON, "rustc", "1.97.1+dfsg1-1~bpo13+1"), "1.97.1+dfsg1-1~bpo13+1")

    def test_release_goes_before_backports(self):
        self.assertEqual(choose(MADISON, "rustc", "1.85.1+dfsg1-1"), "1.85.1+dfsg1-1+deb13u1")
        self.assertEqual(choose(MADISON, "qemu-system-x86", "1:10.0.11+ds-0+deb13u1"), "1:10.0.13+ds-0+deb13u1")

    def test_backports_if_the_release_has_none(self):
        self.assertEqual(choose(MADISON, "linux-source-7.3", "7.3.2-1~bpo13+1", "7.3"), "7.3.4-1~bpo13+1")

    def test_newest_is_by_number_in_any_order(self):
        lines = [line("linux-source-7.3", f"7.3.{n}-1~bpo13+1") for n in (9, 10, 5)]
        for order in (lines, lines[::-1], lines[1:] + lines[:1]):
            self.assertEqual(choose("".join(order), "linux-source-7.3", "7.3.4-1~bpo13+1", "7.3"), "7.3.10-1~bpo13+1")

    def test_security_update_is_newer(self):
        madison = line("rustc", "1.85.1+dfsg1-1+deb13u1", "trixie") + line("rustc", "1.85.1+dfsg1-1+deb13u2", "trixie-security")
        self.assertEqual(choose(madison, "rustc", "1.85.1+dfsg1-1"), "1.85.1+dfsg1-1+deb13u2")

    def test_only_the_series_counts(self):
        madison = line("linux-source", "7.30.1-1") + line("linux-source", "7.4.1-1") + line("linux-source", "7.3.6-1")
        self.assertEqual(choose(madison, "linux-source", "7.3.4-1", "7.3"), "7.3.6-1")
        self.assertEqual(choose(madison, "linux-source", "7.5.1-1", "7.5"), "")

    def test_first_release_of_a_series(self):
        self.assertEqual(choose(line("linux-source-7.3", "7.3-1~bpo13+1"), "linux-source-7.3", "7.3.4-1", "7.3"),
                         "7.3-1~bpo13+1")

    def test_package_without_a_pin_takes_what_there_is(self):
        self.assertEqual(choose(MADISON, "clang", ""), "1:19.0-63")

    def test_nothing_of_that_name(self):
        self.assertEqual(choose(MADISON, "linux-source-7.4", "7.4.1-1", "7.4"), "")
        self.assertEqual(choose("", "rustc", "1.85.1"), "")

    def test_sources_and_other_names_do_not_count(self):
        self.assertEqual(choose(MADISON, "qemu", "1:10.0.13+ds-0+deb13u1"), "")
        self.assertEqual(choose(MADISON, "qemu-system", "1"), "")


if __name__ == "__main__":
    unittest.main()
