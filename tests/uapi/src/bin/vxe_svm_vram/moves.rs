// SPDX-License-Identifier: GPL-2.0

//! To the device, and back.

use super::{Shape, SHAPES};
use std::sync::Barrier;
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    memory::Kind,
    skip,
    vram::{bring, counted, in_device, region, soon, touch},
    Gpu, Map, Program, CHUNK, MIDDLE, PAGE, SZ_2M,
};

/// What the GPU works on moves, all of it and no more, and comes back when the CPU looks.
fn fault(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let (chunk, kib) = (shape.chunk(), (map.len() / 1024) as u64);
    let there = counted(gpu.device(), || {
        bring(&gpu, map);
        // It is mapped, and stays where it is.
        touch(&gpu, map);
    });
    // What the GPU copies to may have moved, too.
    assert!(there["svm_device_copy_kb"] >= kib, "{} KiB copied", there["svm_device_copy_kb"]);
    gpu.run(|c| {
        for page in (0..map.len()).step_by(PAGE) {
            c.increment(map.at(page));
        }
    });
    let back = counted(gpu.device(), || {
        map.expect_word("the GPU's word", 0, pattern(0).wrapping_add(1));
    });
    assert_eq!(back["svm_cpu_copy_kb"], (chunk / 1024) as u64, "KiB copied back");
    assert_eq!(in_device(&gpu, map), map.len() - chunk, "bytes in the device's memory");
    map.expect("all that was there", |o| pattern(o).wrapping_add(u32::from(o % PAGE == 0)));
}

/// What was never written is not copied: it is zero on the device.
fn hole() {
    let gpu = Gpu::new();
    region(gpu.device());
    // What others left there.
    let before = region(gpu.device()).used;
    let others = Map::aligned(4 * SZ_2M, SZ_2M);
    others.fill(|_| !0);
    bring(&gpu, others);
    others.unmap();
    soon("the memory is given back", || region(gpu.device()).used <= before + SZ_2M as u64);
    let map = Map::aligned(SZ_2M, SZ_2M);
    let there = counted(gpu.device(), || {
        gpu.run(|c| {
            for page in (0..SZ_2M).step_by(PAGE) {
                c.increment(map.at(page + 8));
            }
        });
    });
    assert_eq!(in_device(&gpu, map), SZ_2M, "bytes in the device's memory");
    // What the GPU copied to before may move, but no more.
    let copied = there["svm_device_copy_kb"];
    assert!(copied <= 64, "{copied} KiB copied");
    map.expect("counted", |o| u32::from(o % PAGE == 8));
}

/// A page that somebody holds stays, alone, until it is let go.
fn pinned(shape: Shape) {
    /// How often the driver looks again at most.
    const LOOKS: u64 = 2;
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let pipe = super::memory::Pipe::new();
    pipe.lend(map.part(3 * PAGE, PAGE));
    let counts = counted(gpu.device(), || touch(&gpu, map));
    assert!(counts["svm_migrate_retry_count"] <= LOOKS, "tried in vain: {counts:?}");
    let held = match shape {
        // All of it is one page.
        Shape::Huge => map.len(),
        _ => PAGE,
    };
    assert_eq!(in_device(&gpu, map), map.len() - held, "bytes in the device's memory");
    gpu.run(|c| {
        for page in (0..map.len()).step_by(PAGE) {
            c.increment(map.at(page + 4));
        }
    });
    pipe.expect(|o| pattern(3 * PAGE + o).wrapping_add(u32::from(o == 4)));
    // So that the GPU looks again.
    map.protect(vxe_uapi::RO);
    map.protect(vxe_uapi::RW);
    bring(&gpu, map);
    map.expect("all", |o| pattern(o).wrapping_add(u32::from(o % PAGE == 4)));
}

/// Nobody even tries to move it, and it works where it is.
fn expect_to_stay(gpu: &Gpu, map: Map) {
    map.fill(pattern);
    let counts = counted(gpu.device(), || {
        gpu.run(|c| {
            for page in (0..map.len()).step_by(PAGE) {
                c.increment(map.at(page));
            }
        });
    });
    assert_eq!(in_device(gpu, map), 0, "bytes in the device's memory");
    assert_eq!(counts["svm_migrate_retry_count"], 0, "tried in vain: {counts:?}");
    map.expect("counted", |o| pattern(o).wrapping_add(u32::from(o % PAGE == 0)));
}

/// What is not private and anonymous stays where it is, though it is large enough.
fn stays(kind: Kind) {
    let gpu = Gpu::new();
    region(gpu.device());
    // Wherever it is, there is a middle chunk in it.
    kind.with(kind.length().max(4 * MIDDLE), &|map: Map| expect_to_stay(&gpu, map));
}

/// What is less than the smallest chunk that moves stays.
fn small() {
    if PAGE == CHUNK {
        skip!("a page is a chunk that moves");
    }
    let gpu = Gpu::new();
    region(gpu.device());
    expect_to_stay(&gpu, Map::aligned(CHUNK - PAGE, CHUNK));
}

