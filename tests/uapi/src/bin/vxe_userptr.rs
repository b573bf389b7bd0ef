// SPDX-License-Identifier: GPL-2.0

//! Userptrs: memory of a process at other addresses of the GPU.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};
use vxe_client::{sys, Bind, ExecQueue, Vm};
use vxe_uapi::{
    env::iterations,
    gpu::{device, FAR},
    process::fork,
    sysfs::Provider,
    Buffer, Gpu, Map, Program, Stop, MIDDLE, PAGE, RO, RW, SZ_2M,
};

/// The kinds of VMs.
#[derive(Clone, Copy)]
enum Kind {
    /// With faults, and a mirror of the process beside the userptrs.
    Mirrored,
    /// With faults, without a mirror.
    Faulting,
    /// Without faults.
    LongRunning,
}

const KINDS: [(&str, Kind); 3] = [
    ("mirrored", Kind::Mirrored),
    ("faulting", Kind::Faulting),
    ("long-running", Kind::LongRunning),
];

impl Kind {
    fn vm(self) -> Vm {
        let device = device();
        match self {
            Self::Mirrored => Vm::mirrored(&device),
            Self::Faulting => Vm::new(&device),
            Self::LongRunning => Vm::with_flags(&device, sys::DRM_XE_VM_CREATE_FLAG_LR_MODE),
        }
        .expect("a VM")
    }

    /// A VM and a queue whose batches and fences are mapped.
    fn gpu(self) -> Gpu {
        let gpu = Gpu::on_vm(&self.vm());
        if !matches!(self, Self::Mirrored) {
            for area in gpu.areas() {
                bind(&gpu, Bind::userptr(area.at(0), area.at(0), area.len() as u64));
            }
        }
        gpu
    }
}

#[track_caller]
fn bind(gpu: &Gpu, bind: Bind) {
    gpu.vm().bind(&[bind]).expect("a bind");
}

/// Where memory is bound: the GPU's addresses of it.
#[derive(Clone, Copy)]
struct At(u64);

impl At {
    fn at(self, offset: usize) -> u64 {
        self.0 + offset as u64
    }
}

/// Binds all of `memory` far from its own addresses.
#[track_caller]
fn bind_far(gpu: &Gpu, memory: Map) -> At {
    let to = FAR + (memory.start() % SZ_2M) as u64;
    bind(gpu, Bind::userptr(memory.at(0), to, memory.len() as u64));
    At(to)
}

/// The GPU increments the first word of each page.
fn touch(gpu: &Gpu, at: At, length: usize) {
    gpu.run(|c| {
        for page in (0..length).step_by(PAGE) {
            c.increment(at.at(page));
        }
    });
}

#[track_caller]
fn expect(what: &str, memory: Map, wanted: u32) {
    memory.expect(what, |o| if o % PAGE == 0 { wanted } else { 0 });
}

/// The GPU works on memory of the process at addresses of its own.
fn basic(kind: Kind, length: usize, immediate: bool) {
    let gpu = kind.gpu();
    let memory = Map::aligned(length, SZ_2M);
    memory.write(0, 0);
    let to = FAR;
    let op = Bind::userptr(memory.at(0), to, length as u64);
    bind(&gpu, if immediate { op.immediate() } else { op });
    touch(&gpu, At(to), length);
    expect("once", memory, 1);
    touch(&gpu, At(to), length);
    expect("twice", memory, 2);
    bind(&gpu, Bind::unmap(to, length as u64));
    let mut gpu = gpu;
    gpu.expect_fault("unbound", |c| _ = c.store(to, 1));
    expect("unbound", memory, 2);
}

/// Pages that the CPU drops are replaced, and the GPU sees the new ones.
fn dropped(kind: Kind) {
    let gpu = kind.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let at = bind_far(&gpu, memory);
    for round in 0..8 {
        touch(&gpu, at, memory.len());
        expect("touched", memory, 1);
        memory.part(round * PAGE % MIDDLE, PAGE).madvise(libc::MADV_DONTNEED);
        memory.madvise(libc::MADV_DONTNEED);
    }
    touch(&gpu, at, memory.len());
    expect("after the last", memory, 1);
}

