// SPDX-License-Identifier: GPL-2.0

//! Memory whose accesses somebody tracks: by userfaultfd, which is told of them, or by PAGEMAP_SCAN, which
//! asks later. Those of the GPU are seen like those of the CPU, wherever the memory was.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use vxe_client::{Advice, Location, Migrate};
use vxe_uapi::{
    contents::{filled, pattern},
    uffd::{accessed, Protection, Told, Uffd},
    vram::{bring, counted, in_device, prefetch, region},
    Gpu, Map, Program, Stop, MIDDLE, PAGE, SZ_2M,
};

/// How many pages are tracked.
const PAGES: usize = 32;

/// Those of so many pages that are accessed one by one.
fn some(pages: usize) -> impl Iterator<Item = usize> {
    (1..pages).step_by(5)
}

/// Where the memory is when it is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// In RAM, and no GPU has seen it.
    Fresh,
    /// In RAM, where it is to stay.
    Ram,
    /// On the device.
    Device,
}

const PLACES: [(Where, &str); 3] =
    [(Where::Fresh, "fresh"), (Where::Ram, "ram"), (Where::Device, "device")];

impl Where {
    /// Memory that is there.
    #[track_caller]
    fn make(self, gpu: &Gpu) -> Map {
        region(gpu.device());
        let map = filled(PAGES * PAGE);
        match self {
            Self::Fresh => {}
            Self::Ram => {
                let stay = Advice::Preferred(Location::System, Migrate::AllPages);
                gpu.vm().madvise(map.at(0), map.len() as u64, stay).expect("advice");
                gpu.store(map.at(0), pattern(0));
            }
            Self::Device => bring(gpu, map),
        }
        map
    }
}

/// What the GPU does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Access {
    /// Has the GPU do it to a page, which is as it was afterwards.
    #[track_caller]
    fn run(self, gpu: &Gpu, map: Map, page: usize, sink: Map) {
        let at = page * PAGE + 64;
        match self {
            Self::Read => gpu.copy(map.part(page * PAGE, 256), sink.part(0, 256)),
            Self::Write => gpu.store(map.at(at), pattern(at)),
        }
    }

    /// Whether it is what is kept away.
    fn is_seen(self, protection: Protection) -> bool {
        self == Self::Write || protection == Protection::ReadWrite
    }
}

/// Nobody is told; a scan says which pages were accessed.
fn scanned(place: Where, protection: Protection) {
    let (gpu, sink) = (Gpu::new(), Map::shared(PAGE));
    let map = place.make(&gpu);
    let _uffd = Uffd::watch(map, protection, Told::Nobody);
    for access in [Access::Read, Access::Write] {
        for page in some(PAGES) {
            accessed(map, protection, true);
            // What was on a device and written there may be said to be written once more; but then no more.
            if accessed(map, protection, true) != 0 {
                assert_eq!(accessed(map, protection, false), 0, "pages after a reset");
            }
            access.run(&gpu, map, page, sink);
            let seen = accessed(map, protection, false);
            let is_seen = (seen >> page) & 1 == 1;
            if access.is_seen(protection) {
                assert!(is_seen, "page {page} was accessed, and a scan says {seen:#x}");
            }
        }
    }
    map.expect("all", pattern);
}

/// Somebody is told, and takes the protection of a page away.
fn told(place: Where, protection: Protection) {
    let (gpu, sink) = (Gpu::new(), Map::shared(PAGE));
    let map = place.make(&gpu);
    let uffd = Uffd::watch(map, protection, Told::Test);
    let (seen, done) = (AtomicU64::new(0), Stop::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.is_set() {
                let Some(addr) = uffd.next_fault(Duration::from_millis(20)) else { continue };
                let page = (addr - map.at(0)) as usize / PAGE;
                seen.fetch_or(1 << page, Ordering::AcqRel);
                uffd.protect(map.part(page * PAGE, PAGE), protection, false);
            }
        });
        let guard = done.on_drop();
        let mut missed = Vec::new();
        for access in [Access::Read, Access::Write] {
            for page in some(PAGES) {
                uffd.protect(map, protection, true);
                seen.store(0, Ordering::Release);
                access.run(&gpu, map, page, sink);
                let seen = seen.load(Ordering::Acquire);
                if access.is_seen(protection) && (seen >> page) & 1 == 0 {
                    missed.push(page);
                }
            }
        }
        // Nobody may wait for ever when the checks fail.
        drop(guard);
        uffd.protect(map, protection, false);
        assert!(missed.is_empty(), "accesses to pages {missed:?} were not told of");
    });
    map.expect("all", pattern);
}

