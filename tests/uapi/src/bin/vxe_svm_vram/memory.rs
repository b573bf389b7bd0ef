// SPDX-License-Identifier: GPL-2.0

//! What programs do to their memory while it is on the device.

use super::{Shape, SHAPES};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};
use vxe_uapi::{
    contents::pattern,
    env::enough,
    memory::{smaps, Merging},
    skip,
    vram::{bring, evict_all, in_device, prefetch, region, soon, touch},
    Gpu, Map, Program, MIDDLE, PAGE, SZ_2M,
};

/// A pipe that memory is lent to: it holds the pages, not their contents.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    #[track_caller]
    pub fn new() -> Self {
        let mut fds = [0; 2];
        // SAFETY: the call writes two descriptors, which are ours then.
        unsafe {
            assert_eq!(libc::pipe(fds.as_mut_ptr()), 0, "pipe: {}", io::Error::last_os_error());
            Self { read: OwnedFd::from_raw_fd(fds[0]), write: OwnedFd::from_raw_fd(fds[1]) }
        }
    }

    /// Lends memory, as much as a pipe has room for.
    #[track_caller]
    pub fn lend(&self, map: Map) {
        let vector = libc::iovec { iov_base: map.start() as *mut _, iov_len: map.len() };
        // SAFETY: the memory is the test's own, and is not unmapped.
        let lent = unsafe { libc::vmsplice(self.write.as_raw_fd(), &vector, 1, 0) };
        assert_eq!(lent, map.len() as isize, "vmsplice: {}", io::Error::last_os_error());
    }

    /// Reads a page's words.
    #[track_caller]
    pub fn expect(&self, value: impl Fn(usize) -> u32) {
        let mut words = vec![0u32; PAGE / 4];
        // SAFETY: the buffer has so many bytes.
        let got = unsafe { libc::read(self.read.as_raw_fd(), words.as_mut_ptr().cast(), PAGE) };
        assert_eq!(got, PAGE as isize, "read: {}", io::Error::last_os_error());
        for (i, word) in words.into_iter().enumerate() {
            assert_eq!(word, value(i * 4), "at offset {:#x} of what was lent", i * 4);
        }
    }
}

/// Memory of a shape, on the device.
#[track_caller]
pub fn there(gpu: &Gpu, shape: Shape) -> Map {
    region(gpu.device());
    let map = shape.make();
    bring(gpu, map);
    map
}

/// The kernel reads pages that are on the device, and holds them.
fn held(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let pipe = Pipe::new();
    pipe.lend(map.part(PAGE, PAGE));
    pipe.expect(|o| pattern(PAGE + o));
    map.expect("all", pattern);
}

/// Another process reads and writes what is on the device.
fn remote(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let mut words = vec![0u32; MIDDLE / 4];
    let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: MIDDLE };
    let remote = libc::iovec { iov_base: map.start() as *mut _, iov_len: MIDDLE };
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: both sides have so many bytes.
    let got = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    assert_eq!(got, MIDDLE as isize, "process_vm_readv: {}", io::Error::last_os_error());
    for (i, word) in words.iter_mut().enumerate() {
        assert_eq!(*word, pattern(i * 4), "at offset {:#x}", i * 4);
        *word ^= 1;
    }
    touch(&gpu, map);
    // SAFETY: as above.
    let got = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    assert_eq!(got, MIDDLE as isize, "process_vm_writev: {}", io::Error::last_os_error());
    touch(&gpu, map);
    map.expect("all", |o| pattern(o) ^ u32::from(o < MIDDLE));
}

