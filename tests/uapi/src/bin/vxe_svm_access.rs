// SPDX-License-Identifier: GPL-2.0

//! The GPU has the rights that the process has: no fewer, no more, and none that it does not use.

use std::process::ExitCode;
use vxe_uapi::{
    contents::pattern,
    memory::{expect_in_file, memfd, smaps, temporary_file, transparent_huge},
    process,
    vram::keep_out,
    Gpu, Map, Program, MIDDLE, NONE, PAGE, RO, RW, SZ_2M,
};

/// The GPU reads `map`, which must hold what `value` says.
#[track_caller]
fn expect_gpu_reads(gpu: &Gpu, what: &str, map: Map, value: impl Fn(usize) -> u32) {
    let to = Map::anon(map.len());
    gpu.copy(map, to);
    to.expect(what, value);
    to.unmap();
}

fn read_only_can_be_read() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    map.protect(RO);
    expect_gpu_reads(&gpu, "read-only memory", map, pattern);
}

fn read_only_cannot_be_written() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    map.protect(RO);
    gpu.expect_fault("a store", |c| _ = c.store(map.at(PAGE), 1));
    gpu.expect_fault("an increment", |c| _ = c.increment(map.at(0)));
    let from = Map::anon(PAGE);
    gpu.expect_fault("a copy to it", |c| _ = c.copy(from.at(0), map.at(0), PAGE));
    map.expect("unchanged", pattern);
    expect_gpu_reads(&gpu, "read after the faults", map, pattern);
}

fn no_access_at_all() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    map.protect(NONE);
    let to = Map::anon(PAGE);
    gpu.expect_fault("a read", |c| _ = c.copy(map.at(0), to.at(0), PAGE));
    gpu.expect_fault("a store", |c| _ = c.store(map.at(0), 1));
    map.protect(RW);
    expect_gpu_reads(&gpu, "readable again", map, pattern);
    gpu.store(map.at(8), 5);
    map.expect("writable again", |o| if o == 8 { 5 } else { pattern(o) });
}

/// Read through a read-only mapping first, then write once it may be written.
fn upgrade_after_mprotect() {
    let gpu = Gpu::new();
    for size in [PAGE, MIDDLE, SZ_2M] {
        let map = Map::aligned(size, SZ_2M);
        map.write(size - 4, 3);
        map.protect(RO);
        expect_gpu_reads(&gpu, "before", map.part(size - PAGE, PAGE), |o| {
            if o == PAGE - 4 {
                3
            } else {
                0
            }
        });
        map.protect(RW);
        gpu.increment(map.at(size - 4));
        gpu.store(map.at(0), 9);
        map.expect_word("counted", size - 4, 4);
        map.expect_word("stored", 0, 9);
    }
}

/// Read what may be written all along, then write it.
fn upgrade_after_read() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    expect_gpu_reads(&gpu, "before", map, pattern);
    gpu.run(|c| {
        for page in 0..16 {
            c.increment(map.at(page * PAGE));
        }
    });
    map.expect("after", |o| pattern(o).wrapping_add(u32::from(o % PAGE == 0)));
}

/// Write, lose the right, get it back; several times over.
fn downgrade(size: usize) {
    let mut gpu = Gpu::new();
    let map = Map::aligned(size, SZ_2M);
    for round in 0..4 {
        gpu.store(map.at(size - 64), round);
        map.protect(RO);
        gpu.expect_fault("a store after mprotect", |c| _ = c.store(map.at(size - 64), 0xbad));
        map.expect_word("unchanged", size - 64, round);
        map.protect(RW);
    }
}

/// Of one chunk that is mapped whole, `[from, to)` loses rights. The rest keeps them.
fn partly(size: usize, huge: bool, from: usize, to: usize, prot: i32) {
    let mut gpu = Gpu::new();
    let map = if huge { transparent_huge(size) } else { Map::aligned(size, SZ_2M) };
    map.fill(pattern);
    // One access maps the chunk.
    gpu.store(map.at(0), pattern(0));
    let hole = map.part(from, to - from);
    hole.protect(prot);

    let outside = (0..size).step_by(PAGE).filter(|page| !(from..to).contains(page));
    gpu.run(|c| {
        for page in outside {
            c.increment(map.at(page + 16));
        }
    });
    for offset in [from, to - PAGE] {
        gpu.expect_fault("a store to the part", |c| _ = c.store(map.at(offset), 1));
    }
    let copy = Map::anon(PAGE);
    if prot == NONE {
        gpu.expect_fault("a read of the part", |c| _ = c.copy(hole.at(0), copy.at(0), PAGE));
    } else {
        expect_gpu_reads(&gpu, "the read-only part", hole, |o| pattern(from + o));
    }
    // The faults have not harmed the rest.
    gpu.run(|c| {
        for page in (0..size).step_by(PAGE).filter(|page| !(from..to).contains(page)) {
            c.increment(map.at(page + 16));
        }
    });
    hole.protect(RW);
    map.expect("all of it", |o| {
        let counted = o % PAGE == 16 && !(from..to).contains(&o);
        pattern(o).wrapping_add(2 * u32::from(counted))
    });
    gpu.store(hole.at(4), 7);
    hole.expect_word("writable again", 4, 7);
}