/// Memory that was unmapped cannot be used; new memory at its address can.
fn unmapped(kind: Kind) {
    let mut gpu = kind.gpu();
    let memory = Map::aligned(4 * PAGE, SZ_2M);
    let at = bind_far(&gpu, memory);
    touch(&gpu, at, memory.len());
    memory.part(PAGE, PAGE).unmap();
    gpu.expect_fault("a hole", |c| _ = c.store(at.at(PAGE), 7));
    memory.part(PAGE, PAGE).replace_anon(RW);
    gpu.store(at.at(PAGE), 5);
    memory.expect_word("mapped anew", PAGE, 5);
    gpu.increment(at.at(0));
    memory.expect_word("the neighbour", 0, 2);
    memory.unmap();
    gpu.expect_fault("all unmapped", |c| _ = c.increment(at.at(0)));
    // A binding of what is not there fails, and changes nothing.
    let op = Bind::userptr(memory.at(0), at.0, memory.len() as u64);
    let result = gpu.vm().bind(&[op]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EFAULT), "a bind of nothing");
    memory.replace_anon(RW);
    touch(&gpu, at, memory.len());
    expect("bound still", memory, 1);
}

/// The memory moves elsewhere; the binding is of the addresses.
fn moved() {
    let mut gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(4 * PAGE, SZ_2M);
    let at = bind_far(&gpu, memory);
    touch(&gpu, at, memory.len());
    let to = Map::reserve(4 * PAGE, SZ_2M);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let moved = memory.remap(4 * PAGE, flags, Some(to));
    gpu.expect_fault("moved away", |c| _ = c.increment(at.at(0)));
    expect("moved", moved, 1);
}

/// Rights: of the memory, and of the binding.
fn rights() {
    let mut gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    memory.write(0, 9);
    let to = FAR;
    let op = Bind::userptr(memory.at(0), to, MIDDLE as u64);
    bind(&gpu, op.read_only());
    let out = Map::anon(MIDDLE);
    gpu.run(|c| _ = c.copy(to, out.at(0), MIDDLE));
    out.expect_word("read", 0, 9);
    gpu.expect_fault("a store", |c| _ = c.store(to, 1));
    memory.protect(RO);
    let result = gpu.vm().bind(&[op]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EPERM), "for writing");
    bind(&gpu, op.read_only());
    gpu.run(|c| _ = c.copy(to, out.at(0), MIDDLE));
    memory.protect(RW);
    bind(&gpu, op);
    gpu.store(to, 3);
    memory.expect_word("writable again", 0, 3);
    memory.protect(RO);
    gpu.expect_fault("protected", |c| _ = c.store(to, 1));
    memory.expect_word("protected", 0, 3);
}

/// Parent and child have their own memory after a fork; the binding is of the parent's.
fn forked(kind: Kind) {
    let gpu = kind.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let at = bind_far(&gpu, memory);
    touch(&gpu, at, memory.len());
    let child = fork(move |link| {
        link.receive();
        expect("the child's", memory, 1);
        memory.fill(|_| 77);
        link.send(1);
        link.receive();
    });
    touch(&gpu, at, memory.len());
    expect("the parent's", memory, 2);
    child.link().send(1);
    child.link().receive();
    expect("the parent's, after the child wrote", memory, 2);
    touch(&gpu, at, memory.len());
    expect("the parent's at last", memory, 3);
    child.link().send(1);
    child.expect_success();
    touch(&gpu, at, memory.len());
    expect("without the child", memory, 4);
}

/// A child binds its own memory in the parent's VM. It is gone with the child.
fn of_a_child() {
    let mut gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    memory.fill(|_| 1);
    let vm = gpu.vm().clone();
    let child = fork(move |link| {
        memory.fill(|_| 0);
        let op = Bind::userptr(memory.at(0), FAR, MIDDLE as u64);
        let result = vm.bind(&[op]);
        link.send(u64::from(result.is_ok()));
        link.receive();
        expect("the child's", memory, 1);
        link.send(1);
        link.receive();
    });
    assert_eq!(child.link().receive(), 1, "the child binds");
    touch(&gpu, At(FAR), MIDDLE);
    child.link().send(1);
    assert_eq!(child.link().receive(), 1);
    memory.expect("the parent's", |_| 1);
    child.link().send(1);
    child.expect_success();
    gpu.expect_fault("the child's, after its exit", |c| _ = c.increment(FAR));
    memory.expect("the parent's", |_| 1);
}

