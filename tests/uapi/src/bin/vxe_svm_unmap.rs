// SPDX-License-Identifier: GPL-2.0

//! What the CPU unmaps, moves or discards is gone for the GPU, and only that.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_client::Bind;
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    memory::{memfd, transparent_huge},
    Gpu, Map, Program, MIDDLE, PAGE, RW, SZ_2M,
};

const MOVE: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

fn stored(page: usize) -> u32 {
    page as u32 ^ 0xa5a5_0000
}

/// A chunk that the GPU has mapped, with the pattern in it.
fn mapped_chunk(gpu: &Gpu, size: usize, huge: bool) -> Map {
    let map = if huge { transparent_huge(size) } else { Map::aligned(size, SZ_2M) };
    map.fill(pattern);
    gpu.run(|c| {
        for page in (0..size).step_by(PAGE) {
            c.store(map.at(page + 32), stored(page));
        }
    });
    map
}

fn chunk_contents(offset: usize) -> u32 {
    match offset % PAGE {
        32 => stored(offset - 32),
        _ => pattern(offset),
    }
}

/// Unmaps `[from, to)` of a mapped chunk: the hole faults, the rest works and is unharmed.
fn hole(gpu: &mut Gpu, size: usize, huge: bool, from: usize, to: usize) {
    let map = mapped_chunk(gpu, size, huge);
    map.part(from, to - from).unmap();
    let kept = |page: &usize| !(from..to).contains(page);
    gpu.run(|c| {
        for page in (0..size).step_by(PAGE).filter(kept) {
            c.increment(map.at(page + 32));
        }
    });
    let copy = Map::anon(PAGE);
    gpu.expect_fault("a store to the hole", |c| _ = c.store(map.at(from), 1));
    gpu.expect_fault("a read of the hole", |c| _ = c.copy(map.at(to - PAGE), copy.at(0), PAGE));
    for page in (0..size).step_by(PAGE).filter(kept) {
        map.part(page, PAGE)
            .expect("what is left", |o| chunk_contents(page + o).wrapping_add(u32::from(o == 32)));
    }
    // The hole can be filled again, and the GPU sees what is new.
    let fresh = map.part(from, to - from).replace_anon(RW);
    gpu.increment(fresh.at(0));
    fresh.expect("new memory", |o| u32::from(o == 0));
}

/// Punches a hole into each place of a chunk in turn.
fn holes_everywhere(size: usize, step: usize) {
    let mut gpu = Gpu::new();
    for from in (0..size).step_by(step) {
        hole(&mut gpu, size, false, from, from + step);
    }
}

/// Unmap all, and map something else at the address.
fn replace(size: usize, how: fn(Map) -> Map) {
    let gpu = Gpu::new();
    let map = mapped_chunk(&gpu, size, false);
    let new = how(map);
    assert_eq!(new, map);
    new.fill(|o| !pattern(o));
    let to = Map::anon(size);
    gpu.copy(new, to);
    to.expect("the GPU reads what is new", |o| !pattern(o));
    gpu.store(new.at(PAGE), 1);
    new.expect_word("the GPU writes what is new", PAGE, 1);
}

fn by_munmap(map: Map) -> Map {
    map.unmap();
    map.replace_anon(RW)
}

fn by_mmap_over(map: Map) -> Map {
    map.replace_anon(RW)
}

fn by_file(map: Map) -> Map {
    map.replace_file(&memfd(map.len(), 0), RW, libc::MAP_SHARED)
}

fn by_mremap(map: Map) -> Map {
    Map::anon(map.len()).remap(map.len(), MOVE, Some(map))
}

/// The same address, another memory, over and over, with the GPU the first to look.
fn replace_loop() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    let to = Map::anon(PAGE);
    for round in 0..iterations(50) {
        let page = round as usize % 16 * PAGE;
        map.write(page, round);
        gpu.copy(map.part(page, PAGE), to);
        to.expect_word("seen by the GPU", 0, round);
        gpu.store(map.at(page + 4), !round);
        map.expect_word("stored", page + 4, !round);
        map.unmap();
        map.replace_anon(RW);
    }
}

