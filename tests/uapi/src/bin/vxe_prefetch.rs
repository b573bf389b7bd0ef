// SPDX-License-Identifier: GPL-2.0

//! Prefetch: memory is moved to where a program says, or was advised to live, and mapped there before
//! the GPU needs it.

use std::{cell::Cell, process::ExitCode, sync::atomic::Ordering, thread};
use vxe_client::{Advice, AtomicAccess, Bind, Bo, Location, Migrate, Stats};
use vxe_uapi::{
    contents::{filled, pattern},
    failure::Failures,
    memory::{large, memfd},
    vram::{bring, buffer, counted, in_device, leave, mapped, region},
    Gpu, Map, Program, Stop, MIDDLE, RW, SZ_2M,
};

/// System memory, the device's, and what was advised.
const SYSTEM: i32 = 0;
const DEVICE: i32 = 1;
const ADVISED: i32 = -1;

#[track_caller]
fn try_prefetch(gpu: &Gpu, map: Map, to: i32) -> Result<(), i32> {
    gpu.vm().bind(&[Bind::prefetch(map.at(0), map.len() as u64, to)]).map_err(|e| e.errno())
}

#[track_caller]
fn prefetch(gpu: &Gpu, map: Map, to: i32) -> Stats {
    counted(gpu.device(), || try_prefetch(gpu, map, to).expect("a prefetch"))
}

/// The GPU uses what is there without a fault.
#[track_caller]
fn expect_mapped(gpu: &Gpu, map: Map) {
    expect_faults(gpu, map, 0);
}

/// The GPU uses what is there with so many faults at the most.
#[track_caller]
fn expect_faults(gpu: &Gpu, map: Map, most: u64) {
    let sink = Map::anon(vxe_uapi::PAGE);
    // So that all but the prefetched memory is mapped.
    gpu.copy(sink.part(0, 256), sink.part(256, 256));
    let stats = counted(gpu.device(), || {
        gpu.run(|c| {
            for offset in (0..map.len()).step_by(MIDDLE) {
                c.copy(map.at(offset), sink.at(0), 256);
            }
        });
    });
    // The job's batch may be on a page that the one before was not on.
    let faults = stats["svm_pagefault_count"];
    assert!(faults <= most + 1, "{faults} faults on what was prefetched");
    sink.unmap();
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
    for map in [filled(4 * SZ_2M), filled(MIDDLE), large()] {
        map.fill(pattern);
        let gpu = gpu();
        let stats = prefetch(&gpu, map, DEVICE);
        assert_eq!(stats["svm_device_copy_kb"], map.len() as u64 / 1024, "KiB copied");
        assert_eq!(in_device(&gpu, map), map.len());
        expect_mapped(&gpu, map);
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
    expect_mapped(&gpu, map);
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
    let (gpu, map) = (gpu(), filled(4 * SZ_2M));
    let hogs = leave(gpu.device(), 0);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), 0);
    // Some of what was refused is looked at again, and mapped by a fault; the rest causes none.
    expect_faults(&gpu, map, (map.len() / MIDDLE / 8) as u64);
    gpu.increment(map.at(MIDDLE));
    map.expect_word("counted", MIDDLE, pattern(MIDDLE) + 1);
    drop(hogs);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), map.len());
}

/// Shared memory and files live in system memory; they are mapped there.
fn shared() {
    let gpu = gpu();
    let map = Map::file(&memfd(SZ_2M, 0), SZ_2M, RW, libc::MAP_SHARED);
    map.fill(pattern);
    prefetch(&gpu, map, DEVICE);
    assert_eq!(in_device(&gpu, map), 0);
    expect_mapped(&gpu, map);
    gpu.increment(map.at(0));
    map.expect_word("counted", 0, pattern(0) + 1);
}

/// There are holes, memory that is not readable, and a buffer on the way.
fn holes() {
    let (gpu, map) = (gpu(), filled(4 * SZ_2M));
    let bo = buffer(gpu.device(), MIDDLE);
    map.part(0, MIDDLE).unmap();
    map.part(SZ_2M, SZ_2M).unmap();
    map.part(2 * SZ_2M, MIDDLE).protect(vxe_uapi::NONE);
    gpu.vm().bind(&[Bind::bo(&bo, 0, map.at(SZ_2M), MIDDLE as u64)]).expect("a buffer");
    prefetch(&gpu, map, DEVICE);
    let last = map.part(3 * SZ_2M, SZ_2M);
    assert_eq!(in_device(&gpu, last), SZ_2M);
    last.expect("prefetched", |offset| pattern(offset + 3 * SZ_2M));
    // A region that there is not.
    assert_eq!(try_prefetch(&gpu, last, 2), Err(libc::EINVAL));
    assert_eq!(try_prefetch(&gpu, last, -2), Err(libc::EINVAL));
}

