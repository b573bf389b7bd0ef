// SPDX-License-Identifier: GPL-2.0

//! The CPU changes its mind about memory while the GPU works on it.
//!
//! Where the memory that the GPU uses stays valid throughout, every increment must be there in the
//! end, whatever goes on around it. Where it does not, the GPU may fail, but nothing else may be
//! touched.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};
use vxe_client::{Bind, Bo};
use vxe_igt::{
    env::iterations,
    memory::{memfd, transparent_huge},
    process::fork,
    Gpu, Map, Program, Rng, NONE, PAGE, RO, RW, SZ_2M, SZ_64K,
};

/// Increments in a job.
const PER_JOB: u32 = 64;

/// What happens in the meantime, over and over.
type Meanwhile = fn(Map, u32);

/// The GPU counts in `counter` while something happens to `other`; then the count must be right.
fn count_while(counter: u64, read: impl Fn() -> u32, mut disturb: impl FnMut(u32)) {
    let gpu = Gpu::new();
    let jobs = iterations(25);
    let done = AtomicBool::new(false);
    let rounds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..jobs {
                    gpu.run(|c| {
                        for _ in 0..PER_JOB {
                            c.increment(counter);
                        }
                    });
                }
            }));
            done.store(true, Ordering::Release);
            result.expect("the GPU's work");
        });
        while !done.load(Ordering::Acquire) {
            disturb(rounds.fetch_add(1, Ordering::Relaxed));
        }
    });
    println!("{} disturbances", rounds.into_inner());
    assert_eq!(read(), jobs * PER_JOB, "increments");
}

/// The other half of the chunk that the GPU counts in is disturbed.
fn neighbour(size: usize, huge: bool, meanwhile: Meanwhile) {
    let map = if huge { transparent_huge(size) } else { Map::aligned(size, SZ_2M) };
    let half = size / 2;
    let other = map.part(half, half);
    count_while(map.at(half - 4), || map.read(half - 4), |round| meanwhile(other, round));
}

fn munmap(map: Map, _: u32) {
    map.unmap();
    map.replace_anon(RW).write(0, 1);
}

fn mprotect(map: Map, round: u32) {
    map.protect([RO, NONE, RW][round as usize % 3]);
}

fn dontneed(map: Map, _: u32) {
    map.write(0, 1);
    map.madvise(libc::MADV_DONTNEED);
}

fn mremap(map: Map, _: u32) {
    let moved = Map::anon(map.len());
    map.write(0, 1);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    map.remap(map.len(), flags, Some(moved)).unmap();
    map.replace_anon(RW);
}

fn file_over(map: Map, _: u32) {
    map.replace_file(&memfd(map.len(), 0), RW, libc::MAP_SHARED).write(0, 1);
}

/// What happens to the very memory that the GPU counts in, without making it invalid.
fn same(meanwhile: Meanwhile) {
    let map = Map::aligned(SZ_64K, SZ_64K);
    count_while(map.at(PAGE), || map.read(PAGE), |round| meanwhile(map, round));
}

fn forks(map: Map, _: u32) {
    fork(move |_| map.fill(|_| 0xdead_dead)).expect_success();
}

fn reads(map: Map, _: u32) {
    map.read(PAGE);
    std::thread::yield_now();
}

/// Pages are moved in physical memory.
fn compaction(_: Map, _: u32) {
    if let Err(e) = std::fs::write("/proc/sys/vm/compact_memory", "1") {
        vxe_igt::skip!("compact_memory: {e}");
    }
}

fn pageout(map: Map, _: u32) {
    map.madvise(libc::MADV_PAGEOUT);
}

fn cold(map: Map, _: u32) {
    map.madvise(libc::MADV_COLD);
}

fn same_page_merging(map: Map, round: u32) {
    map.madvise([libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE][round as usize % 2]);
    std::thread::sleep(Duration::from_millis(2));
}

/// A huge page is made of small ones and split again.
fn collapse() {
    let map = transparent_huge(SZ_2M);
    let one = map.part(SZ_2M / 2, PAGE);
    count_while(
        map.at(0),
        || map.read(0),
        |_| {
            one.protect(RO);
            one.protect(RW);
            // Fails now and then, as it may.
            let _ = map.try_madvise(libc::MADV_COLLAPSE);
        },
    );
}

/// The CPU counts in the same word, and the process forks.
fn both_count() {
    let map = Map::aligned(SZ_64K, SZ_64K);
    let word = map.atomic(PAGE);
    let by_cpu = AtomicU32::new(0);
    count_while(
        map.at(PAGE),
        || map.read(PAGE) - by_cpu.load(Ordering::Relaxed),
        |round| {
            for _ in 0..50 {
                word.fetch_add(1, Ordering::Relaxed);
                by_cpu.fetch_add(1, Ordering::Relaxed);
            }
            if round % 4 == 0 {
                forks(map, round);
            }
        },
    );
}

