#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Calls rustdoc on each Rust crate of the modules, with the flags of its build.

Kbuild has no rustdoc target for external modules. But it records the command line of each object, and rustdoc takes
nearly the same options as rustc.

Usage: rustdoc.py BUILD_DIRECTORY OUTPUT
"""

import os
import re
import shlex
import subprocess
import sys

# Crates without documentation.
SKIP = ("tests/",)
KERNEL_DOCS = "https://rust.docs.kernel.org/"


class Crate:
    """One Rust object: its command line, as Kbuild recorded it."""

    def __init__(self, command):
        words = shlex.split(command)
        self.env = {}
        while "=" in words[0] and not words[0].startswith("-"):
            name, value = words.pop(0).split("=", 1)
            self.env[name] = value
        self.source = next(w for w in words if w.endswith(".rs"))
        self.name = os.path.basename(self.source)[:-3]
        self.flags = self.translate(words[1 : words.index(self.source)])
        externs = [b for a, b in zip(words, words[1:]) if a == "--extern"]
        self.needs = {e.split("=")[0].split(":")[-1] for e in externs}

    @staticmethod
    def translate(words):
        """rustdoc's options: all but those that name rustc's outputs."""
        flags, skip = [], False
        for word in words:
            if skip:
                skip = False
            elif word in ("--out-dir", "--emit", "-o"):
                skip = True
            elif not re.match(r"--(emit|out-dir|remap-path-scope)=", word):
                flags.append(word)
        return flags


def crates(build):
    for path, _, files in os.walk(build):
        for name in sorted(files):
            if not name.endswith(".o.cmd"):
                continue
            with open(os.path.join(path, name)) as f:
                first = f.readline()
            command = first.split(":=", 1)[-1].split(" ; ")[0].strip()
            if re.search(r"\brustc --edition", command):
                yield Crate(command)


def in_order(found):
    """Each crate after those that it uses, so that links between them work."""
    left, done = {c.name: c for c in found}, []
    while left:
        for crate in list(left.values()):
            if not crate.needs & set(left):
                done.append(crate)
                del left[crate.name]
    return done


def main():
    build, output = map(os.path.abspath, sys.argv[1:])
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    failed = []
    for crate in in_order(crates(build)):
        where = os.path.relpath(os.path.join(build, crate.source), top)
        if where.startswith(SKIP):
            continue
        print(f"    {crate.name} ({where})", file=sys.stderr, flush=True)
        status = subprocess.run(
            ["rustdoc", *crate.flags, "--crate-name", crate.name, "--output", output,
             "-Dwarnings", "--enable-index-page", "--generate-link-to-definition",
             "--extern-html-root-url", f"kernel={KERNEL_DOCS}", crate.source],
            cwd=build, env={**os.environ, **crate.env, "EXT_OBJ": build, "RUSTC_BOOTSTRAP": "1"},
        ).returncode
        if status:
            failed.append(crate.name)
    if failed:
        sys.exit("rustdoc failed on: " + ", ".join(failed))


if __name__ == "__main__":
    main()
