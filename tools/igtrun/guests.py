# SPDX-License-Identifier: GPL-2.0
"""Runs tests in guests, several guests at once, and boots another one where a guest died."""

import collections
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

from . import lists, outcome, protocol

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "guest"))
import klog  # noqa: E402
import run as run_py  # noqa: E402

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "guest", "run.py")
# A guest has this many tests at most, so that none suffers from too many others.
TESTS_OF_A_GUEST = 200
# More than the limit of a test, for the guest to end it; and for a boot, with the wait for other guests.
GRACE_SECONDS = 90
BOOT_SECONDS = 900
# For what a guest does after the last test.
AFTER_SECONDS = 900
# So many guests in a row that run no test end the run.
USELESS_GUESTS = 2
AFTER_ALL = "after all others"
DURING = re.compile(r", during (\S+)")


def reports_of(log):
    """The reports in a kernel log: (test or None, kind, line number, excerpt)."""
    text = klog.read(log)
    for kind, line, excerpt in klog.problems(text):
        match = DURING.match(klog.during(text, line))
        yield (match[1] if match and AFTER_ALL not in klog.during(text, line) else None), kind, line, excerpt


class Guest:
    """One boot, for some of the tests."""

    def __init__(self, setup, number, tests):
        """tests: the numbers of the tests of the whole run that this guest is to run, in order."""
        self.setup = setup
        self.log = f"{setup.log}-{number}.log"
        self.todo = collections.deque(tests)
        self.reader = protocol.Reader(setup.tests, setup.limit)
        self.child = None
        self.ran = []
        self.errors = []

    def run(self, done):
        """Runs the tests; calls done(number, outcome) for each. Those that did not run stay in `todo`."""
        with tempfile.TemporaryDirectory(prefix="igt-") as work:
            tree = os.path.join(work, "tree")
            os.makedirs(os.path.join(tree, "etc"))
            with open(os.path.join(tree, "etc/igt-tests"), "w") as f:
                for number in self.todo:
                    binary, subtest = self.setup.tests[number]
                    f.write(f"{number} {binary} {subtest or '-'}\n")
            with open(os.path.join(work, "said"), "w+b") as said:
                with self.setup.lock:
                    if self.setup.over:
                        return
                    self.child = self._start(said, tree)
                try:
                    self._watch(done)
                finally:
                    self.stop()
                said.seek(0)
                self.said = said.read().decode(errors="replace")
        if not self.setup.over:
            self._judge(done)

    def _start(self, said, tree):
        return subprocess.Popen(
            [sys.executable, RUN, *self.setup.args, "--quiet", "--log", self.log, "--slots", str(self.setup.guests),
             "--timeout", "0", "--tree", self.setup.tree, "--tree", tree, "--command", self.setup.command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True,
        )

    def stop(self):
        if self.child and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()

    def _watch(self, done):
        """Reads what the guest prints, until it is over or takes too long."""
        lines = queue.Queue()

        def read():
            for raw in self.child.stdout:
                lines.put(raw.decode(errors="replace"))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        self.late = None
        end = time.time() + BOOT_SECONDS
        while True:
            try:
                text = lines.get(timeout=max(0.0, end - time.time()))
            except queue.Empty:
                self.late = "boot" if not self.ran and self.reader.running is None else "go on"
                return
            if text is None:
                self.child.wait(GRACE_SECONDS)
                return
            finished = self.reader.line(text)
            if text.startswith("@begin"):
                end = time.time() + self.setup.limit + GRACE_SECONDS
            if finished:
                number, result, _ = finished
                self.todo.remove(number)
                self.ran.append((number, result))
                end = time.time() + (GRACE_SECONDS if self.todo else AFTER_SECONDS)
                self.setup.hold(number, result, done)

    def _judge(self, done):
        """Gives the reports in the kernel log, and the death of the guest, to the tests that they belong to."""
        names = {lists.name(*self.setup.tests[n]): (n, r) for n, r in self.ran}
        culprit = self.reader.running
        died = None
        if culprit is not None:
            self.todo.remove(culprit)
            what = "a guest that did not go on" if self.late else "a guest that died"
            died = outcome.Outcome(outcome.TIMEOUT if self.late else outcome.CRASH, what,
                                   seconds=time.time() - self.reader.begun, output="\n".join(self.reader.lines))
            died.reports.append(what)
            names[lists.name(*self.setup.tests[culprit])] = culprit, died
        for name, kind, line, excerpt in reports_of(self.log):
            where = f"a report in the kernel log: {kind}"
            if name in names:
                names[name][1].reports.append(where)
            else:
                self.errors.append(f"{where}, {'during ' + name if name else self._when()}")
            self.setup.excerpt(f"kernel log, line {line}: {kind}"
                               f"{', during ' + name if name else ', ' + self._when()}", excerpt, self.log)
        if died:
            self.ran.append((culprit, died))
            self.setup.hold(culprit, died, done)
            if len(died.reports) == 1:
                self.setup.excerpt(f"{died.reports[0]}, during {lists.name(*self.setup.tests[culprit])}",
                                   [line for line in klog.read(self.log) if line.strip()][-25:], self.log)
        elif self.late or (self.child.returncode not in (0, None) and not (self.ran and self.ran[-1][1].reports)):
            self.errors.append(f"a guest did not {self.late}" if self.late else
                               f"a guest ended with {self.child.returncode} {self._when()}")
            self.setup.excerpt(self.errors[-1], self.said.strip().split("\n")[-25:], self.log)

    def _when(self):
        if not self.ran:
            return "before the first test"
        first, last = (lists.name(*self.setup.tests[self.ran[i][0]]) for i in (0, -1))
        return f"after the tests from {first} to {last}"


class Setup:
    """What all guests of a run have in common, and what is known of the tests so far."""

    def __init__(self, tests, args, tree, command, limit, guests, log, tell):
        """args: of guest/run.py; tree: a directory with IGT, laid over the guest's root; command: what runs in the
        guest; limit: seconds of a test; guests: how many at once; log: the start of the names of the kernel logs; tell:
        called with a line for each report."""
        self.tests, self.args, self.tree, self.command = tests, args, tree, command
        self.limit, self.guests, self.log, self.tell = limit, guests, log, tell
        self.results = {}
        # No other guest is to be booted, and those that run are being stopped.
        self.over = False
        self.errors = []
        self.excerpts = []
        self.lock = threading.Lock()

    def hold(self, number, result, done):
        with self.lock:
            self.results[number] = result
            done(number, result)

    def excerpt(self, title, lines, log):
        with self.lock:
            self.excerpts.append((title, lines, log))
            self.tell(title)

    def run(self, done):
        """Runs all tests. Calls done(number, outcome) after each, one call at a time."""
        size = max(1, min(TESTS_OF_A_GUEST, -(-len(self.tests) // self.guests)))
        numbers = list(range(len(self.tests)))
        waiting = collections.deque(numbers[i:i + size] for i in range(0, len(numbers), size))
        booted = 0
        useless = 0
        running = set()
        failure = []

        def worker():
            nonlocal booted, useless
            while True:
                with self.lock:
                    if not waiting or useless >= USELESS_GUESTS or self.over:
                        return
                    chunk = waiting.popleft()
                    booted += 1
                    guest = Guest(self, booted, chunk)
                    running.add(guest)
                try:
                    guest.run(done)
                except Exception as e:
                    failure.append(e)
                    self.over = True
                finally:
                    with self.lock:
                        running.discard(guest)
                        self.errors += guest.errors
                        useless = 0 if guest.ran else useless + 1
                        if guest.todo:
                            waiting.appendleft(list(guest.todo))

        threads = [threading.Thread(target=worker, daemon=True) for _ in range(self.guests)]
        for thread in threads:
            thread.start()
        try:
            # In steps, so that an interruption gets through.
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        except KeyboardInterrupt:
            self.errors.append("interrupted")
        finally:
            with self.lock:
                self.over = True
                left = list(running)
            for guest in left:
                guest.stop()
            for thread in threads:
                thread.join()
        if failure:
            raise failure[0]
        missing = len(self.tests) - len(self.results)
        if missing:
            self.errors.append(f"{missing} tests did not run")