/// A binding is cut: the rest keeps working, also when the CPU changes pages.
fn cut(kind: Kind) {
    let mut gpu = kind.gpu();
    let memory = Map::aligned(16 * PAGE, SZ_2M);
    let at = bind_far(&gpu, memory);
    touch(&gpu, at, memory.len());
    bind(&gpu, Bind::unmap(at.at(4 * PAGE), 4 * PAGE as u64));
    gpu.expect_fault("cut out", |c| _ = c.increment(at.at(5 * PAGE)));
    let counts = |page: usize, parts: u32| if (4..8).contains(&page) { 1 } else { parts };
    let all = |gpu: &Gpu| {
        for page in (0..4).chain(8..16) {
            gpu.increment(at.at(page * PAGE));
        }
    };
    all(&gpu);
    memory.expect("cut", |o| if o % PAGE == 0 { counts(o / PAGE, 2) } else { 0 });
    // A buffer in the gap is zapped with the userptr, and mapped again.
    let buffer = Buffer::new(&gpu, 4 * PAGE);
    bind(&gpu, Bind::bo(buffer.bo(), 0, at.at(4 * PAGE), 4 * PAGE as u64));
    for round in 1..5 {
        memory.part(9 * PAGE, PAGE).madvise(libc::MADV_DONTNEED);
        all(&gpu);
        gpu.increment(at.at(5 * PAGE));
        buffer.memory().expect_word("the buffer", PAGE, round);
        memory.expect_word("a new page", 9 * PAGE, 1);
        memory.expect_word("before the gap", 0, 2 + round);
        memory.expect_word("after the gap", 15 * PAGE, 2 + round);
    }
    bind(&gpu, Bind::unmap(at.at(0), 16 * PAGE as u64));
    gpu.expect_fault("all unbound", |c| _ = c.increment(at.at(0)));
}

/// The same memory by its own address and by another one, in system memory and on the device.
fn mixed() {
    let gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(SZ_2M, SZ_2M);
    // The first half moves to the device, the second stays, or the other way round.
    for first in [0, SZ_2M / 2] {
        memory.fill(|o| o as u32);
        let half = memory.part(first, SZ_2M / 2);
        gpu.vm().bind(&[Bind::prefetch(half.at(0), half.len() as u64, 1)]).expect("a prefetch");
        let at = bind_far(&gpu, memory);
        for page in (0..SZ_2M).step_by(PAGE) {
            gpu.store(at.at(page), 1 + page as u32);
        }
        memory.expect("through the userptr", |o| o as u32 + u32::from(o % PAGE == 0));
        for page in (0..SZ_2M).step_by(PAGE) {
            gpu.increment(memory.at(page));
        }
        gpu.run(|c| _ = c.increment(at.at(0)));
        memory.expect_word("by both addresses", 0, 3);
        bind(&gpu, Bind::unmap(at.0, SZ_2M as u64));
    }
}

/// One userptr at a time in a call, or many, and as many userptrs as one likes.
fn many(count: usize) {
    let gpu = Kind::Faulting.gpu();
    let memory = Map::aligned(count * PAGE, SZ_2M);
    let binds: Vec<Bind> = (0..count)
        .map(|page| {
            // In reverse, and not adjacent.
            let to = FAR + 2 * ((count - page) * PAGE) as u64;
            Bind::userptr(memory.at(page * PAGE), to, PAGE as u64)
        })
        .collect();
    gpu.vm().bind(&binds).expect("many userptrs");
    let at = |page: usize| FAR + 2 * ((count - page) * PAGE) as u64;
    for page in (0..count).step_by(7) {
        gpu.store(at(page), page as u32);
    }
    // All of them are invalidated by one call.
    memory.madvise(libc::MADV_DONTNEED);
    for page in (0..count).step_by(7) {
        gpu.store(at(page), page as u32 + 1);
        memory.expect_word("after all were dropped", page * PAGE, page as u32 + 1);
    }
    gpu.vm().bind(&[Bind::unmap(0, 1 << 47)]).expect("all unbound");
}