/// What a call says that cannot be had, and what it does not say.
fn errors() {
    let (gpu, map) = (gpu(), filled(2 * SZ_2M));
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let mapping = bo.map().expect("its memory");
    let of_device = Map::existing(mapping.address() as usize, MIDDLE);
    assert_eq!(try_prefetch(&gpu, of_device, SYSTEM), Err(libc::EIO), "a device's memory");
    assert_eq!(try_prefetch(&gpu, of_device, DEVICE), Err(libc::EIO), "a device's memory");
    // A call that binds says whether that was done.
    let at = map.at(0);
    let both = [
        Bind::bo(&bo, 0, at, MIDDLE as u64),
        Bind::prefetch(of_device.at(0), MIDDLE as u64, SYSTEM),
    ];
    gpu.vm().bind(&both).expect("a bind, and advice");
    gpu.store(at, 5);
    assert_eq!(mapping.words()[0].load(Ordering::Acquire), 5);
    // What may not be read, or is not there, is left out; the rest is had.
    map.part(SZ_2M, MIDDLE).protect(vxe_uapi::NONE);
    assert_eq!(try_prefetch(&gpu, map.part(SZ_2M, MIDDLE), DEVICE), Ok(()), "no rights");
    assert_eq!(try_prefetch(&gpu, map.part(SZ_2M, SZ_2M), DEVICE), Ok(()), "rights to a part");
    map.part(SZ_2M, SZ_2M).unmap();
    assert_eq!(try_prefetch(&gpu, map.part(SZ_2M, SZ_2M), DEVICE), Ok(()), "nothing there");
    map.part(0, SZ_2M).protect(vxe_uapi::RO);
    assert_eq!(try_prefetch(&gpu, map.part(MIDDLE, MIDDLE), DEVICE), Ok(()), "to be read only");
    assert_eq!(in_device(&gpu, map.part(MIDDLE, MIDDLE)), MIDDLE);
}

/// While a large piece of memory is copied, faults of another VM are serviced, with copies of their own.
fn beside_faults() {
    // A busy machine may not run the other thread in time.
    assert!(
        (0..5).any(|_| serviced_beside() > 0),
        "no fault was serviced while 10 MiB were copied"
    );
}

/// How many faults are serviced while 10 MiB are copied, after the first 2.
fn serviced_beside() -> u32 {
    let (gpu, map) = (gpu(), filled(6 * SZ_2M));
    let small: Vec<_> = (0..16).map(|_| filled(MIDDLE)).collect();
    let copied = || Stats::read(gpu.device()).expect("the counters")["svm_device_copy_kb"];
    let (before, done) = (copied(), Stop::new());
    let mut serviced = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let guard = done.on_drop();
            let gpu = Gpu::new();
            let stats = prefetch(&gpu, map, DEVICE);
            drop(guard);
            assert!(stats["svm_device_copy_kb"] >= map.len() as u64 / 1024, "KiB copied");
        });
        // The first of it is copied.
        while copied() == before && !done.is_set() {
            thread::yield_now();
        }
        for map in &small {
            gpu.store(map.at(0), 7);
            if done.is_set() {
                break;
            }
            serviced += 1;
        }
    });
    map.expect("prefetched", pattern);
    serviced
}

/// Each allocation fails once: the call says so if nothing is mapped, and nothing is lost.
fn no_memory() {
    let failures = Failures::new();
    let gpu = gpu();
    let revisits = || Stats::read(gpu.device()).expect("the counters")["svm_revisit_count"];
    let before = Cell::new(0);
    for to in [DEVICE, SYSTEM] {
        let met = failures.each(
            || {
                before.set(revisits());
                let map = filled(MIDDLE);
                if to == SYSTEM {
                    try_prefetch(&gpu, map, DEVICE).expect("a prefetch");
                    assert_eq!(in_device(&gpu, map), MIDDLE);
                }
                map
            },
            |map| gpu.vm().bind(&[Bind::prefetch(map.at(0), MIDDLE as u64, to)]),
            |map, error| {
                match error {
                    Some(e) => assert_eq!(e.errno(), libc::ENOMEM, "{e}"),
                    None => {
                        let mapped = mapped(&gpu, map);
                        // What could not move is unmapped after a while, to be looked at again.
                        let is_revisited = revisits() != before.get();
                        assert!(mapped == MIDDLE || is_revisited, "{mapped} bytes, and no error");
                    }
                }
                gpu.increment(map.at(0));
                map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == 0)));
                map.unmap();
            },
        );
        assert!(met.errors > 0, "no failure was told");
    }
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
    p.subtest("errors", "what cannot be had", errors);
    p.subtest("beside-faults", "while faults are serviced", beside_faults);
    p.subtest("no-memory", "each allocation fails once", no_memory);
    p.main()
}
