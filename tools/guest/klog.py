# SPDX-License-Identifier: GPL-2.0
"""Finds the reports in a kernel log that a healthy run does not have.

On a debug kernel any of these fails the run, whatever the command's own status was.

The messages by which our own modules report a bug or a loss are among them. A test that causes one on purpose announces
it in the log, for as long as it does so:

    klog: expect refused-access
    klog: end refused-access

The expected message must occur, and only in that time; the end of a test also ends the expectation. Of other messages,
only a kill for lack of memory can be expected.
"""

import re
import sys

# Each pattern names one kind of report; the first lines of it are quoted.
BAD = [
    ("kernel panic", r"Kernel panic"),
    ("oops", r"\bOops\b|general protection fault|BUG: unable to handle|kernel BUG at"),
    ("KASAN report", r"BUG: KASAN|BUG: KFENCE|BUG: KCSAN"),
    ("undefined behaviour", r"UBSAN:"),
    ("warning", r"WARNING: .* at |WARNING: CPU:|------------\[ cut here \]"),
    ("lock dependency report",
     r"possible circular locking|possible recursive locking|possible irq lock inversion"
     r"|inconsistent lock state|bad unlock balance|lock held when returning to user"
     r"|locks? still held|possible deadlock|different class with the same key"
     r"|Invalid wait context|DEBUG_LOCKS_WARN_ON|MAX_LOCK|MAX_STACK_TRACE_ENTRIES|MAX_LOCKDEP"
     r"|HARDIRQ-safe -> HARDIRQ-unsafe|SOFTIRQ-safe -> SOFTIRQ-unsafe"),
    ("sleep in atomic context",
     r"sleeping function called from invalid context|scheduling while atomic"
     r"|BUG: .*preempt|Voluntary context switch within RCU"),
    ("RCU report", r"suspicious RCU usage|rcu.*detected.*stall|rcu.*self-detected stall"),
    ("hung task", r"INFO: task .* blocked for more than|soft lockup|hard LOCKUP"),
    ("reference count", r"refcount_t:"),
    ("list corruption", r"list_add corruption|list_del corruption|list corruption"),
    ("bad page", r"BUG: Bad (page|rss|swap)|page dumped because|Bad page map"),
    ("DMA mapping", r"DMA-API:|DMAR:.*(fault|error)|DMA mapping left behind"),
    ("leaked memory", r"kmemleak: [1-9]\d* new suspected|guest: leaked memory"),
    ("Rust panic", r"rust_kernel: panicked|rust_core: |panicked at "),
    ("object debugging", r"ODEBUG:"),
    ("slab corruption", r"BUG \S+ .*(Not tainted|Tainted)|Redzone overwritten|Poison overwritten"
                        r"|Objects remaining on __kmem_cache_shutdown"),
    ("unload failure", r"guest: unload failed|guest: loading \S+ failed"),
    ("stuck", r"guest: timeout:"),
    ("stack trace", r"Call Trace:"),
    # Reports without a kind of their own above.
    ("bug", r"\bBUG: "),
    ("DRM error", r"\[drm.*\*ERROR\*"),
]
BAD = [(name, re.compile(pattern)) for name, pattern in BAD]

# The messages by which our modules report a bug of their own, or that memory of a process was lost; and the name with
# which a test expects each.
ALARMS = {
    # vxe/sim/bus.rs: a page table refers to memory that the device may not access (any more).
    "refused-access": r"GPU access to .* refused",
    # vxe/memory.rs: contents of pages are lost with the device.
    "lost-pages": r"a device goes with pages of processes in its memory",
    # gpusvm/pagemap/drm_pagemap.rs
    "wrong-mapping": r"device_map returned another kind of mapping than requested",
    # gpusvm/pagemap/hold.rs
    "pagemap-left": r"a pagemap or its hold is left at the exit of the module",
    # The kernel's, of a test that causes a kill for lack of memory.
    "oom-kill": r"invoked oom-killer|[Oo]ut of memory: Killed process",
}
# Expected messages that may be missing: another process is killed first, or the message is rate-limited.
MAY_COME = {"oom-kill", "refused-access"}
ALARMS = {name: re.compile(pattern) for name, pattern in ALARMS.items()}

# Logged by a test, from userspace or, with a module's name before it, from the kernel.
ANNOUNCEMENT = re.compile(r"(?:^|\] |: )klog: (expect|end) (\S+)$")
NEXT_TEST = re.compile(r"guest: test (.*)")

