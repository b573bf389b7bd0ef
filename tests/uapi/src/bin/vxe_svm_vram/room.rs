// SPDX-License-Identifier: GPL-2.0

//! When there is less room than is wanted, and when the device goes.

use super::{Shape, SHAPES};
use std::time::Duration;
use vxe_client::{Bind, Stats, Vm};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::device,
    process::fork,
    skip,
    sysfs::{is_end, Provider, Slot},
    time::is_debug_kernel,
    vram::{
        bring, buffer, counted, counter, evict_all, in_device, leave, prefetch, region, soon,
        touch, try_buffer,
    },
    Gpu, Map, Program, Rng, Stop, MIDDLE, PAGE, SZ_2M,
};

/// What a device has, in MiB, and what is worked on: a third more.
const ROOM_MB: usize = 24;
const WORK: usize = 32 << 20;

/// More is worked on than the device has memory: the results are right, the faults not too many, and
/// all of it comes to an end.
fn more_than_fits(random: bool) {
    let provider = Provider::load(ROOM_MB);
    let device = provider.slot().open();
    assert_eq!(region(&device).total_size, (ROOM_MB as u64) << 20);
    let gpu = Gpu::on_device(&device);
    let map = Map::aligned(WORK, SZ_2M);
    let _ = map.try_madvise(libc::MADV_HUGEPAGE);
    let chunks = WORK / SZ_2M;
    // All pages, so that each chunk comes as one, also where there are no huge pages of 2 MiB.
    for page in (0..WORK).step_by(PAGE) {
        map.write(page + 4, (page / SZ_2M) as u32);
    }
    let passes = iterations(if random { 4 } else { 2 });
    let mut rng = Rng::from_environment();
    let mut wanted = vec![0u32; chunks];
    let counts = counted(&device, || {
        for _ in 0..passes {
            for chunk in 0..chunks {
                let chunk = if random { rng.below(chunks) } else { chunk };
                gpu.run(|c| {
                    c.increment(map.at(chunk * SZ_2M));
                    c.increment(map.at(chunk * SZ_2M + SZ_2M - PAGE));
                });
                wanted[chunk] += 1;
            }
        }
    });
    let came = wanted.iter().filter(|&&count| count != 0).count() as u64;
    let (faults, evicted) = (counts["svm_pagefault_count"], counts["svm_evict_count"]);
    println!("{came} chunks, {faults} faults, {evicted} evictions");
    // Each that came when there was no room pushed another out.
    let least = came.saturating_sub(((ROOM_MB << 20) / SZ_2M) as u64);
    assert!(evicted >= least, "not {least} evictions: {counts:?}");
    // What is there, or was left where it is, is mapped at once.
    let most = came + evicted + u64::from(passes) * chunks as u64 / 8;
    assert!(faults <= most, "{faults} faults, more than {most}");
    assert!(region(&device).used > (ROOM_MB as u64) << 19, "most of the memory is not used");
    for (chunk, &wanted) in wanted.iter().enumerate() {
        map.expect_word("the GPU's count", chunk * SZ_2M, wanted);
        map.expect_word("the GPU's count", chunk * SZ_2M + SZ_2M - PAGE, wanted);
        for page in (chunk * SZ_2M..(chunk + 1) * SZ_2M).step_by(PAGE) {
            map.expect_word("the CPU's word", page + 4, chunk as u32);
        }
    }
    drop((gpu, device));
    map.unmap();
    provider.slot().unbind();
    provider.remove();
}

/// Somebody else has all of it: work goes on in system memory.
fn full() {
    let gpu = Gpu::new();
    gpu.run(|c| _ = c.noop());
    let _hogs = leave(gpu.device(), 0);
    for shape in [Shape::Middle, Shape::Small, Shape::LARGE] {
        let map = shape.make();
        let counts = counted(gpu.device(), || {
            gpu.run(|c| {
                for page in (0..map.len()).step_by(PAGE) {
                    c.increment(map.at(page));
                }
            });
        });
        assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
        assert!(counts["svm_full_count"] > 0, "nothing was refused: {counts:?}");
        map.expect("all", |o| pattern(o).wrapping_add(u32::from(o % PAGE == 0)));
    }
}

/// There is room again: work goes back to it.
fn room_again() {
    let gpu = Gpu::new();
    let map = Shape::Small.make();
    let hogs = leave(gpu.device(), 0);
    touch(&gpu, map);
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
    drop(hogs);
    // So that the GPU looks again, at once.
    map.protect(vxe_uapi::RO);
    map.protect(vxe_uapi::RW);
    bring(&gpu, map);
    map.expect("all", pattern);
}

