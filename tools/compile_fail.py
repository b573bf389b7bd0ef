#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compiles small drivers that must not compile, against built crates, and reports in KTAP.

The first line of each file, "// error: E0505", lists the errors that rustc must report, no more and no less; "// ok" is
for a file that must compile. The command line is that of the sample driver, as Kbuild recorded it.

Usage: compile_fail.py BUILD_DIRECTORY SOURCE...
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

SAMPLE = os.path.join("samples", ".mirror.o.cmd")


class Sample:
    """The compiler's environment and options for the sample driver, without its source and outputs."""

    def __init__(self, build):
        path = os.path.join(build, SAMPLE)
        try:
            with open(path) as f:
                line = f.readline()
        except FileNotFoundError:
            sys.exit(f"there is no {path}: the sample driver was not built for this kernel")
        words = shlex.split(line.split(":=", 1)[-1].split(" ; ")[0])
        self.env = {}
        while "=" in words[0] and not words[0].startswith("-"):
            name, value = words.pop(0).split("=", 1)
            self.env[name] = value
        self.rustc, self.flags, skip = words[0], [], False
        for word in words[1:]:
            if skip:
                skip = False
            elif word in ("--out-dir", "--emit", "-o"):
                skip = True
            elif not re.match(r"--(emit|out-dir)=", word) and not word.endswith(".rs"):
                self.flags.append(word)

    def compile(self, build, source):
        """The codes of the errors in a source, and all that rustc says."""
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run(
                [self.rustc, *self.flags, "--crate-name", "driver", "--emit=metadata", "--out-dir", out,
                 "--error-format=json", "--cap-lints=allow", source],
                cwd=build, env={**os.environ, **self.env, "RUSTC_BOOTSTRAP": "1"},
                text=True, stderr=subprocess.PIPE)
        codes, text = set(), ""
        for line in done.stderr.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                text += line + "\n"
                continue
            text += message.get("rendered") or ""
            if message.get("level") == "error" and not message["message"].startswith("aborting due to"):
                codes.add((message.get("code") or {}).get("code") or "without a code")
        if done.returncode and not codes:
            codes.add("the compiler's own")
        return codes, text


def expected(source):
    with open(source) as f:
        first = f.readline().strip()
    if first == "// ok":
        return set()
    match = re.fullmatch(r"// error: (E\d{4}(?:, E\d{4})*)", first)
    if not match:
        sys.exit(f'{source}: the first line is neither "// ok" nor "// error: E1234"')
    return set(match[1].split(", "))


def name_of(codes):
    return ", ".join(sorted(codes)) or "none"


def main():
    build, sources = os.path.abspath(sys.argv[1]), [os.path.abspath(s) for s in sys.argv[2:]]
    if not sources:
        sys.exit("there is nothing to compile")
    sample, failed = Sample(build), 0
    print(f"KTAP version 1\n1..{len(sources)}", flush=True)
    for number, source in enumerate(sources, 1):
        want = expected(source)
        got, text = sample.compile(build, source)
        if got != want:
            failed += 1
            print(f"# errors that are expected: {name_of(want)}; that there are: {name_of(got)}")
            for line in text.splitlines():
                print(f"# {line}")
        name = os.path.basename(source)[:-3]
        print(f"{'ok' if got == want else 'not ok'} {number} {name}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