fn mremap_moves() {
    let mut gpu = Gpu::new();
    let old = mapped_chunk(&gpu, SZ_2M, false);
    let new = old.remap(SZ_2M, MOVE, Some(Map::reserve(SZ_2M, SZ_2M)));
    gpu.increment(new.at(32));
    let to = Map::anon(SZ_2M);
    gpu.copy(new, to);
    to.expect("moved", |o| chunk_contents(o).wrapping_add(u32::from(o == 32)));
    gpu.expect_fault("a store to where it was", |c| _ = c.store(old.at(0), 1));
}

/// A part of a chunk moves away; the rest stays.
fn mremap_moves_half() {
    let mut gpu = Gpu::new();
    let map = mapped_chunk(&gpu, SZ_2M, false);
    let half = map.part(SZ_2M / 2, SZ_2M / 2);
    let new = half.remap(half.len(), MOVE, Some(Map::reserve(half.len(), SZ_2M)));
    gpu.increment(new.at(0));
    gpu.increment(map.at(0));
    gpu.expect_fault("a store to where it was", |c| _ = c.store(half.at(0), 1));
    map.part(0, SZ_2M / 2)
        .expect("what stayed", |o| chunk_contents(o).wrapping_add(u32::from(o == 0)));
    new.expect("what moved", |o| chunk_contents(o + SZ_2M / 2).wrapping_add(u32::from(o == 0)));
}

/// MREMAP_DONTUNMAP leaves an empty mapping behind.
fn mremap_leaves_empty() {
    let gpu = Gpu::new();
    let old = mapped_chunk(&gpu, MIDDLE, false);
    let new = old.remap(MIDDLE, MOVE | libc::MREMAP_DONTUNMAP, Some(Map::reserve(MIDDLE, MIDDLE)));
    gpu.increment(old.at(0));
    old.expect("left behind", |o| u32::from(o == 0));
    gpu.increment(new.at(0));
    new.expect("moved", |o| chunk_contents(o).wrapping_add(u32::from(o == 0)));
}

fn mremap_grows_and_shrinks() {
    let mut gpu = Gpu::new();
    let room = Map::reserve(4 * MIDDLE, SZ_2M);
    let map = room.part(0, MIDDLE).replace_anon(RW);
    // What is reserved behind it must go for it to grow in place.
    room.part(MIDDLE, 3 * MIDDLE).unmap();
    map.fill(pattern);
    gpu.increment(map.at(0));
    let grown = map.remap(4 * MIDDLE, 0, None);
    gpu.run(|c| _ = c.store(grown.at(3 * MIDDLE), 5).increment(grown.at(0)));
    grown.expect_word("the new part", 3 * MIDDLE, 5);
    let shrunk = grown.remap(PAGE, 0, None);
    gpu.increment(shrunk.at(0));
    gpu.expect_fault("a store to what was cut off", |c| _ = c.store(grown.at(PAGE), 1));
    shrunk.expect("the rest", |o| pattern(o).wrapping_add(3 * u32::from(o == 0)));
}

fn dontneed(size: usize, huge: bool, from: usize, to: usize) {
    let gpu = Gpu::new();
    let map = mapped_chunk(&gpu, size, huge);
    map.part(from, to - from).madvise(libc::MADV_DONTNEED);
    let copy = Map::anon(size);
    gpu.copy(map, copy);
    let contents = |o| if (from..to).contains(&o) { 0 } else { chunk_contents(o) };
    copy.expect("read by the GPU", contents);
    gpu.increment(map.at(from));
    map.expect("the memory", |o| contents(o).wrapping_add(u32::from(o == from)));
}

/// One change by the CPU takes several chunks that the GPU has mapped, and its TLB holds.
fn dontneed_several_chunks() {
    let gpu = Gpu::new();
    // Too small for a larger chunk.
    let map = Map::aligned(3 * MIDDLE, SZ_2M);
    let places = [0, MIDDLE + 8 * PAGE, 3 * MIDDLE - 4];
    for round in 0..4 {
        gpu.run(|c| {
            for at in places {
                c.store(map.at(at), 100 + round);
            }
        });
        map.madvise(libc::MADV_DONTNEED);
        gpu.run(|c| {
            for at in places {
                c.increment(map.at(at));
            }
        });
        for at in places {
            map.expect_word("counted from zero", at, 1);
        }
    }
}