/// A call that fails leaves no userptr behind, and nothing changed.
fn undone() {
    let gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(2 * PAGE, SZ_2M);
    let at = bind_far(&gpu, memory);
    touch(&gpu, at, 2 * PAGE);
    let other = Map::aligned(2 * PAGE, SZ_2M);
    let result = gpu.vm().bind(&[
        Bind::userptr(other.at(0), at.0, PAGE as u64),
        Bind::userptr(PAGE as u64, at.at(PAGE), PAGE as u64),
    ]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EFAULT));
    touch(&gpu, at, 2 * PAGE);
    expect("as before", memory, 2);
    other.expect("not bound", |_| 0);
}

/// The CPU drops pages of the userptr all the time, while the GPU counts in one of them.
fn race_with_drops(kind: Kind) {
    let gpu = kind.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let at = bind_far(&gpu, memory);
    let stop = Stop::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                memory.part(MIDDLE / 2, MIDDLE / 2).madvise(libc::MADV_DONTNEED);
            }
        });
        let _stop = stop.on_drop();
        let rounds = iterations(100);
        for _ in 0..rounds {
            gpu.increment(at.at(0));
        }
        memory.expect_word("counted", 0, rounds);
    });
}

/// So large that its pages never stay as they are until the kernel has walked all of them: it is bound
/// nevertheless, and the GPU's faults get the pages.
fn bound_while_it_changes(kind: Kind) {
    let gpu = kind.gpu();
    let memory = Map::aligned(32 * SZ_2M, SZ_2M);
    memory.try_madvise(libc::MADV_NOHUGEPAGE).expect("small pages");
    let (stop, drops) = (Stop::new(), AtomicU32::new(0));
    let at = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                memory.part(memory.len() / 2, PAGE).madvise(libc::MADV_DONTNEED);
                drops.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = stop.on_drop();
        while drops.load(Ordering::Relaxed) < 100 {
            thread::yield_now();
        }
        bind_far(&gpu, memory)
    });
    touch(&gpu, at, memory.len());
    expect("after the changes", memory, 1);
}

/// Binds and unbinds race with changes of the CPU's mappings.
fn race_with_binds(kind: Kind) {
    let gpu = kind.gpu();
    let memory = Map::aligned(8 * PAGE, SZ_2M);
    let stop = Stop::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.is_set() {
                memory.part(round % 8 * PAGE, PAGE).madvise(libc::MADV_DONTNEED);
                round += 1;
            }
        });
        let _stop = stop.on_drop();
        for round in 0..iterations(60) as usize {
            let at = bind_far(&gpu, memory);
            gpu.store(at.at(round % 8 * PAGE), 1);
            if round % 3 == 0 {
                bind(&gpu, Bind::unmap(at.0, 8 * PAGE as u64));
            }
        }
    });
    let at = bind_far(&gpu, memory);
    memory.fill(|_| 0);
    touch(&gpu, at, memory.len());
    expect("after the race", memory, 1);
}

/// Two devices have the same memory bound, and see each other's stores.
fn two_devices() {
    let provider = Provider::load(4);
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let other = provider.slots().first().expect("a device").open();
    let gpus = [Gpu::new(), Gpu::on_device(&other)];
    let at = gpus.each_ref().map(|gpu| bind_far(gpu, memory));
    for round in 1..5 {
        for (gpu, at) in gpus.iter().zip(at) {
            touch(gpu, at, memory.len());
        }
        expect("both", memory, 2 * round);
    }
    // One call invalidates both.
    memory.madvise(libc::MADV_DONTNEED);
    for (gpu, at) in gpus.iter().zip(at) {
        touch(gpu, at, memory.len());
    }
    expect("both, anew", memory, 2);
}

