// SPDX-License-Identifier: GPL-2.0

//! Null bindings: addresses of the GPU without memory.

use std::process::ExitCode;
use vxe_client::{sys, Advice, AtomicAccess, Bind, Bo, Vm};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::{device, ALL, FAR},
    Buffer, Gpu, Map, Program, Rng, MIDDLE, PAGE, RW, SZ_2M,
};

#[track_caller]
fn bind(vm: &Vm, binds: &[Bind]) {
    vm.bind(binds).expect("a bind");
}

/// Copies from GPU addresses, and expects contents.
#[track_caller]
fn expect(what: &str, gpu: &Gpu, at: u64, length: usize, wanted: impl Fn(usize) -> u32) {
    let to = Map::anon(length);
    to.fill(|_| 0xdead_beef);
    gpu.run(|c| _ = c.copy(at, to.at(0), length));
    to.expect(what, wanted);
    to.unmap();
}

/// Reads give zeros, and what is written is gone: words, atomics, copies, within large pages and across them.
fn nothing_stays() {
    let gpu = Gpu::new();
    bind(gpu.vm(), &[Bind::null(FAR, 4 * SZ_2M as u64)]);
    let from = Map::anon(2 * SZ_2M);
    from.fill(pattern);
    for offset in [0, PAGE, SZ_2M - PAGE, 2 * SZ_2M - 256] {
        let at = FAR + offset as u64;
        expect("at first", &gpu, at, 256, |_| 0);
        gpu.store(at, 7);
        gpu.increment(at);
        expect("after a store and an atomic", &gpu, at, 256, |_| 0);
    }
    gpu.run(|c| _ = c.copy(from.at(0), FAR + MIDDLE as u64, from.len()));
    expect("after a copy", &gpu, FAR, 4 * SZ_2M, |_| 0);
    from.expect("the source", pattern);
    // From nothing to nothing.
    gpu.run(|c| _ = c.copy(FAR, FAR + SZ_2M as u64, SZ_2M));
}

/// No page of the binding, and none beside it, is another's.
fn edges() {
    let mut gpu = Gpu::new();
    let at = FAR + 3 * PAGE as u64;
    bind(gpu.vm(), &[Bind::unmap(FAR, MIDDLE as u64), Bind::null(at, PAGE as u64)]);
    gpu.store(at, 1);
    gpu.store(at + PAGE as u64 - 4, 1);
    for beside in [at - 4, at + PAGE as u64] {
        gpu.expect_fault("beside", |c| _ = c.store(beside, 1));
    }
    // The end of the GPU's addresses.
    let last = ALL - PAGE as u64;
    bind(gpu.vm(), &[Bind::null(last, PAGE as u64)]);
    gpu.store(ALL - 4, 1);
    expect("the last page", &gpu, last, PAGE, |_| 0);
}

/// A VM may be bound to nothing from end to end, in no time, and memory put here and there, as sparse resources are.
fn all() {
    let gpu = Gpu::new();
    let half = ALL / 2;
    // The process's memory is mirrored below.
    bind(gpu.vm(), &[Bind::null(half, half)]);
    let buffer = Buffer::new(&gpu, MIDDLE);
    let mut rng = Rng::from_environment();
    for round in 0..iterations(20) {
        let at = half + rng.below(1 << 26) as u64 * SZ_2M as u64 + PAGE as u64;
        let (page, length) = (PAGE as u64, MIDDLE as u64);
        expect("nothing", &gpu, at - page, MIDDLE + 2 * PAGE, |_| 0);
        bind(gpu.vm(), &[Bind::bo(buffer.bo(), 0, at, length)]);
        gpu.store(at + 8, round + 1);
        gpu.store(at - 4, 9);
        gpu.store(at + length, 9);
        buffer.memory().expect_word("the buffer", 8, round + 1);
        expect("before it", &gpu, at - page, PAGE, |_| 0);
        expect("behind it", &gpu, at + length, PAGE, |_| 0);
        bind(gpu.vm(), &[Bind::null(at, length)]);
        gpu.store(at + 8, 99);
        expect("nothing again", &gpu, at - page, MIDDLE + 2 * PAGE, |_| 0);
        buffer.memory().expect_word("the buffer, no more bound", 8, round + 1);
    }
    bind(gpu.vm(), &[Bind::unmap(half, half)]);
}

/// A mirror is replaced like by a buffer: not while pages are mirrored, and it can come back.
fn over_a_mirror() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, SZ_2M);
    let null = Bind::null(map.at(0), MIDDLE as u64);
    gpu.store(map.at(0), 1);
    let live = gpu.vm().bind(&[null]);
    assert_eq!(live.map_err(|e| e.errno()), Err(libc::EBUSY), "over mirrored pages");
    gpu.increment(map.at(0));
    map.expect_word("still mirrored", 0, 2);
    map.unmap();
    let place = Map::reserve(MIDDLE, SZ_2M);
    bind(gpu.vm(), &[Bind::null(place.at(0), MIDDLE as u64)]);
    gpu.store(place.at(0), 3);
    bind(gpu.vm(), &[Bind::mirror(place.at(0), MIDDLE as u64)]);
    let cpu = place.replace_anon(RW);
    gpu.increment(cpu.at(0));
    cpu.expect("the process's memory", |o| u32::from(o == 0));
}

/// A read-only one is read.
fn read_only() {
    let mut gpu = Gpu::new();
    bind(gpu.vm(), &[Bind::null(FAR, MIDDLE as u64).read_only()]);
    expect("read", &gpu, FAR, MIDDLE, |_| 0);
    gpu.expect_fault("a store", |c| _ = c.store(FAR, 1));
    gpu.expect_fault("an atomic", |c| _ = c.increment(FAR + 64));
}

