# SPDX-License-Identifier: GPL-2.0
"""What is said on machines that do not do: what lib.sh checks before anything is fetched or mounted."""

import os
import subprocess
import tempfile
import unittest

LIB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib.sh")
NOBODY = 65534


def run(script, user=None):
    """Runs a script that has sourced lib.sh; the status and what was said. Functions in it stand for commands."""
    with tempfile.TemporaryDirectory() as cache:
        os.chmod(cache, 0o777)
        env = dict(os.environ, GPUSVM_CACHE=cache, PATH="/usr/sbin:/usr/bin", JOBS="2")
        done = subprocess.run(["bash", "-c", '. "$0"\n' + script, LIB], env=env, user=user, cwd="/",
                              capture_output=True, text=True)
        return done.returncode, done.stderr


def meminfo(mib):
    """An awk that finds so much memory, and otherwise does what awk does."""
    return f'awk() {{ if [[ $* == */proc/meminfo ]]; then echo {mib}; else command awk "$@"; fi; }}\n'


class Machine(unittest.TestCase):
    ENOUGH = meminfo(8000) + "stat() { echo '5000000 * 4096'; }\n"

    def test_enough_of_everything(self):
        self.assertEqual(run(self.ENOUGH + "need_machine 8"), (0, ""))

    def test_other_processor(self):
        status, said = run(self.ENOUGH + "uname() { echo aarch64; }; need_machine 8")
        self.assertEqual(status, 1)
        self.assertIn("this machine is aarch64", said)
        self.assertIn("x86-64 only", said)

    def test_no_disk_space(self):
        status, said = run(meminfo(8000) + "stat() { echo '1000000 * 4096'; }; need_machine 8")
        self.assertEqual(status, 1)
        self.assertIn("8 GiB are needed, 3 GiB are free", said)
        self.assertIn("GPUSVM_CACHE=", said)

    def test_no_memory(self):
        status, said = run(self.ENOUGH + meminfo(1000) + "need_machine 8")
        self.assertEqual(status, 1)
        self.assertIn("3072 MiB are needed, 1000 MiB are free", said)
        self.assertNotIn("JOBS=", said)

    def test_no_memory_for_so_many_compilers(self):
        status, said = run(self.ENOUGH + "JOBS=64; need_machine 8")
        self.assertEqual(status, 1)
        self.assertIn("11776 MiB are needed, 8000 MiB are free", said)
        self.assertIn("JOBS=", said)

    def test_the_real_figures_are_numbers(self):
        status, said = run("need_machine 0")
        self.assertTrue(status == 0 or "MiB are free" in said, said)


class User(unittest.TestCase):
    DENIED = "unshare() { echo 'unshare: unshare failed: Operation not permitted' >&2; return 1; }\n"

    def test_root_in_a_container_that_may_not_mount(self):
        status, said = run(self.DENIED + "need_namespaces")
        self.assertEqual(status, 1)
        self.assertIn("does not let root mount: unshare failed: Operation not permitted", said)
        self.assertIn("privileged", said)

    def test_no_newuidmap(self):
        status, said = run(self.DENIED + "command() { return 1; }; need_namespaces", NOBODY)
        self.assertEqual(status, 1)
        self.assertIn("newuidmap and newgidmap are missing", said)
        self.assertIn("apt-get install uidmap", said)

    def test_no_subordinate_ids(self):
        status, said = run(self.DENIED + "newuidmap() { :; }; grep() { return 1; }; need_namespaces", NOBODY)
        self.assertEqual(status, 1)
        self.assertIn("nobody has no subordinate ids in /etc/subuid", said)
        self.assertIn("usermod --add-subuids", said)

    def test_something_else(self):
        ready = "newuidmap() { :; }; grep() { :; }; forbidden() { :; }; mountpoint() { :; }\n"
        status, said = run(self.DENIED + ready + "need_namespaces", NOBODY)
        self.assertEqual(status, 1)
        self.assertIn("Operation not permitted", said)

    def test_sysctl_that_forbids(self):
        status, said = run("forbidden kernel/ostype Linux 1")
        self.assertEqual(status, 1)
        self.assertIn("kernel.ostype is Linux", said)
        self.assertIn("sysctl -w kernel.ostype=1", said)
        self.assertEqual(run("forbidden kernel/ostype 0 1"), (0, ""))
        self.assertEqual(run("forbidden kernel/there_is_none 0 1"), (0, ""))

    def test_missing_packages(self):
        status, said = run("host_packages /there/is/none=one-package no-such-command=another bash=bash", NOBODY)
        self.assertEqual(status, 1)
        self.assertIn("apt-get install --no-install-recommends one-package another\n", said)


if __name__ == "__main__":
    unittest.main()
