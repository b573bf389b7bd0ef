// SPDX-License-Identifier: GPL-2.0

//! The CPU changes its mind about memory while the GPU works on it.
//!
//! Where the memory that the GPU uses stays valid throughout, every increment must be there in the
//! end, whatever goes on around it. Where it does not, the GPU may fail, but nothing else may be
//! touched. A race in which nothing met the GPU is none: each subtest has something that must have been
//! counted meanwhile.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};
use vxe_client::{Bind, Bo};
use vxe_uapi::{
    env::iterations,
    memory::{memfd, smaps, transparent_huge, vmstat, Merging, Swap},
    process::fork,
    vram::{counter, keep_out, soon},
    Gpu, Job, Map, Program, Rng, Stop, MIDDLE, NONE, PAGE, RO, RW, SZ_2M,
};

/// Increments in a job.
const PER_JOB: u32 = 64;

/// How long a race may last in which nothing has met the GPU yet.
const LONG: Duration = Duration::from_secs(25);

/// What happens in the meantime, over and over. Says whether the memory can be written to afterwards.
type Meanwhile = fn(Map, u32) -> bool;

/// What the device counts when the CPU takes back what the GPU has mapped.
const INVALIDATIONS: &str = "svm_tlb_inval_count";

fn invalidations(gpu: &Gpu) -> u64 {
    counter(gpu.device(), INVALIDATIONS)
}

/// The GPU counts in `word` while something happens, and until that has met it: `count` says how often.
/// Then the count must be right.
fn count_while(
    gpu: &Gpu,
    word: u64,
    read: impl Fn() -> u32,
    count: impl Fn(&Gpu) -> u64,
    mut disturb: impl FnMut(u32),
) {
    let worker = gpu.another();
    let (wanted, start) = (iterations(25), Instant::now());
    let (met, jobs) = (AtomicBool::new(false), AtomicU32::new(0));
    let done = Stop::new();
    let (mut rounds, before) = (0, count(gpu));
    std::thread::scope(|scope| {
        let (met, jobs, done) = (&met, &jobs, &done);
        scope.spawn(move || {
            let goes_on = || {
                jobs.load(Ordering::Relaxed) < wanted
                    || !met.load(Ordering::Relaxed) && start.elapsed() < LONG
            };
            let _done = done.on_drop();
            while goes_on() {
                worker.run(|c| (0..PER_JOB).for_each(|_| _ = c.increment(word)));
                jobs.fetch_add(1, Ordering::Relaxed);
            }
        });
        // What the GPU has not mapped yet cannot be taken from it.
        while jobs.load(Ordering::Relaxed) == 0 && !done.is_set() {
            std::thread::yield_now();
        }
        while !done.is_set() {
            disturb(rounds);
            rounds += 1;
            met.store(count(gpu) > before, Ordering::Relaxed);
        }
    });
    let times = count(gpu) - before;
    println!("{} jobs, {rounds} disturbances, met {times} times", jobs.load(Ordering::Relaxed));
    assert!(times > 0, "nothing was disturbed");
    assert_eq!(read(), jobs.into_inner() * PER_JOB, "increments");
}

/// The other half of the chunk that the GPU counts in is disturbed: at first as a part of the same mapping of
/// the GPU's, and then as one that it makes again each time.
fn neighbour(size: usize, huge: bool, meanwhile: Meanwhile) {
    let gpu = Gpu::new();
    let map = if huge { transparent_huge(size) } else { Map::aligned(size, SZ_2M) };
    let half = size / 2;
    let other = map.part(half, half);
    let read = || map.read(half - 4);
    count_while(&gpu, map.at(half - 4), read, invalidations, |round| {
        if meanwhile(other, round) {
            gpu.store(other.at(0), round);
        }
    });
}

fn munmap(map: Map, _: u32) -> bool {
    map.unmap();
    map.replace_anon(RW).write(0, 1);
    true
}

fn mprotect(map: Map, round: u32) -> bool {
    let protection = [RO, NONE, RW][round as usize % 3];
    map.protect(protection);
    protection == RW
}