/// A GPU read of a private file breaks no copy-on-write; a write breaks it and spares the file.
fn read_keeps_cow_of_a_file() {
    let gpu = Gpu::new();
    let file = temporary_file(MIDDLE);
    Map::file(&file, MIDDLE, RW, libc::MAP_SHARED).fill(pattern);
    let map = Map::aligned(MIDDLE, MIDDLE).replace_file(&file, RW, libc::MAP_PRIVATE);
    expect_gpu_reads(&gpu, "the private mapping", map, pattern);
    assert_eq!(smaps(map, "Anonymous"), 0, "KiB were copied by a read");
    gpu.store(map.at(PAGE), 1);
    assert!(smaps(map, "Anonymous") > 0, "a store must copy");
    map.expect("the mapping", |o| if o == PAGE { 1 } else { pattern(o) });
    Map::file(&file, MIDDLE, RO, libc::MAP_SHARED).expect("the file", pattern);
}

/// A GPU read of untouched memory does not populate it with pages of its own.
fn read_allocates_nothing() {
    let gpu = Gpu::new();
    // What moves to the device's memory is memory, read or written.
    keep_out(&gpu);
    let map = Map::aligned(SZ_2M, SZ_2M);
    expect_gpu_reads(&gpu, "untouched memory", map, |_| 0);
    assert_eq!(smaps(map, "Anonymous"), 0, "KiB were allocated by a read");
    gpu.store(map.at(0), 1);
    assert!(smaps(map, "Anonymous") > 0, "a store must allocate");
    map.expect("the memory", |o| u32::from(o == 0));
}

/// A GPU read of a shared file leaves it as clean as a CPU read does.
fn read_dirties_no_file() {
    let gpu = Gpu::new();
    let fresh = || {
        let file = temporary_file(MIDDLE);
        let map = Map::aligned(MIDDLE, MIDDLE).replace_file(&file, RW, libc::MAP_SHARED);
        (file, map)
    };
    let dirty = |map| smaps(map, "Private_Dirty") + smaps(map, "Shared_Dirty");

    let (_read_by_cpu, by_cpu) = fresh();
    by_cpu.expect("a hole", |_| 0);
    let (file, by_gpu) = fresh();
    expect_gpu_reads(&gpu, "a hole", by_gpu, |_| 0);
    assert_eq!(dirty(by_gpu), dirty(by_cpu), "KiB dirtied by reading");

    // What the GPU stores does dirty the file, at the latest when the GPU is made to let go.
    gpu.store(by_gpu.at(PAGE), 8);
    by_gpu.protect(RO);
    by_gpu.protect(RW);
    assert!(dirty(by_gpu) > dirty(by_cpu), "a store must dirty the file");
    expect_in_file(&file, by_gpu);
}

/// A file that may be read and not be written, by anyone.
fn sealed_file() {
    let mut gpu = Gpu::new();
    let file = memfd(MIDDLE, libc::MFD_ALLOW_SEALING);
    let writer = Map::file(&file, MIDDLE, RW, libc::MAP_SHARED);
    writer.fill(pattern);
    writer.unmap();
    seal(&file, libc::F_SEAL_WRITE);
    let map = Map::file(&file, MIDDLE, RO, libc::MAP_SHARED);
    expect_gpu_reads(&gpu, "the sealed file", map, pattern);
    gpu.expect_fault("a store", |c| _ = c.store(map.at(0), 1));
    expect_in_file(&file, map);
    let private = Map::file(&file, MIDDLE, RW, libc::MAP_PRIVATE);
    gpu.store(private.at(0), 1);
    map.expect("the sealed file", pattern);
}