/// It is moved to other addresses while it is on the device.
fn remap(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    gpu.store(map.at(4), 0x1234);
    let to = Map::reserve(map.len(), SZ_2M);
    let moved = map.remap(map.len(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, Some(to));
    let value = |o| if o == 4 { 0x1234 } else { pattern(o) };
    touch(&gpu, moved);
    gpu.store(moved.at(8), 0x5678);
    moved.expect("at its new place", |o| if o == 8 { 0x5678 } else { value(o) });
    // Nothing is where it was.
    let mut gpu = gpu;
    map.unmap();
    gpu.expect_fault("the old place", |c| _ = c.store(map.at(0), 1));
    moved.expect_word("at its new place", 4, 0x1234);
}

/// Only a part is moved.
fn remap_part(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let at = map.len() / 2 - 3 * PAGE;
    let (part, to) = (map.part(at, 7 * PAGE), Map::reserve(7 * PAGE, MIDDLE));
    let moved = part.remap(part.len(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, Some(to));
    gpu.increment(moved.at(0));
    moved.expect("the part", |o| pattern(at + o).wrapping_add(u32::from(o == 0)));
    gpu.increment(map.at(0));
    map.part(0, at).expect("before", |o| pattern(o).wrapping_add(u32::from(o == 0)));
    let behind = at + part.len();
    map.part(behind, map.len() - behind).expect("behind", |o| pattern(behind + o));
}

/// How long parts are unmapped at most: the rest of the offsets are for a faster machine, or for who
/// has more time.
const ENOUGH: Duration = Duration::from_secs(10);

/// A part is unmapped of memory that is on the device, from each page but the first on; what is left
/// is right, for the GPU, and then for the CPU.
fn unmap(shape: Shape) {
    /// Offsets, and how far it is from each to the next: however early it ends, they are spread.
    const OFFSETS: usize = SZ_2M / PAGE - 1;
    const STRIDE: usize = 37;
    let gpu = Gpu::new();
    region(gpu.device());
    let room = Map::reserve(SZ_2M, SZ_2M);
    shape.require();
    let huge = matches!(shape, Shape::Huge);
    let (start, enough) = (Instant::now(), enough(ENOUGH));
    let mut done = 0;
    // What is no page of 2 MiB, but many, is cut at some of them.
    let rounds = if huge { OFFSETS } else { OFFSETS.min(63) };
    while done < rounds && start.elapsed() < enough {
        let map = room.replace_anon(vxe_uapi::RW);
        let _ = map.try_madvise(if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        // A word of each page, each time another.
        let word = |page: usize| page * PAGE + (page + done) % (PAGE / 4) * 4;
        let value = |page: usize| pattern(page ^ (done << 9));
        for page in 0..SZ_2M / PAGE {
            map.write(word(page), value(page));
        }
        if huge && vxe_uapi::memory::huge_kib(map) == 0 {
            skip!("no huge page to be had");
        }
        if done % 8 == 0 {
            bring(&gpu, map);
        } else {
            touch(&gpu, map);
        }
        let first = 1 + done * STRIDE % OFFSETS;
        let count = [1, 5, MIDDLE / PAGE, SZ_2M / PAGE][done % 4].min(SZ_2M / PAGE - first);
        map.part(first * PAGE, count * PAGE).unmap();
        let left = || (0..first).chain(first + count..SZ_2M / PAGE);
        let counted = [0, first - 1, first + count, SZ_2M / PAGE - 1];
        gpu.run(|c| {
            for page in left().filter(|page| counted.contains(page)) {
                c.increment(map.at(word(page)));
            }
        });
        for page in left() {
            let wanted = value(page).wrapping_add(u32::from(counted.contains(&page)));
            map.expect_word("what is left", word(page), wanted);
        }
        done += 1;
    }
    println!("{done} of {rounds} offsets");
}

/// Thrown away on the device, it is zero.
fn dont_need(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    let (at, size) = (map.len() / 4, map.len() / 2);
    map.part(at, size).madvise(libc::MADV_DONTNEED);
    let value = |o| if (at..at + size).contains(&o) { 0 } else { pattern(o) };
    gpu.increment(map.at(at));
    gpu.increment(map.at(0));
    map.expect("all", |o| value(o).wrapping_add(u32::from(o == at || o == 0)));
}

/// What may be freed is there or is zero; what is written after that stays.
fn free(shape: Shape) {
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    map.part(0, map.len() / 2).madvise(libc::MADV_FREE);
    gpu.store(map.at(PAGE), 0x77);
    for offset in (0..map.len()).step_by(4) {
        let (found, full) = (map.read(offset), pattern(offset));
        let right = match offset {
            PAGE => found == 0x77,
            o if o < map.len() / 2 => found == full || found == 0,
            _ => found == full,
        };
        assert!(right, "{found:#x} at offset {offset:#x}");
    }
}

/// What may be freed moves to the device, is written there, and comes back: it may not be freed any
/// more, though no store of the CPU's says so.
fn free_and_store(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let reclaim = |map: Map| {
        if let Err(e) = map.try_madvise(libc::MADV_PAGEOUT) {
            skip!("MADV_PAGEOUT: {e}");
        }
    };
    // So many pages that the kernel does not put the work off.
    let [map, untouched] = [shape.make(), Shape::Small.make()];
    map.madvise(libc::MADV_FREE);
    untouched.madvise(libc::MADV_FREE);
    let pages = || (0..map.len()).step_by(PAGE);
    gpu.run(|c| pages().for_each(|page| _ = c.store(map.at(page + 8), 0x77)));
    assert_eq!(in_device(&gpu, map), map.len(), "bytes in the device's memory");
    pages().for_each(|page| map.expect_word("back again", page + 8, 0x77));
    reclaim(map);
    reclaim(untouched);
    pages().for_each(|page| map.expect_word("after reclaim", page + 8, 0x77));
    if untouched.read(8) != 0 {
        skip!("what may be freed was not");
    }
}

/// Pages that are alike may be merged while they are on the device; back from there they are, and come
/// apart again.
fn merge(shape: Shape) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    // Every other page is like the others; what is not is never merged, and would move if it might.
    let fill = |offset: usize| match offset / PAGE % 2 {
        0 => (offset % PAGE) as u32,
        _ => pattern(offset),
    };
    map.fill(fill);
    bring(&gpu, map);
    if let Err(e) = map.try_madvise(libc::MADV_MERGEABLE) {
        skip!("MADV_MERGEABLE: {e}");
    }
    let merging = Merging::on();
    gpu.store(map.at(0), 1000);
    let value = |stores: usize, offset: usize| match (offset / PAGE, offset % PAGE) {
        (page, 0) if page < stores => 1000 + page as u32,
        _ => fill(offset),
    };
    map.expect("back again", |o| value(1, o));
    soon("pages are merged", || merging.sharing() != 0);
    for page in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        touch(&gpu, map);
        gpu.store(map.at(page * PAGE), 1000 + page as u32);
    }
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though they may be merged");
    map.expect("all", |o| value(10, o));
    merging.undo();
    map.expect("apart again", |o| value(10, o));
}

/// How much memory of all processes is locked, in KiB.
fn locked_kib() -> usize {
    // Has what each processor has counted by itself added up. Where that is not allowed, it is soon.
    let _ = std::fs::read("/proc/sys/vm/stat_refresh");
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("Mlocked:"));
    let figure = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    figure.expect("Mlocked in meminfo")
}