fn dontneed(map: Map, _: u32) -> bool {
    map.write(0, 1);
    map.madvise(libc::MADV_DONTNEED);
    true
}

fn mremap(map: Map, _: u32) -> bool {
    let moved = Map::anon(map.len());
    map.write(0, 1);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    map.remap(map.len(), flags, Some(moved)).unmap();
    map.replace_anon(RW);
    true
}

fn file_over(map: Map, _: u32) -> bool {
    map.replace_file(&memfd(map.len(), 0), RW, libc::MAP_SHARED).write(0, 1);
    true
}

/// Something happens to the very memory that the GPU counts in, without making it invalid.
fn same(gpu: &Gpu, map: Map, count: impl Fn(&Gpu) -> u64, disturb: impl FnMut(u32)) {
    count_while(gpu, map.at(PAGE), || map.read(PAGE), count, disturb);
}

fn child_writes(map: Map, _: u32) {
    fork(move |_| map.fill(|_| 0xdead_dead)).expect_success();
}

/// The process forks, and its child writes: what both have is to be read only for a while.
fn forks() {
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    same(&gpu, map, invalidations, |round| child_writes(map, round));
}

/// The CPU reads, and has the memory come back from the device.
fn cpu_reads() {
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    same(&gpu, map, invalidations, |_| {
        map.read(PAGE);
        std::thread::yield_now();
    });
}

/// Pages are moved in physical memory.
fn compaction() {
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    // What is in the device's memory stays there.
    keep_out(&gpu);
    let moved = |_: &Gpu| vmstat("compact_isolated");
    same(&gpu, map, moved, |_| {
        std::fs::write("/proc/sys/vm/compact_memory", "1").expect("compact_memory");
    });
}

/// Pages are written to a disk, and come back when they are needed.
fn pageout() {
    let swap = Swap::on();
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    // What is in the device's memory is not paged out.
    keep_out(&gpu);
    map.fill(|_| 0);
    same(&gpu, map, |_| vmstat("pswpout"), |_| map.madvise(libc::MADV_PAGEOUT));
    drop(swap);
}

/// Pages are said not to be used, and are used: by the GPU, which nobody sees, and by the CPU's tables on
/// its behalf.
fn cold() {
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    keep_out(&gpu);
    let (mut known, used) = (0, || smaps(map, "Referenced"));
    let cell = AtomicU32::new(0);
    same(
        &gpu,
        map,
        |_| cell.load(Ordering::Relaxed).into(),
        |round| {
            if round % 8 == 0 {
                (0..map.len()).step_by(PAGE).for_each(|page| _ = map.read(page));
                known = used();
            }
            map.madvise(libc::MADV_COLD);
            if round % 8 == 0 {
                cell.fetch_add(u32::from(used() < known), Ordering::Relaxed);
            }
        },
    );
}

/// Pages that are alike are made one, and come apart when the GPU writes to them.
fn same_page_merging() {
    let merging = Merging::on();
    let (gpu, map) = (Gpu::new(), Map::aligned(MIDDLE, MIDDLE));
    keep_out(&gpu);
    // All alike, but for the one that the GPU counts in.
    map.fill(|offset| offset as u32 % PAGE as u32 + 1);
    map.write(PAGE, 0);
    let most = AtomicU32::new(0);
    let seen = |_: &Gpu| u64::from(most.load(Ordering::Relaxed));
    same(&gpu, map, seen, |round| {
        map.madvise([libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE][round as usize / 8 % 2]);
        std::thread::sleep(Duration::from_millis(2));
        most.fetch_max(merging.merged() as u32, Ordering::Relaxed);
    });
}

