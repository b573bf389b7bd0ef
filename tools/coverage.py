#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Shows how much of each file of the modules a fuzzer has reached.

Usage: coverage.py OBJECTS TOP COVERAGE

OBJECTS is the directory in which the modules were built with GPUSVM_KCOV=1, TOP that of the sources. COVERAGE has a
line "module offset" for each place in the module's .text that was reached. A place is the return address of a call of
__sanitizer_cov_trace_pc(), which the compiler inserted. If several functions inline a line, its place in each counts.

Only code that the fuzzer's own threads ran is seen (its system calls and page faults): a place that only kernel workers
reach counts as not reached.
"""

import collections
import glob
import os
import re
import subprocess
import sys

CALL = 4  # bytes from a relocation to the address behind the call


def text_places(ko):
    """Offsets in .text of all places."""
    lines = subprocess.run(["llvm-readelf", "-r", "-W", ko], capture_output=True, text=True, check=True).stdout
    places, inside = set(), False
    for line in lines.split("\n"):
        if line.startswith("Relocation section"):
            inside = "'.rela.text'" in line
        elif inside and "__sanitizer_cov_trace_pc" in line:
            places.add(int(line.split()[0], 16) + CALL)
    return places


def files_of(ko, offsets):
    """The source file of each offset, of the function that was inlined last."""
    offsets = sorted(offsets)
    # The call is before the place.
    words = "\n".join(f"{ko} {offset - 1:#x}" for offset in offsets)
    out = subprocess.run(["llvm-symbolizer", "--no-inlines", "--functions=none"], input=words,
                         capture_output=True, text=True, check=True).stdout
    found = [line for line in out.split("\n") if line.strip()]
    return {o: re.sub(r":\d+:\d+$", "", f) for o, f in zip(offsets, found)}


def main():
    objects, top, coverage = sys.argv[1:]
    reached = collections.defaultdict(set)
    with open(coverage) as f:
        for line in f:
            module, offset = line.split()
            reached[module].add(int(offset, 16))
    # vxe2 is vxe once more, section by section.
    reached["vxe"] |= reached.pop("vxe2", set())
    total, hit = collections.Counter(), collections.Counter()
    unknown = 0
    for module in sorted(reached):
        ko = os.path.join(objects, module + ".ko")
        if not os.path.exists(ko):
            continue
        places = text_places(ko)
        if not places:
            sys.exit(f"{ko} has no coverage: it was built without GPUSVM_KCOV=1")
        unknown += len(reached[module] - places)
        names = files_of(ko, places)
        for place in places:
            name = os.path.normpath(names[place])
            name = os.path.relpath(name, top) if name.startswith(top) else name
            if "/tests/" in name or name.endswith("/tests.rs"):
                # KUnit's, which a fuzzer does not call.
                continue
            if not os.path.exists(os.path.join(top, name)):
                name = "(of the kernel and the compiler)"
            total[name] += 1
            hit[name] += place in reached[module]
    print(f"{'file':60} {'places':>8} {'reached':>8}")
    for name in sorted(total):
        print(f"{name:60} {total[name]:8} {hit[name]:8} {100 * hit[name] // total[name]:4} %")
    all_places, all_hit = sum(total.values()), sum(hit.values())
    print(f"{'all':60} {all_places:8} {all_hit:8} {100 * all_hit // max(1, all_places):4} %")
    if unknown:
        print(f"{unknown} places that were reached are not in the modules of {glob.escape(objects)}")


if __name__ == "__main__":
    main()