/// What the GPU writes after MADV_FREE is no longer free to go.
fn free_then_store() {
    let gpu = Gpu::new();
    let map = mapped_chunk(&gpu, MIDDLE, false);
    map.madvise(libc::MADV_FREE);
    gpu.run(|c| {
        for page in (0..MIDDLE).step_by(PAGE) {
            c.store(map.at(page), 0xf4ee_0000 | page as u32);
        }
    });
    // Reclaim takes what is still free.
    map.madvise(libc::MADV_PAGEOUT);
    for page in (0..MIDDLE).step_by(PAGE) {
        map.expect_word("stored after MADV_FREE", page, 0xf4ee_0000 | page as u32);
    }
    let to = Map::anon(MIDDLE);
    gpu.copy(map, to);
    to.expect("the GPU's view", |o| map.read(o));
}

/// A page of a file that was punched out reads as zero, also for the GPU.
fn punch_hole() {
    let gpu = Gpu::new();
    let file = memfd(MIDDLE, 0);
    let map = Map::file(&file, MIDDLE, RW, libc::MAP_SHARED);
    map.fill(pattern);
    gpu.increment(map.at(0));
    map.part(4 * PAGE, 4 * PAGE).madvise(libc::MADV_REMOVE);
    let to = Map::anon(MIDDLE);
    gpu.copy(map, to);
    let contents = |o| match o / PAGE {
        4..8 => 0,
        _ => pattern(o).wrapping_add(u32::from(o == 0)),
    };
    to.expect("read by the GPU", contents);
    gpu.store(map.at(5 * PAGE), 6);
    map.expect("the file", |o| if o == 5 * PAGE { 6 } else { contents(o) });
}

/// Beyond the end of a file there is nothing for the GPU either.
fn truncate() {
    let mut gpu = Gpu::new();
    let file = memfd(MIDDLE, 0);
    let map = Map::aligned(MIDDLE, MIDDLE).replace_file(&file, RW, libc::MAP_SHARED);
    map.fill(pattern);
    gpu.increment(map.at(MIDDLE - 4));
    gpu.increment(map.at(0));
    file.set_len(8 * PAGE as u64).expect("truncate");
    gpu.increment(map.at(8 * PAGE - 4));
    gpu.expect_fault("a store beyond the end", |c| _ = c.store(map.at(8 * PAGE), 1));
    map.part(0, 8 * PAGE).expect("what is left", |o| {
        pattern(o).wrapping_add(u32::from(o == 0 || o == 8 * PAGE - 4))
    });
    file.set_len(MIDDLE as u64).expect("grow");
    gpu.increment(map.at(12 * PAGE));
    map.expect_word("grown", 12 * PAGE, 1);
}

/// The heap's end moves down under the GPU's mapping of it.
fn brk_shrinks() {
    let mut gpu = Gpu::new();
    // SAFETY: the heap grows by memory that only this test uses, and shrinks by the same; malloc
    // copes with a break that others move.
    let start = unsafe { libc::sbrk(8 * MIDDLE as isize) } as usize;
    assert_ne!(start, usize::MAX, "sbrk");
    let map = Map::existing(start.next_multiple_of(PAGE), 7 * MIDDLE);
    map.fill(pattern);
    gpu.increment(map.at(map.len() - 4));
    // SAFETY: as above.
    unsafe { libc::sbrk(-(4 * MIDDLE as isize)) };
    gpu.increment(map.at(0));
    gpu.expect_fault("a store beyond the break", |c| _ = c.store(map.at(map.len() - 4), 1));
    map.expect_word("below the break", 0, pattern(0).wrapping_add(1));
}

/// A mirror with pages in it cannot be unmapped; once the CPU has unmapped them, it can, soon.
fn busy_mirror() {
    let gpu = Gpu::new();
    let map = Map::aligned(SZ_2M, SZ_2M);
    gpu.store(map.at(0), 1);
    let unmap = [Bind::unmap(map.at(0), SZ_2M as u64)];
    let busy = gpu.vm().bind(&unmap);
    assert_eq!(busy.map_err(|e| e.errno()), Err(libc::EBUSY), "a live mirror");
    gpu.increment(map.at(0));
    map.expect_word("the mirror still works", 0, 2);

    map.unmap();
    let start = Instant::now();
    let mut result = gpu.vm().bind(&unmap);
    while result.is_err_and(|e| e.errno() == libc::EBUSY)
        && start.elapsed() < Duration::from_secs(1)
    {
        std::thread::sleep(Duration::from_millis(10));
        result = gpu.vm().bind(&unmap);
    }
    assert_eq!(result, Ok(()), "after the CPU unmapped");
}

