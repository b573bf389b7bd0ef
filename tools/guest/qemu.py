# SPDX-License-Identifier: GPL-2.0
"""QEMU's command line for the guest, and whether KVM can be used here."""

import dataclasses
import json
import os
import select
import subprocess
import time

PROBE_SECONDS = 12
PROBE_VALID = 3600


@dataclasses.dataclass(frozen=True)
class Machine:
    """What differs between the machines of two architectures."""

    qemu: str
    name: str
    # Of the processor that is emulated.
    cpu: str
    # What makes a translating IOMMU: more of the machine's name, or a device.
    iommu_option: str
    iommu_device: str
    console: str
    # More of the kernel's command line.
    line: tuple


MACHINES = {
    "x86": Machine(
        qemu="qemu-system-x86_64",
        name="q35",
        # Five-level page tables only cost an emulated MMU time. So does each step of a string instruction:
        # let one be 8 bytes, not 1.
        cpu="max,la57=off,erms=off,fsrm=off,fzrm=off,fsrs=off",
        iommu_option="",
        iommu_device="intel-iommu,intremap=on",
        console="ttyS0",
        # On a busy host an emulated timer can be late for the boot's check that it works.
        line=("no_timer_check",),
    ),
    "arm64": Machine(
        qemu="qemu-system-aarch64",
        name="virt,gic-version=3",
        # What the kernel does not use would only cost time.
        cpu="max,pauth=off,sve=off,lpa2=off",
        iommu_option=",iommu=smmuv3",
        iommu_device="",
        console="ttyAMA0",
        line=("earlycon",),
    ),
}


def kvm_works(image, memory_file=None):
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
    works = _boots_under_kvm(image)
    if memory_file:
        temp = f"{memory_file}.{os.getpid()}"
        with open(temp, "w") as f:
            json.dump({"host": host, "when": time.time(), "works": works}, f)
        os.replace(temp, memory_file)
    return works


def _boots_under_kvm(image):
    args = [
        MACHINES["x86"].qemu, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "1G", "-display", "none",
        "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel", image,
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


def command(machine, image, initrd, *, qemu, kvm, mem, cpus, iommu, icount, log, status, out, shell, append,
            devices=()):
    """The whole command line. Returns it and a line that describes the machine.

    qemu: the program, where it is not the root's.
    """
    name = machine.name
    if icount:
        kvm, cpus = False, 1
        accel = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        words = "TCG, counting instructions"
    elif kvm:
        name += ",kernel-irqchip=split"
        accel = ["-accel", "kvm"]
        words = "KVM"
    else:
        accel = ["-accel", "tcg,thread=multi"]
        words = "TCG"
    if iommu:
        name += machine.iommu_option
    args = [
        qemu or machine.qemu, "-machine", name, *accel, "-cpu", "host" if kvm else machine.cpu,
        "-smp", str(cpus), "-m", mem, "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", image, "-initrd", initrd,
    ]
    if iommu:
        if machine.iommu_device:
            args += ["-device", machine.iommu_device]
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
        f"console={machine.console}", "loglevel=7", "panic=-1", "oops=panic", "kunit.autorun=0",
        "rdinit=/init", "printk.devkmsg=on",
        # On a busy host a CPU may not run for a while without a bug.
        "rcupdate.rcu_cpu_stall_timeout=100", "watchdog_thresh=50",
        *machine.line,
    ]
    if append:
        line.append(append)
    args += ["-append", " ".join(line)]
    return args, words
