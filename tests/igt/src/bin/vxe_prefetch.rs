// SPDX-License-Identifier: GPL-2.0

//! Prefetch: memory is moved to where a program says, or was advised to live, and mapped there before
//! the GPU needs it.

use std::process::ExitCode;
use vxe_client::{Advice, AtomicAccess, Bind, Location, Migrate, Stats};
use vxe_igt::{
    memory::{memfd, transparent_huge},
    vram::{bring, buffer, counted, in_device, leave, region},
    Gpu, Map, Program, RW, SZ_2M, SZ_64K,
};

/// System memory, the device's, and what was advised.
const SYSTEM: i32 = 0;
const DEVICE: i32 = 1;
const ADVISED: i32 = -1;

fn pattern(offset: usize) -> u32 {
    (offset as u32).wrapping_mul(0x9e37_79b1) ^ 0x1234
}

fn filled(length: usize) -> Map {
    let map = Map::aligned(length, SZ_2M);
    map.fill(pattern);
    map
}

#[track_caller]
fn try_prefetch(gpu: &Gpu, map: Map, to: i32) -> Result<(), i32> {
    gpu.vm().bind(&[Bind::prefetch(map.at(0), map.len() as u64, to)]).map_err(|e| e.errno())
}

#[track_caller]
fn prefetch(gpu: &Gpu, map: Map, to: i32) -> Stats {
    counted(gpu.device(), || try_prefetch(gpu, map, to).expect("a prefetch"))
}

fn advise(gpu: &Gpu, map: Map, advice: Advice) {
    gpu.vm().madvise(map.at(0), map.len() as u64, advice).expect("advice");
}

/// A GPU on a device that has memory.
#[track_caller]
fn gpu() -> Gpu {
    let gpu = Gpu::new();
    region(gpu.device());
    gpu
}

/// To the device, which copies each byte once; and it is there.
fn to_device() {
    for map in [filled(4 * SZ_2M), filled(SZ_64K), transparent_huge(SZ_2M)] {
        map.fill(pattern);
        let gpu = gpu();
        let stats = prefetch(&gpu, map, DEVICE);
        assert_eq!(stats["svm_device_copy_kb"], map.len() as u64 / 1024, "KiB copied");
        assert_eq!(in_device(&gpu, map), map.len());
        // Again there is nothing to do.
        let stats = prefetch(&gpu, map, DEVICE);
        assert_eq!(stats["svm_device_copy_kb"], 0, "KiB copied for nothing");
        map.expect("prefetched", pattern);
    }
}

/// Back to system memory.
fn to_system() {
    let (gpu, map) = (gpu(), filled(2 * SZ_2M));
    bring(&gpu, map);
    let stats = prefetch(&gpu, map, SYSTEM);
    assert_eq!(stats["svm_cpu_copy_kb"], map.len() as u64 / 1024, "KiB copied");
    assert_eq!(in_device(&gpu, map), 0);
    let stats = counted(gpu.device(), || map.expect("prefetched", pattern));
    assert_eq!(stats["svm_cpu_copy_kb"], 0, "KiB copied for the CPU");
}

/// To where it was advised to live, each part by itself.
fn advised() {
    let (gpu, map) = (gpu(), filled(2 * SZ_2M));
    let (first, second) = (map.part(0, SZ_2M), map.part(SZ_2M, SZ_2M));
    advise(&gpu, first, Advice::Preferred(Location::System, Migrate::AllPages));
    prefetch(&gpu, map, ADVISED);
    assert_eq!((in_device(&gpu, first), in_device(&gpu, second)), (0, SZ_2M));
    advise(&gpu, first, Advice::Preferred(Location::Local, Migrate::AllPages));
    advise(&gpu, second, Advice::Preferred(Location::System, Migrate::AllPages));
    prefetch(&gpu, map, ADVISED);
    assert_eq!((in_device(&gpu, first), in_device(&gpu, second)), (SZ_2M, 0));
    // What is said here and now counts more.
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), 2 * SZ_2M);
    prefetch(&gpu, map, SYSTEM);
    assert_eq!(in_device(&gpu, map), 0);
    map.expect("prefetched", pattern);
}

/// Memory for the CPU's atomics does not go to the device on its own.
fn cpu_atomics() {
    let (gpu, map) = (gpu(), filled(SZ_2M));
    advise(&gpu, map, Advice::Atomic(AtomicAccess::Cpu));
    prefetch(&gpu, map, ADVISED);
    gpu.store(map.at(0), 1);
    assert_eq!(in_device(&gpu, map), 0);
    advise(&gpu, map, Advice::Atomic(AtomicAccess::Undefined));
    prefetch(&gpu, map, ADVISED);
    assert_eq!(in_device(&gpu, map), SZ_2M);
    map.expect_word("stored", 0, 1);
}

/// There is no room: it stays where it is, and is mapped there.
fn full() {
    let (gpu, map) = (gpu(), filled(SZ_2M));
    let hogs = leave(gpu.device(), 0);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), 0);
    gpu.increment(map.at(SZ_64K));
    map.expect_word("counted", SZ_64K, pattern(SZ_64K) + 1);
    drop(hogs);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), SZ_2M);
}

/// Shared memory and files live in system memory; they are mapped there.
fn shared() {
    let gpu = gpu();
    let map = Map::file(&memfd(SZ_2M, 0), SZ_2M, RW, libc::MAP_SHARED);
    map.fill(pattern);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), 0);
    gpu.increment(map.at(0));
    map.expect_word("counted", 0, pattern(0) + 1);
}

/// There are holes, memory that is not readable, and a buffer on the way.
fn holes() {
    let (gpu, map) = (gpu(), filled(4 * SZ_2M));
    let bo = buffer(gpu.device(), SZ_64K);
    map.part(0, SZ_64K).unmap();
    map.part(SZ_2M, SZ_2M).unmap();
    map.part(2 * SZ_2M, SZ_64K).protect(vxe_igt::NONE);
    gpu.vm().bind(&[Bind::bo(&bo, 0, map.at(SZ_2M), SZ_64K as u64)]).expect("a buffer");
    prefetch(&gpu, map, DEVICE);
    let last = map.part(3 * SZ_2M, SZ_2M);
    assert_eq!(in_device(&gpu, last), SZ_2M);
    last.expect("prefetched", |offset| pattern(offset + 3 * SZ_2M));
    // A region that there is not.
    assert_eq!(try_prefetch(&gpu, last, 2), Err(libc::EINVAL));
    assert_eq!(try_prefetch(&gpu, last, -2), Err(libc::EINVAL));
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_prefetch", "Memory is moved and mapped before it is needed.");
    p.subtest("to-device", "to the device's memory", to_device);
    p.subtest("to-system", "back to system memory", to_system);
    p.subtest("advised", "to where it was advised to live", advised);
    p.subtest("cpu-atomics", "not what is for the CPU's atomics", cpu_atomics);
    p.subtest("full", "there is no room", full);
    p.subtest("shared", "memory that stays where it is", shared);
    p.subtest("holes", "holes and a buffer on the way", holes);
    p.main()
}
