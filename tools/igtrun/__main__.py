# SPDX-License-Identifier: GPL-2.0
"""Runs tests of IGT in guests, and judges them by what is expected.

tools/igt starts this in the root, with the options of guest/run.py, which are passed on for each guest. Exit status: 0
if every test did as expected and no kernel log has a report, else 1; 2 if the lists are not what they should be.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from igtrun import expect, guests, lists, report  # noqa: E402

# The line of a device's statistics that counts the jobs which it has executed.
COUNTER = "exec_job_count"


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--package", required=True, help="the directory of tools/igt-tools")
    p.add_argument("--list", help="a list of tests")
    p.add_argument("--test", help="instead of it: a program, or a pattern of programs")
    p.add_argument("--subtest", help="of --test: a pattern of subtests")
    p.add_argument("--expect", required=True, help="the directory of what is expected")
    p.add_argument("--limit", type=int, required=True, help="seconds of a test")
    p.add_argument("--guests", type=int, required=True, help="guests at once")
    p.add_argument("--seed", default="1", help="of the tests' random numbers")
    p.add_argument("--log", required=True, help="file for kernel logs; each gets a number")
    p.add_argument("--command", required=True, help="what runs in the guest")
    p.add_argument("--out", required=True, help="directory for results")
    p.add_argument("--junit", required=True, help="file for JUnit's XML")
    p.add_argument("--ktap", help="file for KTAP")
    p.add_argument("--verdict", help="file that what the kernel reported is appended to")
    p.add_argument("--title", default="", help="what the report calls the run")
    # Each guest has none, or its own.
    p.add_argument("--timeout", help=argparse.SUPPRESS)
    return p.parse_known_args()


def make_tree(package, binaries, top):
    """A directory for the guest's root: IGT's libraries, and these programs."""
    for where in (lists.LIBRARIES, os.path.dirname(lists.LOADER)):
        shutil.copytree(os.path.join(package.top, where), os.path.join(top, where))
    os.makedirs(os.path.join(top, lists.TESTS))
    for binary in binaries:
        shutil.copy(os.path.join(package.top, lists.TESTS, binary), os.path.join(top, lists.TESTS))


def run(args, rest):
    package = lists.Package(args.package)
    expectations = expect.Expectations.read(args.expect)
    tests = lists.choose(package, args.test, args.subtest) if args.test else lists.read(package, args.list)
    if not tests:
        raise lists.BadList(f"{args.list} has no test")
    binaries = sorted({binary for binary, _ in tests})
    progress = report.Progress(tests, expectations)
    progress.say(f"    {len(tests)} tests of {len(binaries)} programs, {args.guests} guest{'s' * (args.guests > 1)} at once")
    command = f"IGT_COUNTER={COUNTER} IGT_SECONDS={args.limit}\nexport IGT_SRANDOM={args.seed}\n{args.command}"
    with tempfile.TemporaryDirectory(prefix="igt-tree-") as tree:
        make_tree(package, binaries, tree)
        setup = guests.Setup(tests, rest, tree, command, args.limit, args.guests, args.log.removesuffix(".log"),
                             lambda text: progress.say("    " + text))
        setup.run(progress.test)
    progress.end()
    results = [(lists.name(*tests[n]), result) for n, result in sorted(setup.results.items())]
    names = {lists.name(b, s) for b in package.known for s in package.known[b]}
    done = report.Report(results, expectations, setup.errors, setup.excerpts,
                         expectations.unknown(set(package.known), names), args.title)
    for directory in (os.path.dirname(args.junit), os.path.dirname(args.out)):
        os.makedirs(directory, exist_ok=True)
    done.files(args.out)
    done.junit(args.junit)
    if args.ktap:
        done.ktap(args.ktap)
    kernel = list(done.kernel_reports())
    if args.verdict and kernel:
        with open(args.verdict, "a") as f:
            f.write("\n\n".join(kernel) + "\n")
    for text in kernel[:report.MOST_REPORTS]:
        print(f"\n{text}", file=sys.stderr)
    print(f"\n{done.text()}", file=sys.stderr)
    return 0 if done.good else 1


def main():
    args, rest = arguments()
    # If make is killed, this and the guests end, too.
    guests.run_py.die_with_parent(signal.SIGTERM)
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, lambda number, frame: sys.exit(128 + number))
    try:
        return run(args, rest)
    except (lists.BadList, expect.BadExpectation, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the guests were stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