/// A huge page is made of small ones and split again.
fn collapse() {
    let gpu = Gpu::new();
    let map = transparent_huge(SZ_2M);
    let one = map.part(SZ_2M / 2, PAGE);
    let collapsed = AtomicU32::new(0);
    count_while(
        &gpu,
        map.at(0),
        || map.read(0),
        |_| collapsed.load(Ordering::Relaxed).into(),
        |_| {
            one.protect(RO);
            one.protect(RW);
            // Fails now and then, as it may.
            let done = map.try_madvise(libc::MADV_COLLAPSE).is_ok();
            collapsed.fetch_add(done.into(), Ordering::Relaxed);
        },
    );
}

/// The CPU counts in the same word, and the process forks.
fn both_count() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let word = map.atomic(PAGE);
    let by_cpu = AtomicU32::new(0);
    count_while(
        &gpu,
        map.at(PAGE),
        || map.read(PAGE) - by_cpu.load(Ordering::Relaxed),
        invalidations,
        |round| {
            for _ in 0..50 {
                word.fetch_add(1, Ordering::Relaxed);
                by_cpu.fetch_add(1, Ordering::Relaxed);
            }
            if round % 4 == 0 {
                child_writes(map, round);
            }
        },
    );
}

fn faults(gpu: &Gpu) -> u64 {
    counter(gpu.device(), "svm_pagefault_count")
}

/// Waits until a job that was started after so many faults has come to its memory: its batch is the first
/// that it faults on.
fn under_way(gpu: &Gpu, job: &Job<'_>, before: u64) {
    soon("the job is under way", || faults(gpu) > before + 1 || job.is_done());
}

/// A word is discarded while the GPU counts in it: it may lose counts, and must not fail.
fn discarded_while_counting() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let jobs = iterations(20);
    let invalidated = invalidations(&gpu);
    for round in 0..jobs {
        let before = faults(&gpu);
        let job = gpu.start(|c| {
            for page in 0..16 {
                c.increment(map.at(page * PAGE));
            }
        });
        let job = job.expect("a job");
        if round % 2 == 1 {
            under_way(&gpu, &job, before);
        }
        map.madvise(libc::MADV_DONTNEED);
        job.wait().expect("valid memory throughout");
    }
    assert!(invalidations(&gpu) > invalidated, "nothing was discarded under the GPU");
    for page in 0..16 {
        assert!(map.read(page * PAGE) <= jobs, "counted too often");
    }
}

/// The memory goes away under the GPU. The GPU may fail; what is mapped next must not suffer.
fn unmapped_in_flight(size: usize) {
    let mut gpu = Gpu::new();
    let map = Map::aligned(size, SZ_2M);
    let (mut failed, mut round) = (0, 0);
    let before = invalidations(&gpu);
    let met = |gpu: &Gpu| invalidations(gpu) - before;
    // Each waits longer before the memory goes; as many more as it takes.
    while round < iterations(12) || (met(&gpu) == 0 && round < iterations(400)) {
        map.replace_anon(RW);
        let before = faults(&gpu);
        let result = {
            let job = gpu.start(|c| {
                for i in 0..PER_JOB as usize {
                    c.store(map.at(i % 16 * PAGE), 0xbad0_0000 | round);
                }
            });
            let job = job.expect("a job");
            if round % 2 == 1 {
                under_way(&gpu, &job, before);
            } else {
                std::thread::sleep(Duration::from_micros(u64::from(round) * 50));
            }
            map.unmap();
            // Likely the same pages, now somebody else's.
            let other = Map::anon(MIDDLE);
            other.fill(|o| o as u32);
            let result = job.wait();
            other.expect("somebody else's memory", |o| o as u32);
            other.unmap();
            result
        };
        if let Err(e) = result {
            assert_eq!(e.errno(), libc::EIO, "{e}");
            failed += 1;
            gpu.renew();
        }
        round += 1;
    }
    let met = met(&gpu);
    println!("{failed} of {round} jobs failed, {met} times the memory was taken back");
    assert!(met > 0, "the memory was never the GPU's when it went");
}

