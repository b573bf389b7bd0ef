// SPDX-License-Identifier: GPL-2.0

//! The GPU goes on, however often the CPU changes its mappings of the same memory meanwhile.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use vxe_uapi::{Gpu, Map, Program, Stop, PAGE, RO, RW, SZ_2M};

/// Pages that a job touches, each once.
const PAGES: usize = 16;

/// Pages whose time is taken while nobody is in the way.
const ALONE: usize = 20;

/// How long jobs are counted while somebody is.
const BESIDE: Duration = Duration::from_secs(4);

/// How many times fewer pages the GPU may get through beside a thread that does nothing but change mappings.
const SLOWER: f64 = 50.0;

/// What the CPU does to memory, over and over, in a round of a number.
type Disturb = fn(Map, u32);

/// One job.
fn job(gpu: &Gpu, map: Map) {
    gpu.run(|c| {
        for page in 0..PAGES {
            c.increment(map.at(page * PAGE));
        }
    });
}

/// Pages a second, with the disturbance done before each by the same thread: the GPU faults on each, as it
/// may beside another thread, and nobody is in the way of that.
fn rate_alone(gpu: &Gpu, map: Map, disturb: Disturb) -> f64 {
    let mut took = Duration::ZERO;
    for page in 0..ALONE {
        // CAST: A small number.
        disturb(map, page as u32);
        let start = Instant::now();
        gpu.increment(map.at(page % PAGES * PAGE));
        took += start.elapsed();
    }
    ALONE as f64 / took.as_secs_f64()
}

/// Pages a second while another thread disturbs without a break, and how often it did.
fn rate_beside(gpu: &Gpu, map: Map, disturb: Disturb) -> (f64, u32) {
    let (stop, rounds) = (Stop::new(), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                disturb(map, rounds.fetch_add(1, Ordering::Relaxed));
            }
        });
        let _stop = stop.on_drop();
        let start = Instant::now();
        let mut pages = 0;
        while start.elapsed() < BESIDE {
            job(gpu, map);
            pages += PAGES;
        }
        let took = start.elapsed();
        (pages as f64 / took.as_secs_f64(), rounds.load(Ordering::Relaxed))
    })
}

fn progress(disturb: Disturb) {
    let gpu = Gpu::new();
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(|_| 0);
    job(&gpu, map);
    let alone = rate_alone(&gpu, map, disturb);
    let (beside, rounds) = rate_beside(&gpu, map, disturb);
    println!("{alone:.1} pages a second alone, {beside:.1} beside {rounds} disturbances");
    assert!(rounds > 0, "nothing was disturbed");
    assert!(beside * SLOWER >= alone, "{beside:.2} pages a second, and {alone:.2} alone");
}

/// The half that no job touches.
fn other(map: Map) -> Map {
    map.part(SZ_2M / 2, SZ_2M / 2)
}

fn guard(map: Map, _: u32) {
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    if let Err(e) = other(map).try_madvise(MADV_GUARD_INSTALL) {
        vxe_uapi::skip!("MADV_GUARD_INSTALL: {e}");
    }
    other(map).madvise(MADV_GUARD_REMOVE);
}

fn pageout(map: Map, _: u32) {
    map.madvise(libc::MADV_PAGEOUT);
}

fn dontneed(map: Map, _: u32) {
    other(map).write(0, 1);
    other(map).madvise(libc::MADV_DONTNEED);
}

/// The pages that jobs touch lose their contents as well.
fn dontneed_same(map: Map, _: u32) {
    map.madvise(libc::MADV_DONTNEED);
}

fn mprotect(map: Map, round: u32) {
    other(map).protect([RO, RW][round as usize % 2]);
}

fn munmap(map: Map, _: u32) {
    other(map).unmap();
    other(map).replace_anon(RW).write(0, 1);
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_progress",
        "The GPU goes on, however often the CPU changes its mappings.",
    );
    let disturbances: [(&str, &str, Disturb); 6] = [
        ("guard", "guard pages come and go beside", guard),
        ("pageout", "all is reclaimed", pageout),
        ("dontneed", "what is beside is discarded", dontneed),
        ("dontneed-same", "all is discarded", dontneed_same),
        ("mprotect", "what is beside is protected", mprotect),
        ("munmap", "what is beside is mapped anew", munmap),
    ];
    for (name, about, disturb) in disturbances {
        p.subtest(name, about, move || progress(disturb));
    }
    p.main()
}
