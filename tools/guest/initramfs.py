# SPDX-License-Identifier: GPL-2.0
"""Builds the guest's initramfs: busybox, the kernel's modules, ours, and overlays.

Writes the cpio "newc" format directly, so that files need no particular owner or permission on the host and the same
input always gives the same bytes. The archive is not compressed, as it is used for one boot only.
"""

import os
import shutil
import stat
import subprocess
import tempfile

BUSYBOX = "/usr/bin/busybox"
DIRS = (
    "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local", "usr/local/bin", "etc",
    "root", "proc", "sys", "dev", "tmp", "run", "var", "var/tmp", "mnt", "out",
)
# One /usr, as on Debian, so that an overlay made of Debian packages fits.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nvideo:x:44:\nrender:x:106:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
}


class Cpio:
    """A cpio archive under construction; later entries replace earlier ones."""

    def __init__(self):
        self.entries = {}

    def place(self, name):
        """Where `name` really goes, with the symbolic links among its parents followed."""
        done = ""
        parts = [p for p in name.split("/") if p not in ("", ".")]
        for part in parts[:-1]:
            done = f"{done}/{part}".strip("/")
            mode, data = self.entries.get(done, (0, b""))
            for _ in range(8):
                if not stat.S_ISLNK(mode):
                    break
                target = os.path.join("/", os.path.dirname(done), data.decode())
                done = os.path.normpath(target).strip("/")
                mode, data = self.entries.get(done, (0, b""))
            if not stat.S_ISDIR(mode):
                self.entries[done] = (stat.S_IFDIR | 0o755, b"")
        return f"{done}/{parts[-1]}".strip("/") if parts else ""

    def add(self, name, mode, data=b""):
        name = self.place(name)
        if name:
            self.entries[name] = (mode, data)

    def directory(self, name, mode=0o755):
        # A symbolic link in a directory's place stays: it leads to one.
        name = self.place(name)
        if name and name not in self.entries:
            self.entries[name] = (stat.S_IFDIR | mode, b"")

    def file(self, name, data, mode=0o644):
        self.add(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        # A directory that is there already is not replaced by a link to one.
        if not stat.S_ISDIR(self.entries.get(self.place(name), (0,))[0]):
            self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, top, under=""):
        """Adds everything below the directory `top`."""
        for path, dirs, files in os.walk(top):
            dirs.sort()
            rel = os.path.normpath(os.path.join(under, os.path.relpath(path, top)))
            self.directory(rel)
            for name in sorted(dirs + files):
                source = os.path.join(path, name)
                dest = os.path.normpath(os.path.join(rel, name))
                info = os.lstat(source)
                if stat.S_ISLNK(info.st_mode):
                    self.link(dest, os.readlink(source))
                elif stat.S_ISREG(info.st_mode):
                    with open(source, "rb") as f:
                        self.file(dest, f.read(), stat.S_IMODE(info.st_mode))

    def write(self, out):
        for ino, (name, (mode, data)) in enumerate(self.entries.items(), 1):
            self._entry(out, ino, name, mode, data)
        self._entry(out, 0, "TRAILER!!!", 0, b"")

    @staticmethod
    def _entry(out, ino, name, mode, data):
        raw = name.encode() + b"\0"
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + raw
        out.write(head + b"\0" * (-len(head) % 4))
        out.write(data)
        out.write(b"\0" * (-len(data) % 4))


def kernel_release(kernel_dir):
    with open(os.path.join(kernel_dir, "include/config/kernel.release")) as f:
        return f.read().strip()


def kernel_modules(kernel_dir):
    """The kernel's own modules, as paths of .ko files."""
    order = os.path.join(kernel_dir, "modules.order")
    if not os.path.exists(order):
        return []
    with open(order) as f:
        names = [line.strip() for line in f if line.strip()]
    return [os.path.join(kernel_dir, n[:-2] + ".ko") for n in names]


def add_modules(cpio, kernel_dir, extra):
    """Adds the kernel's modules and the .ko files `extra`, with an index for modprobe."""
    release = kernel_release(kernel_dir)
    with tempfile.TemporaryDirectory() as tmp:
        base = os.path.join(tmp, "lib/modules", release)
        for sub, files in (("kernel", kernel_modules(kernel_dir)), ("extra", extra)):
            os.makedirs(os.path.join(base, sub))
            for ko in files:
                shutil.copy(ko, os.path.join(base, sub, os.path.basename(ko)))
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            source = os.path.join(kernel_dir, name)
            if os.path.exists(source):
                shutil.copy(source, base)
        open(os.path.join(base, "modules.order"), "w").close()
        subprocess.run(["depmod", "-b", tmp, release], check=True)
        cpio.tree(tmp)


def build(path, busybox, kernel_dir, modules, trees, settings, command):
    """Writes the initramfs to `path`.

    busybox: the guest's, which has the same applets as the root's; modules: .ko files of ours;
    trees: directories laid over the root in order; settings: the shell variables that the guest's
    init reads; command: its script.
    """
    cpio = Cpio()
    for name in DIRS:
        cpio.directory(name, 0o1777 if name.endswith("tmp") else 0o755)
    for name, target in LINKS.items():
        cpio.link(name, target)
    for name, text in FILES.items():
        cpio.file(name, text.encode())
    with open(busybox, "rb") as f:
        cpio.file("bin/busybox", f.read(), 0o755)
    applets = subprocess.run([BUSYBOX, "--list-full"], check=True, capture_output=True, text=True)
    for applet in applets.stdout.split():
        if applet != "bin/busybox" and not applet.startswith("linuxrc"):
            cpio.link(applet, "/bin/busybox")
    add_modules(cpio, kernel_dir, modules)
    for tree in trees:
        cpio.tree(tree)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "init"), "rb") as f:
        cpio.file("init", f.read(), 0o755)
    conf = "".join(f"{k}={shell_quote(str(v))}\n" for k, v in settings.items())
    cpio.file("etc/guest.conf", conf.encode())
    cpio.file("etc/guest.cmd", (command + "\n").encode())
    with open(path, "wb") as out:
        cpio.write(out)


def shell_quote(text):
    return "'" + text.replace("'", "'\\''") + "'"