/// The right to write comes and goes under the GPU: the contents are either old or new.
fn protected_in_flight() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let invalidated = invalidations(&gpu);
    let met = |gpu: &Gpu| invalidations(gpu) - invalidated;
    let mut round = 0;
    // As above.
    while round < iterations(12) || (met(&gpu) == 0 && round < iterations(400)) {
        round += 1;
        let before = map.read(15 * PAGE);
        let faults = faults(&gpu);
        let result = {
            let job = gpu.start(|c| {
                for page in 0..16 {
                    c.store(map.at(page * PAGE), round);
                }
            });
            let job = job.expect("a job");
            if round % 2 == 1 {
                under_way(&gpu, &job, faults);
            } else {
                std::thread::sleep(Duration::from_micros(u64::from(round) * 50));
            }
            map.protect(RO);
            let frozen: Vec<u32> = (0..16).map(|page| map.read(page * PAGE)).collect();
            let result = job.wait();
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
    assert!(met(&gpu) > 0, "the right was never the GPU's when it went");
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
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let other = room.part(SZ_2M / 2, MIDDLE);
    let vm = gpu.vm().clone();
    let counter = room.at(0);
    let worker = gpu.another();
    let jobs = iterations(40);
    // The first fault finds the buffer, so that no mirrored chunk ever gets in its way.
    vm.bind(&[Bind::bo(&bo, 0, other.at(0), MIDDLE as u64)]).expect("bind");
    gpu.increment(counter);
    let (done, mut binds) = (Stop::new(), 0);
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let _done = done.on_drop();
            for _ in 0..jobs {
                worker.increment(counter);
            }
        });
        for _ in 0..iterations(30) {
            vm.bind(&[Bind::bo(&bo, 0, other.at(0), MIDDLE as u64)]).expect("bind");
            vm.bind(&[Bind::mirror(other.at(0), MIDDLE as u64)]).expect("mirror");
            binds += u32::from(!done.is_set());
        }
    });
    room.expect_word("counted", 0, jobs + 1);
    assert!(binds > 0, "nothing was bound while the GPU worked");
}

/// The CPU writes words that a GPU copy passes over: each copied word is the old or the new one.
fn copy_while_writing() {
    let gpu = Gpu::new();
    let (from, to) = (Map::aligned(MIDDLE, MIDDLE), Map::aligned(MIDDLE, MIDDLE));
    let mut met = 0;
    for round in 1..=iterations(20) {
        let before = faults(&gpu);
        let job = gpu.start(|c| _ = c.copy(from.at(0), to.at(0), MIDDLE)).expect("a job");
        if round % 2 == 1 {
            under_way(&gpu, &job, before);
        }
        met += u32::from(!job.is_done());
        from.fill(|_| round);
        job.wait().expect("the copy");
        for offset in (0..MIDDLE).step_by(4) {
            let word = to.read(offset);
            assert!(word == round || word == round - 1, "{word:#x} in round {round}");
        }
    }
    assert!(met > 0, "every copy was over before the CPU wrote");
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
            [("64k", MIDDLE, false), ("2m", SZ_2M, false), ("thp", SZ_2M, true)]
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
    let mut same = |name: &str, body: fn()| {
        p.subtest(format!("same-{name}"), "no increment is lost", body);
    };
    same("fork", forks);
    same("cpu-reads", cpu_reads);
    same("compaction", compaction);
    same("pageout", pageout);
    same("cold", cold);
    same("ksm", same_page_merging);
    p.subtest("thp-collapse", "a huge page is split and made again", collapse);
    p.subtest("both-count", "CPU and GPU count in a process that forks", both_count);
    p.subtest("same-dontneed", "counts may be lost, nothing may fail", discarded_while_counting);
    for (name, size) in [("64k", MIDDLE), ("2m", SZ_2M)] {
        p.subtest(
            format!("munmap-in-flight-{name}"),
            "the memory goes away under the GPU",
            move || unmapped_in_flight(size),
        );
    }
    p.subtest("mprotect-in-flight", "rights come and go under the GPU", protected_in_flight);
    p.subtest("threads-one-page", "many threads fault on one page", || {
        threads_fault(8, 3, |i| i * 64, MIDDLE)
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