/// A word is discarded while the GPU counts in it: it may lose counts, and must not fail.
fn discarded_while_counting() {
    let gpu = Gpu::new();
    let map = Map::aligned(SZ_64K, SZ_64K);
    let jobs = iterations(20);
    for _ in 0..jobs {
        let job = gpu.start(|c| {
            for page in 0..16 {
                c.increment(map.at(page * PAGE));
            }
        });
        map.madvise(libc::MADV_DONTNEED);
        job.expect("a job").wait().expect("valid memory throughout");
    }
    for page in 0..16 {
        assert!(map.read(page * PAGE) <= jobs, "counted too often");
    }
}

/// The memory goes away under the GPU. The GPU may fail; what is mapped next must not suffer.
fn unmapped_in_flight(size: usize) {
    let mut gpu = Gpu::new();
    let map = Map::aligned(size, SZ_2M);
    let (mut failed, rounds) = (0, iterations(12));
    for round in 0..rounds {
        map.replace_anon(RW);
        let result = {
            let job = gpu.start(|c| {
                for i in 0..PER_JOB as usize {
                    c.store(map.at(i % 16 * PAGE), 0xbad0_0000 | round);
                }
            });
            std::thread::sleep(Duration::from_micros(u64::from(round) * 50));
            map.unmap();
            // Likely the same pages, now somebody else's.
            let other = Map::anon(SZ_64K);
            other.fill(|o| o as u32);
            let result = job.expect("a job").wait();
            other.expect("somebody else's memory", |o| o as u32);
            other.unmap();
            result
        };
        if let Err(e) = result {
            assert_eq!(e.errno(), libc::EIO, "{e}");
            failed += 1;
            gpu.renew();
        }
    }
    println!("{failed} of {rounds} jobs failed");
}

/// The right to write comes and goes under the GPU: the contents are either old or new.
fn protected_in_flight() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(SZ_64K, SZ_64K);
    for round in 1..=iterations(12) {
        let before = map.read(15 * PAGE);
        let result = {
            let job = gpu.start(|c| {
                for page in 0..16 {
                    c.store(map.at(page * PAGE), round);
                }
            });
            map.protect(RO);
            let frozen: Vec<u32> = (0..16).map(|page| map.read(page * PAGE)).collect();
            let result = job.expect("a job").wait();
            // From mprotect's return on, nothing changes.
            for (page, &value) in frozen.iter().enumerate() {
                map.expect_word("read-only memory changed", page * PAGE, value);
            }
            result
        };
        map.protect(RW);
        match result {
            Ok(()) => map.expect_word("all stored", 15 * PAGE, round),
            Err(e) => {
                assert_eq!(e.errno(), libc::EIO, "{e}");
                map.expect_word("the last not stored", 15 * PAGE, before);
                gpu.renew();
            }
        }
    }
}

/// Many threads fault at once, each in a place of its own.
fn threads_fault(
    threads: usize,
    rounds: u32,
    place: impl Fn(usize) -> usize + Sync,
    length: usize,
) {
    let main = Gpu::new();
    let map = Map::aligned(length, SZ_2M);
    let gpus: Vec<Gpu> = (0..threads).map(|_| main.another()).collect();
    for round in 1..=iterations(rounds) {
        map.replace_anon(RW);
        let start = std::sync::Barrier::new(threads);
        std::thread::scope(|scope| {
            let mut handles = Vec::new();
            // A queue is handed to its thread and comes back with it.
            for (i, gpu) in gpus.iter().map(Handed).enumerate() {
                let (start, place) = (&start, &place);
                handles.push(scope.spawn(move || {
                    let gpu = { gpu }.0;
                    start.wait();
                    gpu.store(map.at(place(i)), (round << 8) | i as u32);
                }));
            }
            handles.into_iter().for_each(|h| h.join().expect("a thread"));
        });
        for i in 0..threads {
            map.expect_word("stored", place(i), (round << 8) | i as u32);
        }
    }
}

/// A borrowed [`Gpu`] that one thread at a time uses.
struct Handed<'a>(&'a Gpu);

// SAFETY: each is handed to exactly one thread, whose end the owner awaits.
unsafe impl Send for Handed<'_> {}