/// Large memory: batches of segments, and pages that faults get again.
fn large() {
    let length = 64 * SZ_2M;
    let gpu = Kind::Faulting.gpu();
    let memory = Map::aligned(length, SZ_2M);
    memory.try_madvise(libc::MADV_NOHUGEPAGE).expect("small pages");
    let at = bind_far(&gpu, memory);
    let words = || (0..length).step_by(SZ_2M / 2 + PAGE);
    for offset in words() {
        gpu.store(at.at(offset), offset as u32 + 1);
    }
    for offset in words() {
        memory.expect_word("large", offset, offset as u32 + 1);
    }
    memory.madvise(libc::MADV_DONTNEED);
    for offset in words() {
        gpu.increment(at.at(offset));
        memory.expect_word("large, anew", offset, 1);
    }
}

/// A prefetch gets the pages and maps them.
fn prefetched() {
    let gpu = Kind::Faulting.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let at = bind_far(&gpu, memory);
    let prefetch = |region| gpu.vm().bind(&[Bind::prefetch(at.0, MIDDLE as u64, region)]);
    prefetch(0).expect("a prefetch");
    touch(&gpu, at, MIDDLE);
    expect("prefetched", memory, 1);
    memory.unmap();
    let result = prefetch(0);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EFAULT), "a prefetch of nothing");
}

/// A queue that runs while the memory is unmapped fails, and nothing else.
fn unmapped_while_running() {
    let gpu = Kind::Mirrored.gpu();
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let at = bind_far(&gpu, memory);
    let job = gpu
        .start(|c| {
            for _ in 0..200 {
                for page in (0..MIDDLE).step_by(PAGE) {
                    c.increment(at.at(page));
                }
            }
        })
        .expect("a job");
    while memory.read(MIDDLE - PAGE) == 0 && !job.is_done() {
        thread::yield_now();
    }
    memory.unmap();
    if let Err(e) = job.wait() {
        assert_eq!(e.errno(), libc::EIO, "the job");
    }
    // Another queue of the VM works.
    let other = ExecQueue::new(gpu.vm()).expect("a queue");
    drop(other);
    let again = gpu.another();
    let rest = Map::aligned(PAGE, SZ_2M);
    again.store(rest.at(0), 4);
    rest.expect_word("the VM lives", 0, 4);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_userptr", "Userptrs: memory of a process at other addresses.");
    for (name, kind) in KINDS {
        for (size, length) in [("page", PAGE), ("64K", MIDDLE), ("odd", 5 * PAGE), ("2M", SZ_2M)] {
            p.subtest(format!("{name}-{size}"), "the GPU works on it", move || {
                basic(kind, length, false);
            });
        }
        p.subtest(format!("{name}-immediate"), "bound at once", move || {
            basic(kind, MIDDLE, true);
        });
        p.subtest(format!("{name}-dropped"), "the CPU drops pages", move || dropped(kind));
        p.subtest(format!("{name}-unmapped"), "the CPU unmaps pages", move || unmapped(kind));
        p.subtest(format!("{name}-forked"), "the process forks", move || forked(kind));
        p.subtest(format!("{name}-cut"), "a part is unbound", move || cut(kind));
        p.subtest(format!("{name}-race-drops"), "pages are dropped all the time", move || {
            race_with_drops(kind);
        });
        p.subtest(
            format!("{name}-bound-while-it-changes"),
            "pages are dropped meanwhile",
            move || bound_while_it_changes(kind),
        );
        p.subtest(format!("{name}-race-binds"), "binds race with the CPU", move || {
            race_with_binds(kind);
        });
    }
    p.subtest("moved", "the CPU moves the pages", moved);
    p.subtest("rights", "rights of memory and binding", rights);
    p.subtest("of-a-child", "memory of a child", of_a_child);
    p.subtest("mixed", "system and device memory", mixed);
    p.subtest("many", "many in a call", || many(3000));
    p.subtest("undone", "a call that fails", undone);
    p.subtest("two-devices", "two devices with the same memory", two_devices);
    p.subtest("large", "128 MiB", large);
    p.subtest("prefetched", "a prefetch", prefetched);
    p.subtest("unmapped-while-running", "a job loses its memory", unmapped_while_running);
    p.main()
}