/// Unbound, it is an address like any other.
fn unbound() {
    let mut gpu = Gpu::new();
    bind(gpu.vm(), &[Bind::null(FAR, 2 * SZ_2M as u64)]);
    gpu.run(|c| _ = c.store(FAR, 1).store(FAR + SZ_2M as u64, 1));
    bind(gpu.vm(), &[Bind::unmap(FAR + PAGE as u64, SZ_2M as u64)]);
    gpu.store(FAR, 1);
    gpu.expect_fault("unbound", |c| _ = c.store(FAR + PAGE as u64, 1));
    gpu.expect_fault("the end", |c| _ = c.store(FAR + SZ_2M as u64 + PAGE as u64 - 4, 1));
    gpu.store(FAR + SZ_2M as u64 + PAGE as u64, 1);
}

/// Advice and prefetches are taken; who may do atomics counts here as elsewhere.
fn advised() {
    let mut gpu = Gpu::new();
    let length = MIDDLE as u64;
    bind(gpu.vm(), &[Bind::null(FAR, length).pat(2)]);
    for region in [0, -1] {
        bind(gpu.vm(), &[Bind::prefetch(FAR, length, region)]);
    }
    gpu.increment(FAR);
    let advise = |gpu: &Gpu, advice| gpu.vm().madvise(FAR, length, advice).expect("advice");
    advise(&gpu, Advice::Pat(0));
    advise(&gpu, Advice::Atomic(AtomicAccess::Cpu));
    gpu.store(FAR, 1);
    gpu.expect_fault("an atomic", |c| _ = c.increment(FAR));
    advise(&gpu, Advice::Atomic(AtomicAccess::Undefined));
    gpu.increment(FAR);
    assert_eq!(gpu.vm().set_needed(FAR, length, false), Ok(true), "there is nothing to lose");
    expect("read", &gpu, FAR, MIDDLE, |_| 0);
    let attributes = gpu.vm().memory_attributes(FAR, length).expect("attributes");
    assert_eq!(attributes.len(), 1, "one entry");
}

/// In a VM without faults, which maps the test's own areas as well.
fn long_running() {
    let vm = Vm::with_flags(&device(), sys::DRM_XE_VM_CREATE_FLAG_LR_MODE).expect("a VM");
    let gpu = Gpu::on_vm(&vm);
    for area in gpu.areas() {
        bind(&vm, &[Bind::userptr(area.at(0), area.at(0), area.len() as u64)]);
    }
    let to = Map::shared(MIDDLE);
    bind(&vm, &[Bind::userptr(to.at(0), to.at(0), MIDDLE as u64)]);
    bind(&vm, &[Bind::null(FAR, 1 << 40)]);
    to.fill(pattern);
    gpu.run(|c| _ = c.copy(to.at(0), FAR + 5 * SZ_2M as u64, MIDDLE));
    gpu.run(|c| _ = c.copy(FAR + 5 * SZ_2M as u64, to.at(0), MIDDLE));
    to.expect("zeros", |_| 0);
}

/// Conditions hold for zeros, and registers are loaded with them.
fn conditions() {
    let gpu = Gpu::new();
    bind(gpu.vm(), &[Bind::null(FAR, MIDDLE as u64)]);
    let map = Map::anon(PAGE);
    map.write(0, 7);
    let halves = |address: u64| (address as u32, (address >> 32) as u32);
    let ((low, high), (to_low, to_high)) = (halves(FAR), halves(map.at(0)));
    gpu.run(|c| {
        // MI_SEMAPHORE_WAIT until it is zero, MI_LOAD_REGISTER_MEM, MI_STORE_REGISTER_MEM.
        c.raw(&[0x0e00_c003, 0, low, high, 0]);
        c.raw(&[0x1488_0002, 0x600, low, high]);
        c.raw(&[0x1208_0002, 0x600, to_low, to_high]);
    });
    map.expect_word("zero, from a register", 0, 0);
}

/// Arrays of binds change nothing if one fails.
fn undone() {
    let gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), PAGE).expect("a buffer");
    bind(gpu.vm(), &[Bind::null(FAR, MIDDLE as u64)]);
    gpu.store(FAR, 1);
    // The buffer is too short.
    let result = gpu.vm().bind(&[
        Bind::unmap(FAR, MIDDLE as u64),
        Bind::bo(&bo, 0, FAR, PAGE as u64),
        Bind::bo(&bo, 0, FAR, 2 * PAGE as u64),
    ]);
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EINVAL));
    gpu.store(FAR, 1);
    expect("still nothing", &gpu, FAR, MIDDLE, |_| 0);
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_null", "Null bindings: reads give zeros, writes have no effect.");
    p.subtest("nothing-stays", "reads, stores, atomics and copies", nothing_stays);
    p.subtest("edges", "the pages beside, and the last page", edges);
    p.subtest("all", "half of all addresses, with a buffer here and there", all);
    p.subtest("over-a-mirror", "in place of a mirror", over_a_mirror);
    p.subtest("read-only", "a read-only binding", read_only);
    p.subtest("unbound", "a part is unbound", unbound);
    p.subtest("advised", "advice and prefetches", advised);
    p.subtest("long-running", "a VM without faults", long_running);
    p.subtest("conditions", "semaphores and registers", conditions);
    p.subtest("undone", "a failing array of binds", undone);
    p.main()
}
