# SPDX-License-Identifier: GPL-2.0
"""What the checker of kernel logs finds, and what it lets pass."""

import io
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "guest"))
import klog  # noqa: E402

REFUSED = "[   14.6] vxe vxe.0: GPU access to system 0x1000 refused: ENXIO"
LOST = "[   14.6] vxe: a device goes with pages of processes in its memory"


def kinds(*lines, allow=None):
    return [kind for kind, _, _ in klog.problems(list(lines), allow)]


class Reports(unittest.TestCase):
    def test_a_healthy_log_has_none(self):
        self.assertEqual(kinds("[    0.0] Linux version 7.3", "[    1.0] DMA-API: preallocated 65536 debug entries"), [])

    def test_each_kind_is_found(self):
        for kind, line in (
            ("kernel panic", "Kernel panic - not syncing: Fatal exception"),
            ("oops", "BUG: unable to handle page fault for address: ffff"),
            ("oops", "kernel BUG at mm/rmap.c:1!"),
            ("KASAN report", "BUG: KASAN: slab-use-after-free in f+0x1/0x2"),
            ("undefined behaviour", "UBSAN: array-index-out-of-bounds in x.c:1"),
            ("warning", "WARNING: mm/x.c:1 at f+0x1/0x2, CPU#0: sh/1"),
            ("lock dependency report", "WARNING: possible circular locking dependency detected"),
            ("sleep in atomic context", "BUG: sleeping function called from invalid context at x.c:1"),
            ("RCU report", "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
            ("hung task", "INFO: task sh:1 blocked for more than 120 seconds."),
            ("reference count", "refcount_t: underflow; use-after-free."),
            ("list corruption", "list_del corruption. prev->next should be ffff"),
            ("bad page", "BUG: Bad page state in process sh  pfn:1"),
            ("bad page", "BUG: Bad rss-counter state mm:f type:MM_ANONPAGES val:1"),
            ("DMA mapping", "DMA-API: vxe vxe.0: device driver has pending DMA allocations"),
            ("DMA mapping", "guest: DMA mapping left behind by vxe vxe.0"),
            ("leaked memory", "guest: leaked memory:"),
            ("Rust panic", "rust_kernel: panicked at x.rs:1"),
            ("unload failure", "guest: unload failed: vxe: busy"),
            ("oom-kill, which no test expects here", "Out of memory: Killed process 1 (sh)"),
            ("oom-kill, which no test expects here", "Memory cgroup out of memory: Killed process 1 (sh)"),
            ("bug", "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[1]"),
            ("DRM error", "[drm:drm_gem_object_free] *ERROR* something"),
        ):
            self.assertIn(kind, kinds(f"[   14.6] {line}"), line)

    def test_a_report_is_one_however_long(self):
        lines = ["BUG: KASAN: slab-use-after-free in f"] + ["Call Trace:"] * 3
        self.assertEqual(kinds(*lines), ["KASAN report"])

    def test_two_names_of_one_class_of_the_kernels(self):
        def report(file, other):
            said = f'Looking for class "{file}" with key _R3newS_5CLASS, but found a different class "{other}" with the same key'
            return ["------------[ cut here ]------------", said,
                    "WARNING: kernel/locking/lockdep.c:958 at look_up_lock_class+0x88/0x110, CPU#1: x/245", "Call Trace:"]

        shmem = "/tree/rust/kernel/drm/gem/shmem.rs:313"
        self.assertEqual(kinds(*report(shmem, shmem)), [])
        self.assertNotEqual(kinds(*report(shmem, shmem[:-1])), [])
        self.assertNotEqual(kinds(*report("vxe/bo.rs:7", "vxe/bo.rs:7")), [])

    def test_two_that_are_far_apart_are_two(self):
        lines = ["UBSAN: x"] + ["-"] * klog.SAME_REPORT + ["UBSAN: y"]
        self.assertEqual(len(kinds(*lines)), 2)

    def test_what_is_cut_here_is_named(self):
        self.assertEqual(kinds("------------[ cut here ]------------", "refcount_t: underflow"), ["reference count"])

    def test_a_run_may_allow_a_report(self):
        self.assertEqual(kinds("UBSAN: x in y.c", allow="in y.c"), [])
        self.assertEqual(kinds("UBSAN: x in z.c", allow="in y.c"), ["undefined behaviour"])


class InjectedFailures(unittest.TestCase):
    ERROR = "vmalloc error: size 16384, vm_struct allocation failed, mode:0xcc0"

    def test_its_stack_is_no_report(self):
        self.assertEqual(kinds(self.ERROR, "CPU: 0", "Call Trace:"), [])

    def test_another_stack_is(self):
        self.assertEqual(kinds("Call Trace:"), ["stack trace"])
        self.assertEqual(kinds(self.ERROR, *["-"] * klog.INJECTED_TRACE, "Call Trace:"), ["stack trace"])

    def test_a_report_after_it_is(self):
        self.assertEqual(kinds(self.ERROR, "Call Trace:", "BUG: KASAN: x"), ["KASAN report"])

    def test_memory_that_is_short_in_another_way_is(self):
        line = "vmalloc error: size 16384, failed to allocated page array size 32"
        self.assertEqual(kinds(line, "Call Trace:"), ["stack trace"])


class Alarms(unittest.TestCase):
    def test_each_fails_a_run(self):
        for line, name in (
            (REFUSED, "refused-access"),
            (LOST, "lost-pages"),
            ("device_map returned another kind of mapping than requested", "wrong-mapping"),
            ("gpusvm: a pagemap or its hold is left at the exit of the module", "pagemap-left"),
        ):
            self.assertEqual(kinds(line), [f"{name}, which no test expects here"])

    def test_none_hides_behind_a_report(self):
        self.assertEqual(len(kinds("UBSAN: x", REFUSED, LOST)), 3)

    def test_an_announced_one_is_let_pass(self):
        self.assertEqual(kinds("[ 1.0] klog: expect refused-access", REFUSED, REFUSED, "[ 1.1] klog: end refused-access"), [])
        self.assertEqual(kinds("[ 1.0] vxe: klog: expect refused-access", REFUSED, "[ 1.1] vxe: klog: end refused-access"), [])

    def test_only_the_announced_one(self):
        found = kinds("klog: expect refused-access", REFUSED, LOST, "klog: end refused-access")
        self.assertEqual(found, ["lost-pages, which no test expects here"])

    def test_only_in_its_time(self):
        unexpected = ["refused-access, which no test expects here"]
        span = ["klog: expect refused-access", REFUSED, "klog: end refused-access"]
        self.assertEqual(kinds(*span, REFUSED), unexpected)
        self.assertEqual(kinds(REFUSED, *span), unexpected)

    def test_the_next_test_ends_it(self):
        lines = ["guest: test a b", "klog: expect refused-access", REFUSED, "guest: test a c", REFUSED]
        self.assertEqual(kinds(*lines), ["refused-access, which no test expects here"])

    def test_a_kill_that_is_announced_may_come_with_its_stack(self):
        lines = ["klog: expect oom-kill", "sh invoked oom-killer: gfp_mask=0x1", "CPU: 0", "Call Trace:", "f+0x1/0x2",
                 "Out of memory: Killed process 1 (sh)", "klog: end oom-kill"]
        self.assertEqual(kinds(*lines), [])
        self.assertEqual(kinds(lines[0], lines[-1]), [])
        self.assertEqual(kinds(*lines[1:-1]), ["oom-kill, which no test expects here"] * 2)
        self.assertEqual(kinds(lines[0], "guest: test a c", *lines[1:2]), ["oom-kill, which no test expects here"])

    def test_what_does_not_come_is_told(self):
        vain = ["lost-pages was expected and did not come"]
        self.assertEqual(kinds("klog: expect lost-pages", "klog: end lost-pages"), vain)
        self.assertEqual(kinds("klog: expect lost-pages", "guest: test a c"), vain)
        self.assertEqual(kinds("klog: expect lost-pages"), vain)
        self.assertEqual(kinds("klog: expect refused-access", "klog: end refused-access"), [])

    def test_no_report_can_be_expected(self):
        found = kinds("klog: expect .*", "BUG: KASAN: x in y", "klog: end .*")
        self.assertIn("KASAN report", found)
        self.assertIn("announcement of .*, which no message is called", found)

    def test_an_end_without_a_start_is_told(self):
        self.assertEqual(kinds("klog: end lost-pages"), ["end of lost-pages, which nobody expects"])

    def test_a_message_that_mentions_it_is_no_announcement(self):
        lines = ["sh: I say klog: expect refused-access, do you", REFUSED]
        self.assertEqual(kinds(*lines), ["refused-access, which no test expects here"])

    def test_a_run_may_allow_one(self):
        self.assertEqual(kinds(REFUSED, allow="GPU access"), [])


class Complaints(unittest.TestCase):
    def test_the_running_test_is_named(self):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
            log.write("guest: test vxe_exec in-order\r\nguest: test vxe_race x\r\n" + REFUSED + "\r\n")
            log.flush()
            out = io.StringIO()
            self.assertEqual(klog.complain(log.name, out=out), 1)
        self.assertIn("line 3: refused-access", out.getvalue())
        self.assertIn("during vxe_race x", out.getvalue())


if __name__ == "__main__":
    unittest.main()