/// A buffer wants the room: what processes have there goes, with its contents.
fn buffers(shape: Shape) {
    let gpu = Gpu::new();
    let map = shape.make();
    bring(&gpu, map);
    gpu.increment(map.at(0));
    let counts = counted(gpu.device(), || evict_all(gpu.device()));
    assert!(counts["svm_evict_kb"] >= (map.len() / 1024) as u64, "evicted: {counts:?}");
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory");
    let value = |o| pattern(o).wrapping_add(u32::from(o == 0));
    // The GPU has it still.
    let to = Map::anon(map.len());
    gpu.copy(map, to);
    to.expect("what the GPU has", value);
    map.expect("what the CPU has", value);
}

/// The room that there is consists of pieces of 64 KiB: a huge page goes there all the same, split. So it is
/// for the child that has it as well.
fn in_pieces() {
    const ROOM: usize = 4 * SZ_2M;
    let gpu = Gpu::new();
    let mut hogs = leave(gpu.device(), ROOM);
    let large = hogs.count();
    while hogs.add(gpu.device(), MIDDLE).is_ok() {}
    let pieces = hogs.count() - large;
    assert!(pieces >= ROOM / MIDDLE, "{pieces} pieces");
    hogs.thin_out(large);
    for shared in [false, true] {
        let map = Shape::Huge.make();
        let child = shared.then(|| {
            fork(|link| {
                link.receive();
                map.expect("the child's", pattern);
            })
        });
        bring(&gpu, map);
        let to = Map::anon(map.len());
        gpu.copy(map, to);
        to.expect("what the GPU has", pattern);
        map.expect("what the CPU has", pattern);
        if let Some(child) = child {
            child.link().send(0);
            child.expect_success();
        }
        to.unmap();
        map.unmap();
    }
}

/// Who makes room dies in the middle of that: what was not in the way yet stays where it is, and nothing of
/// the device's memory is lost.
fn killed() {
    let count = if is_debug_kernel() { 256 } else { 4096 };
    let device = device();
    let region = region(&device);
    let map = Map::aligned(count * PAGE, SZ_2M);
    let _ = map.try_madvise(libc::MADV_NOHUGEPAGE);
    map.fill(pattern);
    // Mirrors of a page each that are not alike, so that each page comes as a block of its own.
    let mirror = |i: usize| {
        let bind = Bind::mirror(map.at(i * PAGE), PAGE as u64);
        if i % 2 == 0 {
            bind
        } else {
            bind.read_only()
        }
    };
    let vm = Vm::new(&device).expect("a VM");
    vm.bind(&(0..count).map(mirror).collect::<Vec<_>>()).expect("many mirrors");
    let used = || vxe_uapi::vram::region(&device).used;
    let all = region.used + map.len() as u64;
    let prefetch = Bind::prefetch(map.at(0), map.len() as u64, region.instance as i32);
    let evicted = || counter(&device, "svm_evict_count");
    // On a busy machine the signal may come too late.
    for _ in 0..10 {
        soon("all blocks are there", || {
            vm.bind(&[prefetch]).expect("a prefetch");
            used() >= all
        });
        let before = evicted();
        let child = fork(|link| {
            drop(try_buffer(&vxe_uapi::gpu::device(), region.total_size as usize));
            let _ = link.try_receive();
        });
        soon("blocks go", || evicted() > before);
        child.signal(libc::SIGKILL);
        let then = evicted() - before;
        child.wait();
        let gone = evicted() - before;
        println!("killed when {then} of {count} blocks were gone, and {gone} went");
        if then > count as u64 / 2 {
            continue;
        }
        // One may have been on its way.
        assert!(gone <= then + 1, "{gone} blocks went, and {then} before the signal");
        soon("all else is as it was", || used() == all - gone * PAGE as u64);
        // Others get all of it.
        drop(buffer(&device, region.total_size as usize));
        assert_eq!(evicted() - before, count as u64, "blocks that went");
        map.expect("all", pattern);
        drop(vm);
        map.unmap();
        return soon("all is given back", || used() <= region.used);
    }
    panic!("nobody was killed in the middle");
}

/// Ends what others do when it goes, however that comes.
/// It is evicted over and over, while the GPU works on it.
fn evicted_at_work() {
    const ROOM: usize = 2 * SZ_2M;
    /// How much is evicted, in KiB: all of it so many times.
    const ENOUGH: u64 = 4 * (SZ_2M as u64 / 1024);
    let gpu = Gpu::new();
    let device = gpu.device().clone();
    let hogs = leave(&device, ROOM);
    let map = Shape::Small.make();
    let evicted = || {
        let stats = Stats::read(&device).unwrap_or_else(|e| skip!("the counters: {e}"));
        stats["svm_cpu_copy_kb"]
    };
    let before = evicted();
    let is_enough = Stop::new();
    let other = gpu.another();
    let rounds = std::thread::scope(|scope| {
        let is_enough = &is_enough;
        let work = scope.spawn(move || {
            let mut rounds = 0;
            while !is_enough.is_set() {
                gpu.run(|c| {
                    for page in (0..map.len()).step_by(PAGE) {
                        c.increment(map.at(page));
                    }
                });
                rounds += 1;
            }
            rounds
        });
        let stop = is_enough.on_drop();
        soon("it is evicted so often", || {
            let _ = prefetch(&other, map);
            // All that is left: what the GPU works on is in the way. It may be back too soon.
            drop(try_buffer(&device, ROOM));
            evicted() >= before + ENOUGH || work.is_finished()
        });
        drop(stop);
        work.join().expect("the work")
    });
    drop(hogs);
    map.expect("all", |o| match o % PAGE {
        0 => pattern(o).wrapping_add(rounds),
        _ => pattern(o),
    });
}

