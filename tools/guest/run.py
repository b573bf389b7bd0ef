#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Boots the guest, runs one command in it and exits with the command's status.

The command's output is this program's standard output, byte for byte; all messages of this program go to standard
error. Runs inside the root (tools/in-root).

Exit status: the command's own, or 124 after a time-out, or 125 if the guest died, a module did not load, or the kernel
log has a report although the command succeeded.
"""

import argparse
import ctypes
import io
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import termios
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import initramfs  # noqa: E402
import klog  # noqa: E402
import qemu  # noqa: E402

TIMED_OUT, BROKEN = 124, 125
BOOT_SECONDS = 600
# For how long a booting kernel may log nothing. Some emulated machines stop in the first second of a boot on a busy host.
SILENT_SECONDS = 150
GRACE_SECONDS = 20
SLOT_SECONDS = 120
AFTER_SECONDS = 600
KEEP_LOGS = 40

# A sheaf of free objects keeps pointers to objects that were allocated from it, and kmemleak takes these for
# references: it would find almost no leak of kmalloc() memory. Caches with checks have no sheaves.
LEAK_PARAMETERS = "slab_debug=F,kmalloc-*"


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kernel", required=True, help="directory the kernel was built in")
    p.add_argument("--image", default="arch/x86/boot/bzImage", help="its image there")
    p.add_argument("--arch", choices=sorted(qemu.MACHINES), default="x86", help="its architecture")
    p.add_argument("--qemu", default=None, help="another QEMU than the root's")
    p.add_argument("--busybox", default=initramfs.BUSYBOX, help="the guest's busybox")
    p.add_argument("--name", default="kernel", help="what to call it in messages")
    p.add_argument("--module", action="append", default=[], help="a .ko file to put into the guest")
    p.add_argument("--load", default="", help="modules to load before the command, in order")
    p.add_argument("--tree", action="append", default=[], help="directory laid over the root")
    p.add_argument("--command", default=None, help="shell command; without it, a shell")
    p.add_argument("--append", default="", help="more of the kernel's command line")
    p.add_argument("--device", action="append", default=[], help="another device for QEMU")
    p.add_argument("--mem", default="4G")
    p.add_argument("--cpus", type=int, default=2)
    p.add_argument("--slots", type=int, default=1, help="guests that may run at once, if not more have processors")
    p.add_argument("--iommu", action="store_true", help="a translating virtual IOMMU")
    p.add_argument("--icount", action="store_true", help="let guest time count instructions")
    p.add_argument("--timeout", type=int, default=900, help="seconds for the command; 0: no limit")
    p.add_argument("--leaks", action="store_true", help="unload the modules afterwards and look for leaks")
    p.add_argument("--strict", action="store_true", help="fail when the kernel log has a report")
    p.add_argument("--allow", default=None, help="regular expression of reports that are meant")
    p.add_argument("--log", required=True, help="file for the kernel log")
    p.add_argument("--out", default=None, help="directory for what the command leaves in /out")
    p.add_argument("--kvm-memory", default=None, help="file that remembers if KVM works")
    p.add_argument("--verdict", default=None, help="file that what went wrong is appended to as well")
    p.add_argument("--quiet", action="store_true", help="speak only of failures")
    return p.parse_args()


def take_slot(slots, say):
    """Waits until fewer than `slots` guests run on this machine; returns what holds the slot.

    Guests with more processors than the host has wait for each other's locks, and all
    of them together take far longer than one after the other. A slot is the name of a
    socket, so the kernel frees it when its holder ends, however that happens.
    """
    end, told = time.time() + SLOT_SECONDS, False
    while time.time() < end:
        for number in range(slots):
            slot = socket.socket(socket.AF_UNIX)
            try:
                slot.bind(f"\0gpusvm-guest-{number}")
                return slot
            except OSError:
                slot.close()
        if not told:
            say(f"waiting for another guest on this machine to end (at most {SLOT_SECONDS} s)")
            told = True
        time.sleep(0.3)
    return None


def die_with_parent(by=signal.SIGKILL):
    """Has the kernel end this process when its parent ends, even if that is killed."""
    ctypes.CDLL(None).prctl(1, by)


class Guest:
    """One boot of the guest, watched until it is over."""

    def __init__(self, args, work):
        self.args = args
        self.work = work
        self.started = time.time()
        self.ready = None
        self.status = None
        self.done = False
        self.words = b""

    def say(self, text):
        if not self.args.quiet:
            print(f"  {text}", file=sys.stderr, flush=True)

    def start(self, command, shell):
        a = self.args
        self.shell = shell
        image = os.path.join(a.kernel, a.image)
        # The host is x86: it can only emulate others.
        kvm = not a.icount and a.arch == "x86" and qemu.kvm_works(image, a.kvm_memory)
        slots = max(a.slots, (os.cpu_count() or 1) // a.cpus)
        self.slot = None if shell else take_slot(slots, self.say)
        self.started = time.time()
        initrd = os.path.join(self.work, "initramfs")
        rows = shutil.get_terminal_size()
        settings = {
            "MODE": "shell" if shell else "command", "LOAD": a.load, "CHECK": int(a.leaks), "TIMEOUT": 0 if shell else a.timeout,
            "ROWS": rows.lines, "COLS": rows.columns,
            "GUEST_TERM": os.environ.get("TERM", "linux"),
        }
        initramfs.build(initrd, a.busybox, a.kernel, a.module, a.tree, settings, command)
        listener = socket.socket(socket.AF_UNIX)
        where = os.path.join(self.work, "status")
        listener.bind(where)
        listener.listen(1)
        line, words = qemu.command(
            qemu.MACHINES[a.arch], image, initrd, qemu=a.qemu, kvm=kvm, mem=a.mem, cpus=a.cpus, iommu=a.iommu, icount=a.icount,
            log=a.log, status=where, out=os.path.join(self.work, "out"), shell=shell,
            append=" ".join(filter(None, [LEAK_PARAMETERS if a.leaks else "", a.append])),
            devices=a.device,
        )
        self.say(f"boot: {a.name} kernel ({words}); kernel log: {a.log}")
        self.child = subprocess.Popen(
            line,
            stdin=None if shell else subprocess.DEVNULL,
            stdout=None if shell else subprocess.PIPE,
            stderr=open(os.path.join(self.work, "qemu.err"), "wb"),
            preexec_fn=die_with_parent,
        )
        listener.settimeout(30)
        try:
            self.port, _ = listener.accept()
        except socket.timeout:
            self.port = None

    def deadline(self):
        if self.ready is None:
            return min(self.started + BOOT_SECONDS, self.last_word() + SILENT_SECONDS)
        if self.status is not None:
            return self.status_at + AFTER_SECONDS
        if self.args.timeout and self.args.command is not None:
            return self.ready + self.args.timeout + GRACE_SECONDS
        return None

    def last_word(self):
        """The time at which the kernel last logged something, or else of the start."""
        try:
            return max(self.started, os.path.getmtime(self.args.log))
        except FileNotFoundError:
            return self.started

    def is_silent(self):
        """Whether the kernel stopped logging before the guest was ready."""
        return self.ready is None and time.time() >= self.last_word() + SILENT_SECONDS

    def heard(self, data):
        """Takes in what the guest's init reports on its port."""
        self.words += data
        while b"\n" in self.words:
            line, self.words = self.words.split(b"\n", 1)
            word = line.decode(errors="replace").split()
            if word[:1] == ["ready"] and self.ready is None:
                self.ready = time.time()
                self.say(f"ready after {self.ready - self.started:.1f} s")
            elif word[:1] == ["exit"] and self.status is None:
                self.status, self.status_at = int(word[1]), time.time()
                if self.args.leaks:
                    self.say("command done; unloading the modules and looking for leaks")
            elif word[:1] == ["done"]:
                self.done = True

    def watch(self):
        """Passes output on until QEMU ends. Returns False when time ran out."""
        streams = [s for s in (self.child.stdout, self.port) if s is not None]
        while self.child.poll() is None or self.child.stdout in streams:
            end = self.deadline()
            wait = 1.0 if end is None else max(0.0, min(1.0, end - time.time()))
            if not streams:
                time.sleep(min(wait, 0.05))
            for stream in select.select(streams, [], [], wait)[0] if streams else []:
                try:
                    data = os.read(stream.fileno(), 65536)
                except OSError:
                    data = b""
                if not data:
                    streams.remove(stream)
                elif stream is self.port:
                    self.heard(data)
                else:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
            # What the guest did meanwhile may have moved it.
            end = self.deadline()
            if end is not None and time.time() >= end:
                return False
        return True

    def stop(self):
        if getattr(self, "child", None) and self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def verdict(self, in_time, out):
        """The exit status, after writing to `out` what went wrong."""
        a = self.args
        reports = 0
        if self.shell and in_time and self.status is None and self.child.returncode == 0:
            # QEMU was told to quit. A guest that died has a report in its log.
            return BROKEN if klog.complain(a.log, a.allow, out=out) else 0
        if a.strict or self.status is None:
            reports = klog.complain(a.log, a.allow, out=out)
        if not in_time:
            what = f"boot in {time.time() - self.started:.0f} s" if self.ready is None else (
                f"power off in {AFTER_SECONDS} s" if self.status is not None
                else f"finish the command in {a.timeout} s (TIMEOUT=)")
            print(f"error: the guest did not {what}; it was stopped", file=out)
            if not reports:
                klog.tail(a.log, 40, out=out)
            return TIMED_OUT
        if self.status is None:
            with open(os.path.join(self.work, "qemu.err"), errors="replace") as f:
                text = f.read().strip()
            if text:
                print(f"error: QEMU says: {text}", file=out)
            print("error: the guest died before the command was done", file=out)
            if not reports:
                klog.tail(a.log, out=out)
            return BROKEN
        if a.leaks and not self.done:
            print("error: the guest died after the command, while it was checked", file=out)
            if not reports:
                klog.tail(a.log, out=out)
            return self.status or BROKEN
        if reports:
            print(f"error: the kernel log has {reports} report(s)", file=out)
            return self.status or BROKEN
        if self.status == BROKEN and self.ready is None:
            print("error: the guest did not get as far as the command", file=out)
            klog.tail(a.log, out=out)
        return self.status


