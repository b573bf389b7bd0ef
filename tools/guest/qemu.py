# SPDX-License-Identifier: GPL-2.0
"""QEMU's command line for the guest, and whether KVM can be used here."""

import json
import os
import select
import subprocess
import time

QEMU = "qemu-system-x86_64"
PROBE_SECONDS = 12
PROBE_VALID = 3600


def image(kernel_dir):
    return os.path.join(kernel_dir, "arch/x86/boot/bzImage")


def kvm_works(kernel_dir, memory_file=None):
    """True when a guest really runs under KVM.

    /dev/kvm may exist and not work, in a nested host: the guest then never prints anything. So the kernel is booted,
    without a root, until its first line appears. The result is remembered for an hour, for this boot of this host.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with open("/proc/sys/kernel/random/boot_id") as f:
        host = f.read().strip()
    if memory_file and os.path.exists(memory_file):
        try:
            with open(memory_file) as f:
                old = json.load(f)
            if old["host"] == host and time.time() - old["when"] < PROBE_VALID:
                return old["works"]
        except (ValueError, KeyError, OSError):
            pass
    works = _boots_under_kvm(kernel_dir)
    if memory_file:
        temp = f"{memory_file}.{os.getpid()}"
        with open(temp, "w") as f:
            json.dump({"host": host, "when": time.time(), "works": works}, f)
        os.replace(temp, memory_file)
    return works


def _boots_under_kvm(kernel_dir):
    args = [
        QEMU, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "1G", "-display", "none",
        "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel", image(kernel_dir),
        "-append", "console=ttyS0 earlyprintk=serial panic=-1",
    ]
    child = subprocess.Popen(
        args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    seen, end = b"", time.time() + PROBE_SECONDS
    try:
        while time.time() < end:
            if select.select([child.stdout], [], [], max(0, end - time.time()))[0]:
                data = os.read(child.stdout.fileno(), 65536)
                if not data:
                    return False
                seen += data
                if b"Linux version" in seen:
                    return True
        return False
    finally:
        child.kill()
        child.wait()


def command(kernel_dir, initrd, *, kvm, mem, cpus, iommu, icount, log, status, out, shell, append,
            devices=()):
    """The whole command line. Returns it and a line that describes the machine."""
    machine = "q35"
    if icount:
        kvm, cpus = False, 1
        accel = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        words = "TCG, counting instructions"
    elif kvm:
        machine += ",kernel-irqchip=split"
        accel = ["-accel", "kvm"]
        words = "KVM"
    else:
        accel = ["-accel", "tcg,thread=multi"]
        words = "TCG"
    # Five-level page tables only cost time in an emulated MMU. So does each step of a string instruction: a step is 8 bytes,
    # not 1.
    cpu = "host" if kvm else "max,la57=off,erms=off,fsrm=off,fzrm=off,fsrs=off"
    args = [
        QEMU, "-machine", machine, *accel, "-cpu", cpu, "-smp", str(cpus), "-m", mem,
        "-nodefaults", "-display", "none", "-no-reboot", "-kernel", image(kernel_dir),
        "-initrd", initrd,
    ]
    if iommu:
        args += ["-device", "intel-iommu,intremap=on"]
        words += ", IOMMU"
    console = "stdio,id=console,signal=off" + (",mux=on" if shell else "")
    args += [
        "-serial", f"file:{log}",
        "-chardev", console,
        "-chardev", f"socket,id=status,path={status}",
        "-chardev", f"file,id=out,path={out}",
        "-device", "virtio-serial-pci",
        "-device", "virtconsole,chardev=console",
        "-device", "virtserialport,chardev=status,name=gpusvm.status",
        "-device", "virtserialport,chardev=out,name=gpusvm.out",
    ]
    if shell:
        args += ["-mon", "chardev=console,mode=readline"]
    for device in devices:
        args += ["-device", device]
    words += f", {cpus} CPU{'s' if cpus > 1 else ''}, {mem}"
    line = [
        "console=ttyS0", "loglevel=7", "panic=-1", "oops=panic", "kunit.autorun=0",
        "rdinit=/init", "printk.devkmsg=on",
        # On a busy host the check of an emulated timer at boot can fail because the timer is late, and a CPU may not run for a
        # while without a bug.
        "no_timer_check", "rcupdate.rcu_cpu_stall_timeout=100", "watchdog_thresh=50",
    ]
    if append:
        line.append(append)
    args += ["-append", " ".join(line)]
    return args, words