/// What is tracked does not move to the device, and what is there is used by nobody there.
fn stays(protection: Protection) {
    let gpu = Gpu::new();
    let map = Where::Fresh.make(&gpu);
    {
        let _uffd = Uffd::watch(map, protection, Told::Nobody);
        let counts = counted(gpu.device(), || {
            prefetch(&gpu, map);
            assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though tracked");
            gpu.store(map.at(8), pattern(8));
            assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though tracked");
        });
        assert_eq!(counts["svm_device_copy_kb"], 0, "it moved to and fro: {counts:?}");
    }
    // When nobody tracks it any more it moves like other memory.
    prefetch(&gpu, map);
    assert_eq!(in_device(&gpu, map), map.len(), "bytes in the device's memory, not tracked");
    let uffd = Uffd::watch(map, protection, Told::Nobody);
    uffd.protect(map, protection, true);
    gpu.store(map.at(8), pattern(8));
    assert_eq!(in_device(&gpu, map), 0, "bytes in the device's memory, though tracked");
    map.expect("all", pattern);
}

/// A part of what the GPU has mapped as one chunk is tracked.
fn part(protection: Protection) {
    let gpu = Gpu::new();
    region(gpu.device());
    let map = Map::aligned(SZ_2M, SZ_2M);
    map.fill(pattern);
    bring(&gpu, map);
    // In the middle of it, however large a page is.
    let from = SZ_2M / 4;
    let tracked = map.part(from, MIDDLE);
    let _uffd = Uffd::watch(tracked, protection, Told::Nobody);
    for page in some(MIDDLE / PAGE) {
        accessed(tracked, protection, true);
        accessed(tracked, protection, true);
        let at = page * PAGE + 8;
        gpu.run(|c| {
            c.store(map.at(0), pattern(0));
            c.store(tracked.at(at), pattern(from + at));
            c.store(map.at(SZ_2M - 4), pattern(SZ_2M - 4));
        });
        let seen = accessed(tracked, protection, false);
        assert!((seen >> page) & 1 == 1, "page {page} was written, and a scan says {seen:#x}");
    }
    map.expect("all", pattern);
}

/// A process that is tracked forks: neither loses anything.
fn forked(protection: Protection) {
    let gpu = Gpu::new();
    let map = Where::Device.make(&gpu);
    let uffd = Uffd::watch(map, protection, Told::Nobody);
    uffd.protect(map, protection, true);
    let child = vxe_uapi::process::fork(|_| {
        let own = Gpu::on_device(gpu.device());
        own.store(map.at(PAGE), 0xc);
        map.expect("the child's", |o| if o == PAGE { 0xc } else { pattern(o) });
    });
    gpu.store(map.at(3 * PAGE), pattern(3 * PAGE));
    child.expect_success();
    let seen = accessed(map, protection, false);
    assert!((seen >> 3) & 1 == 1, "page 3 was written, and a scan says {seen:#x}");
    map.expect("the parent's", pattern);
}

/// The kernel cannot move pages that are on a device: UFFDIO_MOVE fails with EFAULT, and changes nothing.
/// When this fails the kernel has learned it, and the documentation is to be changed.
fn moved() {
    let gpu = Gpu::new();
    region(gpu.device());
    let from = Map::aligned(MIDDLE, SZ_2M);
    from.fill(pattern);
    bring(&gpu, from);
    let to = Map::aligned(MIDDLE, SZ_2M);
    let uffd = Uffd::movable(to);
    let refused = uffd.move_from(from).map_err(|e| e.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EFAULT)), "UFFDIO_MOVE of pages on the device");
    // A program that touches them first can.
    from.expect("where it was", pattern);
    uffd.move_from(from).expect("UFFDIO_MOVE of pages in RAM");
    to.expect("where it went", pattern);
    gpu.increment(to.at(4));
    to.expect_word("counted", 4, pattern(4).wrapping_add(1));
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_tracked",
        "Who tracks accesses to memory by userfaultfd sees those of the GPU.",
    );
    for (protection, name) in [(Protection::Write, "wp"), (Protection::ReadWrite, "rwp")] {
        for (place, at) in PLACES {
            p.subtest(
                format!("{name}-scanned-{at}"),
                format!("{name}, asked later: memory that is {at}"),
                move || scanned(place, protection),
            );
            p.subtest(
                format!("{name}-told-{at}"),
                format!("{name}, told at once: memory that is {at}"),
                move || told(place, protection),
            );
        }
        p.subtest(format!("{name}-stays"), "it does not move", move || stays(protection));
        p.subtest(format!("{name}-part"), "a part of a chunk is tracked", move || part(protection));
        p.subtest(format!("{name}-fork"), "who is tracked forks", move || forked(protection));
    }
    p.subtest("move", "UFFDIO_MOVE of what is on the device", moved);
    p.main()
}
