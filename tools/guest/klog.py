# SPDX-License-Identifier: GPL-2.0
"""Finds in a kernel log what no healthy run leaves there.

On a debug kernel any of these fails the run, whatever the command's own status was.
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
    ("out of memory", r"Out of memory: Killed process|invoked oom-killer"),
    ("stack trace", r"Call Trace:"),
]
BAD = [(name, re.compile(pattern)) for name, pattern in BAD]

# Said at boot by a healthy kernel of ours on the virtual machine.
HARMLESS = re.compile(
    r"DMA-API: (preallocated|debugging enabled|dma_debug_entry|dma-debug)"
    r"|allocated \d+ .*lockdep|MAX_LOCKDEP_SUBCLASSES|MAX_LOCK_DEPTH|MAX_LOCKDEP_(KEYS|ENTRIES|CHAINS)\s*:"
    r"|fault injection"
)
# A small allocation of the kernel's own that a test has fail: vmalloc() shows its stack, whatever
# failslab's "verbose" says. Memory that really is short is reported in another way.
INJECTED = re.compile(r"vmalloc error: size \d+, .*vm_struct allocation failed")
# How many lines further on that shows its stack.
INJECTED_TRACE = 5
# What the OOM killer says, the first with a stack; and by what a test, in the log, says that it means to
# have somebody killed, until it is over.
OOM = re.compile(r"invoked oom-killer|[Oo]ut of memory: Killed process")
OOM_EXPECTED = re.compile(r"klog: (expect|end) oom-kill$|guest: test ")
EXCERPT = 45
SAME_REPORT = 60


def problems(lines, allow=None):
    """The reports in `lines`: a list of (kind, line number, excerpt).

    Lines that belong to a report already found are not reported again.
    `allow` is a regular expression for reports that this run is meant to cause.
    """
    allow = re.compile(allow) if allow else None
    found, skip_to, injected, may_kill = [], -1, -1, False
    for i, line in enumerate(lines):
        if announced := OOM_EXPECTED.search(line):
            may_kill = announced[1] == "expect"
        if INJECTED.search(line):
            injected = i
        elif may_kill and OOM.search(line):
            injected = i
            continue
        elif "Call Trace:" in line and 0 <= injected >= i - INJECTED_TRACE:
            continue
        if i < skip_to or HARMLESS.search(line) or (allow and allow.search(line)):
            continue
        for kind, pattern in BAD:
            if pattern.search(line):
                # The line after "cut here" says what it is.
                if "cut here" in line and i + 1 < len(lines):
                    if allow and allow.search(lines[i + 1]):
                        skip_to = i + SAME_REPORT
                        break
                    kind = next((k for k, p in BAD if p.search(lines[i + 1])), kind)
                found.append((kind, i + 1, lines[i : i + EXCERPT]))
                skip_to = i + SAME_REPORT
                break
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
        match = re.search(r"guest: test (.*)", line)
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