def take_out(archive, directory):
    """Unpacks what the guest left in /out."""
    if directory is None or not os.path.exists(archive) or os.path.getsize(archive) == 0:
        return
    os.makedirs(directory, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")


def prune_logs(directory):
    """Keeps the latest logs only."""
    logs = [e for e in os.scandir(directory) if e.is_file() and e.name.endswith(".log")]
    for old in sorted(logs, key=lambda e: e.stat().st_mtime)[:-KEEP_LOGS]:
        os.unlink(old.path)


def main():
    args = arguments()
    shell = args.command is None and sys.stdin.isatty()
    if args.command is None and not shell:
        # No terminal to talk to: what comes in is the script.
        args.command = sys.stdin.read()
    # If make is killed, this and the guest end, too.
    die_with_parent(signal.SIGTERM)
    os.makedirs(os.path.dirname(args.log), exist_ok=True)
    prune_logs(os.path.dirname(args.log))
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, lambda number, frame: sys.exit(128 + number))
    if shell:
        print("  a shell in the guest; leave it with 'exit' (or Ctrl-a x)", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return boot(args, shell, again=True)


def boot(args, shell, again):
    """Runs a guest, once more if it stops while it boots (`again`); returns the exit status."""
    terminal = termios.tcgetattr(0) if shell else None
    with tempfile.TemporaryDirectory(prefix="guest-") as work:
        guest = Guest(args, work)
        try:
            guest.start(args.command or "", shell)
            in_time = guest.watch()
        except KeyboardInterrupt:
            print("\ninterrupted; the guest was stopped", file=sys.stderr)
            return 130
        finally:
            guest.stop()
            if terminal:
                termios.tcsetattr(0, termios.TCSADRAIN, terminal)
        if in_time or not again or not guest.is_silent():
            return conclude(guest, in_time)
    guest.slot = None
    guest.say(f"the kernel logged nothing for {SILENT_SECONDS} s; booting once more")
    return boot(args, shell, again=False)


def conclude(guest, in_time):
    """Takes what a guest left, says what went wrong, and returns the exit status."""
    args = guest.args
    take_out(os.path.join(guest.work, "out"), args.out)
    said = io.StringIO()
    status = guest.verdict(in_time, said)
    sys.stderr.write(said.getvalue())
    if args.verdict and said.getvalue():
        with open(args.verdict, "a") as f:
            f.write(said.getvalue())
    return status


if __name__ == "__main__":
    sys.exit(main())
