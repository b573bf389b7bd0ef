#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Copies the programs that cargo built into a tree for the guest's root.

Reads cargo's messages, so that only programs of this build are copied. Test programs (of the package in tests/uapi) go
to /usr/libexec/uapi, all others, and examples, to /bin.

Usage: collect.py MESSAGES DIRECTORY
"""

import json
import os
import shutil
import subprocess
import sys


def executables(messages):
    """(path, manifest) of each program in cargo's messages."""
    with open(messages) as f:
        for line in f:
            if not line.startswith("{"):
                continue
            message = json.loads(line)
            if message.get("reason") == "compiler-artifact" and message.get("executable"):
                yield message["executable"], message["manifest_path"]


def main():
    messages, top = sys.argv[1:]
    new = top + ".new"
    shutil.rmtree(new, ignore_errors=True)
    for path, manifest in executables(messages):
        package = os.path.basename(os.path.dirname(manifest))
        where = "usr/libexec/uapi" if package == "uapi" else "bin"
        os.makedirs(os.path.join(new, where), exist_ok=True)
        dest = os.path.join(new, where, os.path.basename(path))
        subprocess.run(["llvm-strip", "-o", dest, path], check=True)
        os.chmod(dest, 0o755)
    os.makedirs(new, exist_ok=True)
    shutil.rmtree(top, ignore_errors=True)
    os.rename(new, top)


if __name__ == "__main__":
    main()