/// Many threads touch memory of the device's at once: who waits for what another brings back sees it
/// as it was there.
fn threads(shape: Shape) {
    const THREADS: usize = 8;
    /// Half of them touch the same page, the others one each.
    fn word(thread: usize) -> usize {
        4 * thread + if thread % 2 == 0 { 0 } else { PAGE * thread }
    }
    let gpu = Gpu::new();
    region(gpu.device());
    for round in 0..iterations(6) {
        let map = shape.make();
        bring(&gpu, map);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let word = word(thread);
                    if thread % 4 < 2 {
                        map.expect_word("what was there", word, pattern(word));
                    }
                    map.write(word, round ^ thread as u32);
                });
            }
        });
        map.expect("all", |o| match (0..THREADS).find(|&thread| word(thread) == o) {
            Some(thread) => round ^ thread as u32,
            None => pattern(o),
        });
        map.unmap();
    }
}

/// CPU and GPU keep taking memory from each other: it comes to rest, and nothing is lost.
fn thrash(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let rounds = iterations(40);
    let counts = counted(gpu.device(), || {
        for round in 0..rounds {
            gpu.increment(map.at(PAGE));
            map.expect_word("the GPU's count", PAGE, pattern(PAGE).wrapping_add(round + 1));
            map.write(PAGE + 8, round);
        }
    });
    assert!(counts["svm_thrash_count"] > 0, "nothing was left in system memory: {counts:?}");
    let moves = counts["svm_cpu_copy_kb"] / (shape.chunk() / 1024) as u64;
    assert!(moves < u64::from(rounds) / 2, "{moves} moves in {rounds} rounds");
    map.expect("all", |o| match o {
        o if o == PAGE + 8 => rounds - 1,
        PAGE => pattern(o).wrapping_add(rounds),
        _ => pattern(o),
    });
}

/// The GPU copies between two pieces of its own memory and one of the system's.
fn copies() {
    let gpu = Gpu::new();
    region(gpu.device());
    let (a, b) = (Shape::Small.make(), Shape::LARGE.make());
    let file = vxe_uapi::memory::memfd(SZ_2M, 0);
    let shared = Map::file(&file, SZ_2M, vxe_uapi::RW, libc::MAP_SHARED);
    // Zeros would become the zero page, where a huge page is split, and need no memory there.
    b.fill(|_| 1);
    bring(&gpu, a);
    bring(&gpu, b);
    gpu.copy(a, b);
    gpu.copy(b, shared);
    shared.expect("copied twice", pattern);
    b.expect("copied once", pattern);
}

/// What is unmapped gives its part of the device's memory back, as does the end of the process.
fn freed() {
    let gpu = Gpu::new();
    let device = gpu.device();
    gpu.run(|c| _ = c.noop());
    let before = region(device).used;
    let map = Map::aligned(4 * SZ_2M, SZ_2M);
    map.fill(pattern);
    bring(&gpu, map);
    assert!(region(device).used >= before + 4 * SZ_2M as u64, "not counted");
    map.part(SZ_2M, SZ_2M).unmap();
    soon("a part is given back", || region(device).used <= before + 3 * SZ_2M as u64);
    map.unmap();
    soon("all is given back", || region(device).used <= before);
    vxe_uapi::process::fork(|_| {
        let gpu = Gpu::new();
        let map = Shape::LARGE.make();
        bring(&gpu, map);
    })
    .expect_success();
    soon("a process's is given back", || region(device).used <= before);
}

/// Nobody has the device any more; the memory is the process's still.
fn closed() {
    let map = Shape::Small.make();
    let gpu = Gpu::new();
    bring(&gpu, map);
    drop(gpu);
    map.part(MIDDLE, MIDDLE).fill(|o| pattern(MIDDLE + o) ^ 1);
    map.expect("all", |o| pattern(o) ^ u32::from(o / MIDDLE == 1));
}

pub fn subtests(p: &mut Program) {
    for (shape, name, about) in SHAPES {
        let sub = move |test: fn(Shape)| move || test(shape);
        p.subtest(format!("fault-{name}"), format!("there and back: {about}"), sub(fault));
        p.subtest(format!("pinned-{name}"), format!("a held page of {about}"), sub(pinned));
        p.subtest(format!("threads-{name}"), format!("many threads touch {about}"), sub(threads));
        p.subtest(format!("thrash-{name}"), format!("{about} goes to and fro"), sub(thrash));
    }
    for kind in [Kind::SharedAnonymous, Kind::FilePrivate, Kind::Hugetlb] {
        let (name, about) = (kind.name(), kind.about());
        p.subtest(format!("stays-{name}"), format!("{about} stays"), move || stays(kind));
    }
    p.subtest("stays-small", "what is too small stays", small);
    p.subtest("hole", "what was never written", hole);
    p.subtest("copies", "the GPU copies within its memory", copies);
    p.subtest("freed", "memory is given back", freed);
    p.subtest("closed", "nobody has the device any more", closed);
}

/// The device works, from a new file on.
#[track_caller]
pub fn works() {
    let gpu = Gpu::new();
    let map = Shape::Middle.make();
    bring(&gpu, map);
    gpu.increment(map.at(0));
    map.expect("counted", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    map.unmap();
}