fn seal(file: &std::fs::File, seals: i32) {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    assert_eq!(result, 0, "seal: {}", std::io::Error::last_os_error());
}

/// After a fork, the GPU of the parent writes the parent's copy only.
fn fork_then_gpu_writes() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    gpu.increment(map.at(0));
    let child = process::fork(|link| {
        link.receive();
        map.expect("the child's copy", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    });
    gpu.run(|c| {
        for page in 0..16 {
            c.increment(map.at(page * PAGE));
        }
    });
    map.expect("the parent's copy", |o| {
        pattern(o).wrapping_add(u32::from(o % PAGE == 0) + u32::from(o == 0))
    });
    child.link().send(0);
    child.expect_success();
}

/// After a fork, what the child writes is not what the parent's GPU reads.
fn fork_then_child_writes() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    gpu.store(map.at(0), pattern(0));
    let child = process::fork(|link| {
        map.fill(|_| 0xdead);
        link.send(0);
        link.receive();
        map.expect("the child's copy", |_| 0xdead);
    });
    child.link().receive();
    expect_gpu_reads(&gpu, "the parent's copy", map, pattern);
    gpu.increment(map.at(4));
    map.expect("the parent's copy", |o| pattern(o).wrapping_add(u32::from(o == 4)));
    child.link().send(0);
    child.expect_success();
}

/// GPU reads after a fork leave the pages shared between the two.
fn fork_then_gpu_reads() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, MIDDLE);
    map.fill(pattern);
    gpu.store(map.at(0), pattern(0));
    let child = process::fork(|link| _ = link.receive());
    expect_gpu_reads(&gpu, "the shared pages", map, pattern);
    let shared = |map| smaps(map, "Shared_Dirty") + smaps(map, "Shared_Clean");
    assert_eq!(shared(map), MIDDLE / 1024, "KiB still shared after a read");
    gpu.store(map.at(0), 1);
    assert!(shared(map) < MIDDLE / 1024, "a store must copy");
    child.link().send(0);
    child.expect_success();
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_access",
        "The GPU has the rights of the process: no fewer, no more, and none that it does not use.",
    );
    p.subtest("ro-read", "read-only memory can be read", read_only_can_be_read);
    p.subtest("ro-write-fails", "read-only memory cannot be written", read_only_cannot_be_written);
    p.subtest("prot-none", "forbidden memory cannot be touched", no_access_at_all);
    p.subtest("ro-upgrade", "read, mprotect, write", upgrade_after_mprotect);
    p.subtest("read-then-write", "read, then write what may be written", upgrade_after_read);
    for (name, size) in [("4k", PAGE), ("64k", MIDDLE), ("2m", SZ_2M)] {
        p.subtest(format!("rw-downgrade-{name}"), "write, mprotect, write fails", move || {
            downgrade(size)
        });
    }
    for (kind, prot) in [("ro", RO), ("none", NONE)] {
        for (name, size, huge) in
            [("64k", MIDDLE, false), ("2m", SZ_2M, false), ("thp", SZ_2M, true)]
        {
            for (part, from, to) in [
                ("first-half", 0, size / 2),
                ("second-half", size / 2, size),
                ("middle", size / 4, size / 2 + PAGE),
                ("one-page", size / 2 + PAGE, size / 2 + 2 * PAGE),
            ] {
                // All parts of a small chunk, and of each large one those that cut it otherwise.
                if size == SZ_2M && (part == "middle") != (prot == RO) && part != "first-half" {
                    continue;
                }
                p.subtest(
                    format!("mprotect-{kind}-{part}-{name}"),
                    "a part of a mapped chunk loses rights, the rest keeps them",
                    move || partly(size, huge, from, to, prot),
                );
            }
        }
    }
    p.subtest("read-keeps-cow", "a read copies no private file page", read_keeps_cow_of_a_file);
    p.subtest("read-allocates-nothing", "a read maps the zero page", read_allocates_nothing);
    p.subtest("read-dirties-no-file", "a read leaves a file clean", read_dirties_no_file);
    p.subtest("sealed-file", "a sealed file can be read", sealed_file);
    p.subtest("fork-gpu-write", "a GPU write after fork is the parent's", fork_then_gpu_writes);
    p.subtest("fork-child-write", "a child's write is the child's", fork_then_child_writes);
    p.subtest("fork-gpu-read", "a GPU read after fork copies nothing", fork_then_gpu_reads);
    p.main()
}