/// Freed pages are not the GPU's any more: what the CPU gets next stays as the CPU writes it.
fn freed_pages_are_left_alone() {
    let mut gpu = Gpu::new();
    for _ in 0..iterations(10) {
        let map = mapped_chunk(&gpu, MIDDLE, false);
        map.unmap();
        // Very likely the pages that were just freed.
        let other = Map::anon(MIDDLE);
        other.fill(pattern);
        let result = gpu.try_run(|c| _ = c.store(map.at(8 * PAGE), 0xbad));
        other.expect("somebody else's memory", pattern);
        assert_eq!(result.map_err(|e| e.errno()), Err(libc::EIO), "a store to nothing");
        gpu.renew();
        other.unmap();
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_unmap",
        "What the CPU unmaps, moves or discards is gone for the GPU, and only that.",
    );
    for (name, size, huge) in [("64k", MIDDLE, false), ("2m", SZ_2M, false), ("thp", SZ_2M, true)] {
        for (part, from, to) in [
            ("head", 0, size / 4),
            ("middle", size / 4, size / 2),
            ("tail", size / 2, size),
            ("one-page", size / 2 - PAGE, size / 2),
            ("all-but-one-page", PAGE, size),
        ] {
            // All parts of a small chunk; the large ones share them.
            if size == SZ_2M && huge != matches!(part, "middle" | "all-but-one-page") {
                continue;
            }
            p.subtest(
                format!("partial-{part}-{name}"),
                "munmap of a part of a mapped chunk",
                move || hole(&mut Gpu::new(), size, huge, from, to),
            );
        }
        for (part, from, to) in [("all", 0, size), ("half", size / 2, size)] {
            p.subtest(format!("dontneed-{part}-{name}"), "MADV_DONTNEED", move || {
                dontneed(size, huge, from, to)
            });
        }
    }
    p.subtest("dontneed-several-64k", "MADV_DONTNEED of several chunks", dontneed_several_chunks);
    p.subtest("partial-each-page-64k", "munmap of each page in turn", || {
        holes_everywhere(MIDDLE, PAGE)
    });
    p.subtest("partial-each-512k-2m", "munmap of each quarter in turn", || {
        holes_everywhere(SZ_2M, SZ_2M / 4)
    });
    type How = (&'static str, fn(Map) -> Map);
    let ways: [How; 4] = [
        ("munmap", by_munmap),
        ("mmap-over", by_mmap_over),
        ("file", by_file),
        ("mremap", by_mremap),
    ];
    for (name, how) in ways {
        for (size_name, size) in [("64k", MIDDLE), ("2m", SZ_2M)] {
            p.subtest(
                format!("replace-by-{name}-{size_name}"),
                "other memory comes to the same address",
                move || replace(size, how),
            );
        }
    }
    p.subtest("replace-loop", "other memory at the same address, many times", replace_loop);
    p.subtest("mremap-move", "a chunk moves", mremap_moves);
    p.subtest("mremap-move-half", "half a chunk moves", mremap_moves_half);
    p.subtest("mremap-dontunmap", "the contents move, the mapping stays", mremap_leaves_empty);
    p.subtest("mremap-resize", "a mapping grows and shrinks", mremap_grows_and_shrinks);
    p.subtest("madv-free-store", "a GPU store after MADV_FREE is not lost", free_then_store);
    p.subtest("punch-hole", "a page is punched out of a file", punch_hole);
    p.subtest("truncate", "a file shrinks and grows", truncate);
    p.subtest("brk", "the heap shrinks", brk_shrinks);
    p.subtest("busy-mirror", "-EBUSY while pages are mirrored, then 0", busy_mirror);
    p.subtest("freed-pages", "freed pages are left alone", freed_pages_are_left_alone);
    p.main()
}