/// What came first goes first.
fn oldest_first() {
    let gpu = Gpu::new();
    let _hogs = leave(gpu.device(), 3 * MIDDLE);
    let maps = [(); 5].map(|()| Shape::Middle.make());
    for (count, &map) in maps.iter().enumerate() {
        // What came just now is left alone.
        std::thread::sleep(Duration::from_millis(30));
        bring(&gpu, map);
        let there = maps.map(|map| in_device(&gpu, map) != 0);
        assert_eq!(there, [0, 1, 2, 3, 4].map(|i| i <= count && count < i + 3), "who is there");
    }
    maps.iter().for_each(|map| map.expect("all", pattern));
}

/// Several processes want all of it.
fn processes() {
    let gpu = Gpu::new();
    let hogs = leave(gpu.device(), 4 * SZ_2M);
    let rounds = iterations(3);
    let children: Vec<_> = (0..4u32)
        .map(|child| {
            vxe_uapi::process::fork(move |_| {
                let gpu = Gpu::new();
                let map = Map::aligned(2 * SZ_2M, SZ_2M);
                map.fill(|o| pattern(o) ^ child);
                for _ in 0..rounds {
                    for chunk in (0..map.len()).step_by(MIDDLE) {
                        gpu.increment(map.at(chunk));
                    }
                }
                map.expect("its own", |o| {
                    (pattern(o) ^ child).wrapping_add(if o % MIDDLE == 0 { rounds } else { 0 })
                });
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.expect_success());
    drop(hogs);
}

/// The device is taken away: the process has all of its memory.
fn unbound(shape: Shape) {
    let slot = Slot::first();
    let gpu = Gpu::new();
    let before = region(gpu.device()).used;
    let map = shape.make();
    bring(&gpu, map);
    gpu.increment(map.at(4));
    slot.unbind();
    map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == 4)));
    slot.bind();
    let again = Gpu::new();
    bring(&again, map);
    again.increment(map.at(8));
    map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == 4 || o == 8)));
    map.unmap();
    drop(gpu);
    soon("all is given back", || region(again.device()).used <= before.max(2 * SZ_2M as u64));
}

/// The device is taken away while memory is on its way to and fro.
fn unbound_at_work() {
    let slot = Slot::first();
    let map = Shape::Small.make();
    for round in 0..iterations(10) {
        let gpu = Gpu::new();
        std::thread::scope(|scope| {
            let work = scope.spawn(move || loop {
                // It ends with the device.
                if let Err(e) = gpu.try_run(|c| _ = c.copy(map.at(0), map.at(MIDDLE), MIDDLE)) {
                    assert!(is_end(&e), "{e}");
                    break;
                }
                map.write(MIDDLE, round);
                map.part(0, MIDDLE).expect("what nobody writes", pattern);
            });
            std::thread::sleep(Duration::from_millis(u64::from(5 + 7 * (round % 5))));
            slot.unbind();
            work.join().expect("the work");
        });
        map.part(0, MIDDLE).expect("what nobody writes", pattern);
        map.part(2 * MIDDLE, SZ_2M - 2 * MIDDLE).expect("the rest", |o| pattern(2 * MIDDLE + o));
        slot.bind();
    }
    super::moves::works();
}

pub fn subtests(p: &mut Program) {
    p.subtest("more-in-turn", "32 MiB of work on a device of 24 MiB", || more_than_fits(false));
    p.subtest("more-at-random", "the same, in no order", || more_than_fits(true));
    p.subtest("full", "there is no room", full);
    p.subtest("room-again", "there is room again", room_again);
    p.subtest("room-in-pieces", "there is room for a huge page in pieces", in_pieces);
    p.subtest("room-killed", "who makes room is killed", killed);
    p.subtest("evict-at-work", "it is evicted while the GPU works", evicted_at_work);
    p.subtest("oldest-first", "what came first goes first", oldest_first);
    p.subtest("processes", "several processes in too little room", processes);
    for (shape, name, about) in SHAPES {
        p.subtest(format!("buffers-{name}"), format!("{about} make room"), move || buffers(shape));
        p.subtest(format!("unbind-{name}"), format!("the device goes with {about}"), move || {
            unbound(shape)
        });
    }
    p.subtest("unbind-at-work", "the device goes while memory moves", unbound_at_work);
}
