// SPDX-License-Identifier: GPL-2.0

//! How much memory the GPU makes of a process by touching little of it: about as much as a CPU.

use std::process::ExitCode;
use vxe_uapi::{
    map::RW,
    memory::{memfd, transparent_huge},
    vram::counted,
    Gpu, Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// How many words are touched, each in 2 MiB of its own.
const WORDS: usize = 16;

/// What the test itself takes meanwhile, in bytes.
const SLACK: usize = 1 << 20;

/// Where the word with this number is: each in another page of its 2 MiB.
const fn word(index: usize) -> usize {
    index * SZ_2M + index * PAGE + 16
}

/// How much memory of a kind the process has, in bytes, on devices as well.
#[track_caller]
fn resident(kind: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("the status");
    let kib = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == kind).then(|| value.trim().trim_end_matches(" kB").parse::<usize>().ok())?
    });
    kib.unwrap_or_else(|| panic!("no {kind} in the status")) * 1024
}

/// How much of a kind `touch` makes.
#[track_caller]
fn made(kind: &str, touch: impl FnOnce()) -> usize {
    let before = resident(kind);
    touch();
    resident(kind).saturating_sub(before)
}

/// The GPU stores the words.
fn store(gpu: &Gpu, map: Map) {
    for index in 0..WORDS {
        gpu.store(map.at(word(index)), 1 + index as u32);
    }
}

/// The GPU loads the words, which are zero.
fn load(gpu: &Gpu, map: Map) {
    let to = Map::shared(PAGE);
    for index in 0..WORDS {
        to.write(0, !0);
        gpu.run(|c| _ = c.copy(map.at(word(index) / PAGE * PAGE), to.at(0), 256));
        to.expect_word("loaded", 0, 0);
    }
    to.unmap();
}

/// As much as the words may take: 64 KiB each.
#[track_caller]
fn expect_little(made: usize) {
    println!("{} KiB for {WORDS} words", made / 1024);
    assert!(made <= WORDS * MIDDLE + SLACK, "{} KiB", made / 1024);
}

/// Only the words are there.
#[track_caller]
fn expect_words(map: Map) {
    for index in 0..WORDS {
        map.expect_word("stored", word(index), 1 + index as u32);
        map.expect_word("not stored", word(index) + 4, 0);
    }
}

fn read() {
    let gpu = Gpu::new();
    let map = Map::aligned(WORDS * SZ_2M, SZ_2M);
    let made = made("RssAnon", || load(&gpu, map));
    println!("{} KiB for {WORDS} words", made / 1024);
    assert!(made <= SLACK, "{} KiB", made / 1024);
}

fn write() {
    let gpu = Gpu::new();
    let map = Map::aligned(WORDS * SZ_2M, SZ_2M);
    expect_little(made("RssAnon", || store(&gpu, map)));
    expect_words(map);
}

/// The GPU has it all mapped to read zeroes, and the CPU as well.
fn write_after_reads() {
    let gpu = Gpu::new();
    let map = Map::aligned(WORDS * SZ_2M, SZ_2M);
    let _ = map.try_madvise(libc::MADV_NOHUGEPAGE);
    for page in (0..map.len()).step_by(PAGE) {
        assert_eq!(map.read(page), 0);
    }
    let made = made("RssAnon", || {
        load(&gpu, map);
        store(&gpu, map);
    });
    expect_little(made);
    expect_words(map);
}

/// What the GPU had mapped as a whole is discarded.
fn write_after_discard() {
    let gpu = Gpu::new();
    let map = Map::aligned(WORDS * SZ_2M, SZ_2M);
    map.fill(|_| !0);
    store(&gpu, map);
    map.madvise(libc::MADV_DONTNEED);
    expect_little(made("RssAnon", || store(&gpu, map)));
    expect_words(map);
}

/// A memory file of which nothing was written.
fn write_file() {
    let gpu = Gpu::new();
    let map = Map::file(&memfd(WORDS * SZ_2M, 0), WORDS * SZ_2M, RW, libc::MAP_SHARED);
    expect_little(made("RssShmem", || store(&gpu, map)));
    expect_words(map);
}

/// What the CPU has comes in large pieces: a fault each.
fn dense(make: fn(usize) -> Map) {
    const CHUNKS: usize = 4;
    let gpu = Gpu::new();
    let map = make(CHUNKS * SZ_2M);
    map.fill(|offset| offset as u32);
    // The batch and the fence.
    gpu.run(|c| _ = c.noop());
    let counts = counted(gpu.device(), || {
        for page in (0..map.len()).step_by(16 * PAGE) {
            gpu.increment(map.at(page));
        }
    });
    let faults = counts["svm_2M_pagefault_count"];
    assert!(faults >= CHUNKS as u64, "{faults} faults on large ranges: {counts:?}");
    let small = counts["svm_64K_pagefault_count"] + counts["svm_4K_pagefault_count"];
    assert!(small <= 16, "{small} faults on small ranges: {counts:?}");
    map.expect("counted", |o| o as u32 + u32::from(o % (16 * PAGE) == 0));
}

fn small_pages(length: usize) -> Map {
    let map = Map::aligned(length, SZ_2M);
    let _ = map.try_madvise(libc::MADV_NOHUGEPAGE);
    map
}

/// Where a CPU's first touch takes a huge page, the GPU's takes as much.
fn huge_hole() {
    let gpu = Gpu::new();
    // Whether there are huge pages.
    transparent_huge(SZ_2M).unmap();
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.madvise(libc::MADV_HUGEPAGE);
    let counts = counted(gpu.device(), || {
        for page in (0..SZ_2M).step_by(16 * PAGE) {
            gpu.increment(map.at(page));
        }
    });
    assert_eq!(counts["svm_2M_pagefault_count"], 1, "{counts:?}");
    map.expect("counted", |o| u32::from(o % (16 * PAGE) == 0));
}

fn main() -> ExitCode {
    let mut p = Program::new("vxe_svm_populate", "How much memory the GPU makes of a process.");
    p.subtest("read", "a word in each 2 MiB is read", read);
    p.subtest("write", "a word in each 2 MiB is written", write);
    p.subtest("write-after-reads", "all was read before", write_after_reads);
    p.subtest("write-after-discard", "all was there before", write_after_discard);
    p.subtest("write-file", "of a memory file", write_file);
    p.subtest("dense-small", "what the CPU has, in small pages", || dense(small_pages));
    p.subtest("dense-huge", "what the CPU has, in huge pages", || dense(transparent_huge));
    p.subtest("huge-hole", "memory that may be had in huge pages", huge_hole);
    p.main()
}