/// Threads map, use and unmap memory of their own, all in one VM.
fn threads_churn() {
    let main = Gpu::new();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let gpu = main.another();
            scope.spawn(move || {
                let mut rng = Rng::new(thread.into());
                for round in 0..iterations(8) {
                    let length = (1 + rng.below(40)) * PAGE;
                    let map = Map::anon(length);
                    let value = (thread << 16) | round;
                    gpu.run(|c| {
                        for page in (0..length).step_by(PAGE) {
                            c.store(map.at(page), value);
                        }
                    });
                    map.expect("its own", |o| if o % PAGE == 0 { value } else { 0 });
                    map.unmap();
                }
            });
        }
    });
}

/// Buffers are bound and unbound next to where the GPU counts.
fn binds_around() {
    let gpu = Gpu::new();
    let room = Map::aligned(SZ_2M, SZ_2M);
    let bo = Bo::system(gpu.device(), SZ_64K).expect("a buffer");
    let other = room.part(SZ_2M / 2, SZ_64K);
    let vm = gpu.vm().clone();
    let counter = room.at(0);
    let worker = gpu.another();
    let jobs = iterations(40);
    // The first fault finds the buffer, so that no mirrored chunk ever gets in its way.
    vm.bind(&[Bind::bo(&bo, 0, other.at(0), SZ_64K as u64)]).expect("bind");
    gpu.increment(counter);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..jobs {
                worker.increment(counter);
            }
        });
        for _ in 0..iterations(30) {
            vm.bind(&[Bind::bo(&bo, 0, other.at(0), SZ_64K as u64)]).expect("bind");
            vm.bind(&[Bind::mirror(other.at(0), SZ_64K as u64)]).expect("mirror");
        }
    });
    room.expect_word("counted", 0, jobs + 1);
}

/// The CPU writes words that a GPU copy passes over: each copied word is the old or the new one.
fn copy_while_writing() {
    let gpu = Gpu::new();
    let (from, to) = (Map::aligned(SZ_64K, SZ_64K), Map::aligned(SZ_64K, SZ_64K));
    for round in 1..=iterations(20) {
        let job = gpu.start(|c| _ = c.copy(from.at(0), to.at(0), SZ_64K)).expect("a job");
        from.fill(|_| round);
        job.wait().expect("the copy");
        for offset in (0..SZ_64K).step_by(4) {
            let word = to.read(offset);
            assert!(word == round || word == round - 1, "{word:#x} in round {round}");
        }
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_race",
        "The CPU changes its mind about memory while the GPU works on it.",
    );
    let neighbours: [(&str, Meanwhile); 5] = [
        ("munmap", munmap),
        ("mprotect", mprotect),
        ("dontneed", dontneed),
        ("mremap", mremap),
        ("file", file_over),
    ];
    for (name, meanwhile) in neighbours {
        for (size_name, size, huge) in
            [("64k", SZ_64K, false), ("2m", SZ_2M, false), ("thp", SZ_2M, true)]
        {
            if huge && (name == "mremap" || name == "file") {
                continue;
            }
            p.subtest(
                format!("neighbour-{name}-{size_name}"),
                "the other half of the chunk changes",
                move || neighbour(size, huge, meanwhile),
            );
        }
    }
    let sames: [(&str, Meanwhile); 6] = [
        ("fork", forks),
        ("cpu-reads", reads),
        ("compaction", compaction),
        ("pageout", pageout),
        ("cold", cold),
        ("ksm", same_page_merging),
    ];
    for (name, meanwhile) in sames {
        p.subtest(format!("same-{name}"), "no increment is lost", move || same(meanwhile));
    }
    p.subtest("thp-collapse", "a huge page is split and made again", collapse);
    p.subtest("both-count", "CPU and GPU count in a process that forks", both_count);
    p.subtest("same-dontneed", "counts may be lost, nothing may fail", discarded_while_counting);
    for (name, size) in [("64k", SZ_64K), ("2m", SZ_2M)] {
        p.subtest(
            format!("munmap-in-flight-{name}"),
            "the memory goes away under the GPU",
            move || unmapped_in_flight(size),
        );
    }
    p.subtest("mprotect-in-flight", "rights come and go under the GPU", protected_in_flight);
    p.subtest("threads-one-page", "many threads fault on one page", || {
        threads_fault(8, 3, |i| i * 64, SZ_64K)
    });
    p.subtest("threads-one-chunk", "many threads fault in one chunk", || {
        threads_fault(8, 2, |i| i * SZ_2M / 8, SZ_2M)
    });
    p.subtest("threads-many-chunks", "many threads fault in as many chunks", || {
        threads_fault(6, 1, |i| i * SZ_2M, 6 * SZ_2M)
    });
    p.subtest("threads-churn", "threads map and unmap", threads_churn);
    p.subtest("binds-around", "binds next to where the GPU works", binds_around);
    p.subtest("copy-while-writing", "the CPU writes what the GPU copies", copy_while_writing);
    p.main()
}