/// Locks memory into RAM, or what comes there; skips the subtest if that is not allowed.
#[track_caller]
fn set_locked(map: Map, flags: Option<libc::c_uint>) {
    // SAFETY: the range is the test's own.
    let result = unsafe {
        match flags {
            Some(flags) => libc::mlock2(map.start() as *const _, map.len(), flags),
            None => libc::munlock(map.start() as *const _, map.len()),
        }
    };
    if result != 0 {
        skip!("mlock: {}", io::Error::last_os_error());
    }
}

/// It is locked into RAM, where it stays and the GPU works on; when it is not any more it moves, and nothing
/// is counted as locked.
fn lock(shape: Shape) {
    let before = locked_kib();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    set_locked(map, Some(0));
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though locked into RAM");
    gpu.increment(map.at(PAGE));
    prefetch(&gpu, map);
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though locked into RAM");
    assert_eq!(smaps(map, "Locked"), map.len() / 1024, "KiB locked");
    soon("it is counted as locked", || locked_kib() >= before + map.len() / 1024);
    let value = |o| pattern(o).wrapping_add(u32::from(o == PAGE));
    map.expect("all", value);
    set_locked(map, None);
    prefetch(&gpu, map);
    assert_eq!(in_device(&gpu, map), map.len(), "bytes in the device's memory");
    map.expect("all", value);
    soon("nothing is counted as locked", || locked_kib() <= before);
}