# Logged at boot by a healthy kernel of ours on the virtual machine.
HARMLESS = re.compile(
    r"DMA-API: (preallocated|debugging enabled|dma_debug_entry|dma-debug)"
    r"|allocated \d+ .*lockdep|MAX_LOCKDEP_SUBCLASSES|MAX_LOCK_DEPTH|MAX_LOCKDEP_(KEYS|ENTRIES|CHAINS)\s*:"
    r"|fault injection"
)
# A small allocation of the kernel's own that a test makes fail: vmalloc() shows its stack, in spite of failslab's
# "verbose". A real lack of memory is reported in another way.
INJECTED = re.compile(r"vmalloc error: size \d+, .*vm_struct allocation failed")
# The number of lines in which the stack is shown.
INJECTED_TRACE = 5
# A bug of the kernel: two modules have GEM objects in shmem, and share the key of the objects' locks, but not the copy
# of its name. See "Bugs in the kernel" in gpusvm.rst.
SAME_CLASS = re.compile(r'Looking for class "([^"]*/rust/kernel/drm/gem/shmem\.rs:\d+)" with key \S+,'
                        r' but found a different class "\1" with the same key')
EXCERPT = 45
SAME_REPORT = 60


class Expected:
    """The alarms that a test has announced and not ended yet."""

    def __init__(self):
        self.open = {}

    def read(self, number, line):
        """Takes in a line. Returns what is wrong with its announcement, or with those that it ends:
        a list of (kind, line number)."""
        if NEXT_TEST.search(line):
            return self.end(list(self.open))
        match = ANNOUNCEMENT.search(line)
        if not match:
            return []
        verb, name = match.groups()
        if name not in ALARMS:
            return [(f"announcement of {name}, which no message is called", number)]
        if verb == "end":
            return self.end([name]) if name in self.open else [(f"end of {name}, which nobody expects", number)]
        wrong = self.end([name]) if name in self.open else []
        self.open[name] = [number, 0]
        return wrong

    def end(self, names):
        """Ends expectations; returns those that were in vain."""
        ended = [(name, *self.open.pop(name)) for name in names]
        return [(f"{name} was expected and did not come", number) for name, number, came in ended
                if not came and name not in MAY_COME]

    def takes(self, name):
        """Whether this alarm is expected now."""
        if name not in self.open:
            return False
        self.open[name][1] += 1
        return True


def alarm(line):
    """The name of the alarm in a line, if there is one."""
    return next((name for name, pattern in ALARMS.items() if pattern.search(line)), None)


def problems(lines, allow=None):
    """The reports in `lines`: a list of (kind, line number, excerpt).

    Lines that belong to a report already found are not reported again, but an alarm of ours always.
    `allow` is a regular expression for reports that this run is meant to cause.
    """
    allow = re.compile(allow) if allow else None
    found, skip_to, injected = [], -1, -1
    expected = Expected()

    def excerpt(i):
        return lines[i : i + EXCERPT]

    for i, line in enumerate(lines):
        found += [(kind, number, excerpt(number - 1)) for kind, number in expected.read(i + 1, line)]
        name = alarm(line)
        if name and expected.takes(name):
            # The OOM killer shows a stack.
            injected = i if name == "oom-kill" else injected
            continue
        if name and not (allow and allow.search(line)):
            found.append((f"{name}, which no test expects here", i + 1, excerpt(i)))
            skip_to = i + SAME_REPORT if name == "oom-kill" else skip_to
        if name:
            continue
        if INJECTED.search(line):
            injected = i
        elif "Call Trace:" in line and 0 <= injected >= i - INJECTED_TRACE:
            continue
        if i < skip_to or HARMLESS.search(line) or (allow and allow.search(line)):
            continue
        for kind, pattern in BAD:
            if pattern.search(line):
                # The line after "cut here" says what it is.
                if "cut here" in line and i + 1 < len(lines):
                    if SAME_CLASS.search(lines[i + 1]) or (allow and allow.search(lines[i + 1])):
                        skip_to = i + SAME_REPORT
                        break
                    kind = next((k for k, p in BAD if p.search(lines[i + 1])), kind)
                found.append((kind, i + 1, excerpt(i)))
                skip_to = i + SAME_REPORT
                break
    found += [(kind, number, excerpt(number - 1)) for kind, number in expected.end(list(expected.open))]
    return found


def read(path):
    try:
        with open(path, errors="replace") as f:
            return f.read().replace("\r", "").split("\n")
    except FileNotFoundError:
        return []


def during(lines, number):
    """The test that was running at a line: the guest announces each in the log."""
    for line in reversed(lines[:number]):
        match = NEXT_TEST.search(line)
        if match:
            return f", during {match[1]}"
    return ""


def complain(path, allow=None, limit=3, out=sys.stderr):
    """Prints what is wrong in the log at `path`; returns how many reports there are."""
    lines = read(path)
    found = problems(lines, allow)
    for kind, line, excerpt in found[:limit]:
        print(f"\nkernel log, line {line}: {kind}{during(lines, line)}", file=out)
        for text in excerpt:
            print("  | " + text, file=out)
    if len(found) > limit:
        print(f"\nand {len(found) - limit} more", file=out)
    if found:
        print(f"whole log: {path}", file=out)
    return len(found)


def tail(path, count=25, out=sys.stderr):
    lines = [line for line in read(path) if line.strip()]
    print(f"\nthe kernel log's last {min(count, len(lines))} lines ({path}):", file=out)
    for line in lines[-count:]:
        print("  | " + line, file=out)