/// It is locked as it comes to RAM, and comes as it is touched; unlocked before all of it has.
fn lock_on_fault(shape: Shape) {
    let before = locked_kib();
    let gpu = Gpu::new();
    let map = there(&gpu, shape);
    set_locked(map, Some(libc::MLOCK_ONFAULT as libc::c_uint));
    map.expect_word("touched", PAGE, pattern(PAGE));
    gpu.increment(map.at(PAGE));
    // What is on the device is tried to be evicted, and is where it was if it cannot.
    evict_all(gpu.device());
    set_locked(map, None);
    map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == PAGE)));
    soon("nothing is counted as locked", || locked_kib() <= before);
}

/// A child locks what it shares and only reads, while the parent's GPU works on it: nothing is counted as
/// locked when nobody has it so.
fn lock_shared(shape: Shape) {
    let before = locked_kib();
    let gpu = Gpu::new();
    region(gpu.device());
    let map = shape.make();
    let child = vxe_uapi::process::fork(|link| {
        map.protect(vxe_uapi::RO);
        set_locked(map, Some(0));
        link.send(0);
        link.receive();
        set_locked(map, None);
        map.expect("the child's", pattern);
        link.send(0);
    });
    child.link().receive();
    prefetch(&gpu, map);
    touch(&gpu, map);
    child.link().send(0);
    child.link().receive();
    child.expect_success();
    map.expect("the parent's", pattern);
    map.unmap();
    soon("nothing is counted as locked", || locked_kib() <= before);
}

/// It may only be read for a while.
fn protect(shape: Shape) {
    let mut gpu = Gpu::new();
    let map = there(&gpu, shape);
    map.protect(vxe_uapi::RO);
    touch(&gpu, map);
    gpu.expect_fault("a write", |c| _ = c.store(map.at(0), 1));
    map.protect(vxe_uapi::RW);
    gpu.increment(map.at(0));
    map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == 0)));
}

pub fn subtests(p: &mut Program) {
    type Sub = (&'static str, &'static str, fn(Shape));
    let subs: [Sub; 14] = [
        ("gup", "is held by the kernel", held),
        ("remote", "is read and written by another", remote),
        ("mremap", "is moved to other addresses", remap),
        ("mremap-part", "is moved in part", remap_part),
        ("munmap", "is unmapped in part", unmap),
        ("dontneed", "is thrown away", dont_need),
        ("free", "may be freed", free),
        ("free-store", "may be freed, and is written on the device", free_and_store),
        ("ksm", "is merged", merge),
        ("mlock", "is locked", lock),
        ("mlock-onfault", "is locked as it is touched", lock_on_fault),
        ("mlock-shared", "is locked by a child", lock_shared),
        ("mprotect", "is protected", protect),
        ("held-twice", "is held over and over", |shape| (0..3).for_each(|_| held(shape))),
    ];
    for (shape, name, about) in SHAPES {
        for (sub, what, test) in subs {
            if sub == "munmap" && matches!(shape, Shape::Middle) {
                continue;
            }
            p.subtest(format!("{sub}-{name}"), format!("{about} {what}"), move || test(shape));
        }
    }
}
