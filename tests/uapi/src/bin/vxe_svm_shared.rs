// SPDX-License-Identifier: GPL-2.0

//! Pages that several processes have, since a `fork()`, or that one process has in several places: they
//! move to the device and back, are split and evicted, and everybody has what is his.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use vxe_uapi::{
    contents::pattern,
    env::iterations,
    gpu::device,
    memory::{transparent_huge, vmstat, Merging, Swap},
    process::{fork, Child},
    sysfs::Slot,
    vram::{evict_all, in_device, prefetch, region, touch},
    Gpu, Map, Program, MIDDLE, PAGE, RO, SZ_2M,
};

/// What the GPU of a process does with memory.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
    Prefetch,
}

const ACCESSES: [(Access, &str); 3] =
    [(Access::Read, "read"), (Access::Write, "write"), (Access::Prefetch, "prefetch")];

/// What the GPU of process number `who` writes, and where: words that differ from process to process.
fn mark(who: u32) -> (usize, u32) {
    (SZ_2M / 2 + PAGE + 4 * who as usize, 0xc000_0000 | who)
}

/// The memory as process number `who` has it after its GPU has written.
fn marked(who: u32) -> impl Fn(usize) -> u32 {
    let (at, value) = mark(who);
    move |offset| if offset == at { value } else { pattern(offset) }
}

impl Access {
    /// Has the GPU of process number `who` do it.
    #[track_caller]
    fn run(self, gpu: &Gpu, map: Map, who: u32) {
        match self {
            Self::Read => touch(gpu, map),
            Self::Write => {
                let (at, value) = mark(who);
                gpu.store(map.at(at), value);
            }
            Self::Prefetch => _ = prefetch(gpu, map),
        }
    }

    /// Checks that all is on the device after it, if nobody else is at work: as one, or in small pages.
    #[track_caller]
    fn expect_moved(self, gpu: &Gpu, map: Map) {
        if let Self::Prefetch = self {
            assert_eq!(in_device(gpu, map), map.len(), "bytes in the device's memory");
        }
    }

    /// Checks what the process has after it.
    #[track_caller]
    fn check(self, map: Map, who: u32) {
        match self {
            Self::Write => map.expect("what the process has", marked(who)),
            _ => map.expect("what the process has", pattern),
        }
    }
}

/// A huge page, filled.
#[track_caller]
fn huge() -> Map {
    let map = transparent_huge(SZ_2M);
    map.fill(pattern);
    map
}

/// Has a child check its memory whenever it is told, until it is told 0.
#[track_caller]
fn checker(map: Map, value: impl Fn(usize) -> u32) -> Child {
    fork(move |link| {
        while link.receive() != 0 {
            map.expect("the child's", &value);
            link.send(0);
        }
    })
}

/// Has such a child check its memory.
#[track_caller]
fn check(child: &Child) {
    child.link().send(1);
    child.link().receive();
}

/// Has it check once more, and end.
#[track_caller]
fn dismiss(child: Child) {
    check(&child);
    child.link().send(0);
    child.expect_success();
}

/// Parent and child share a huge page since a fork; the GPU of one of them works on it.
fn one_works(access: Access, is_child: bool) {
    region(&device());
    for _ in 0..iterations(2) {
        let map = huge();
        let child = fork(|link| {
            link.receive();
            if is_child {
                let gpu = Gpu::new();
                access.run(&gpu, map, 1);
                access.expect_moved(&gpu, map);
                access.check(map, 1);
            } else {
                map.expect("the child's", pattern);
            }
            link.send(0);
            link.receive();
            map.write(0, 0xc);
        });
        let gpu = Gpu::new();
        if !is_child {
            access.run(&gpu, map, 0);
            access.expect_moved(&gpu, map);
        }
        child.link().send(0);
        child.link().receive();
        if is_child {
            map.expect("the parent's", pattern);
        } else {
            access.check(map, 0);
        }
        // One of them writes all anew, the other has what it had.
        child.link().send(0);
        child.expect_success();
        gpu.store(map.at(4), 0xa);
        map.expect_word("the parent's", 0, pattern(0));
        map.expect_word("the parent's", 4, 0xa);
        map.unmap();
    }
}

/// Several processes share huge pages, and the GPUs of all of them work at once.
fn all_work() {
    const CHILDREN: u32 = 3;
    region(&device());
    for _ in 0..iterations(1) {
        let maps = [huge(), huge()];
        let body = move |who: u32| {
            for (access, _) in ACCESSES.into_iter().cycle().skip(who as usize).take(3) {
                let gpu = Gpu::new();
                maps.iter().for_each(|map| access.run(&gpu, *map, who));
            }
            maps.iter().for_each(|map| Access::Write.check(*map, who));
        };
        let children: Vec<_> = (1..=CHILDREN)
            .map(|who| {
                fork(move |link| {
                    link.receive();
                    body(who);
                })
            })
            .collect();
        children.iter().for_each(|child| child.link().send(0));
        body(0);
        children.into_iter().for_each(Child::expect_success);
        maps.iter().for_each(|map| Access::Write.check(*map, 0));
        maps.iter().for_each(Map::unmap);
    }
}

/// What is on the device, shared, is evicted, while children read it.
fn evicted() {
    region(&device());
    for _ in 0..iterations(2) {
        let (map, gpu) = (huge(), Gpu::new());
        let before = checker(map, pattern);
        prefetch(&gpu, map);
        let after = checker(map, pattern);
        before.link().send(1);
        evict_all(gpu.device());
        before.link().receive();
        check(&after);
        // There again, and again with children of both kinds.
        prefetch(&gpu, map);
        after.link().send(1);
        evict_all(gpu.device());
        after.link().receive();
        map.expect("the parent's", pattern);
        dismiss(before);
        dismiss(after);
        map.unmap();
    }
}

/// The device is unbound while children share what is on it.
fn unbound() {
    region(&device());
    let slot = Slot::first();
    for _ in 0..iterations(2) {
        let (map, gpu) = (huge(), Gpu::new());
        let before = checker(map, pattern);
        prefetch(&gpu, map);
        let after = checker(map, pattern);
        before.link().send(1);
        slot.unbind();
        before.link().receive();
        map.expect("the parent's", pattern);
        drop(gpu);
        slot.bind();
        dismiss(before);
        dismiss(after);
        map.unmap();
    }
}

/// What a process does to a part of a huge page, so that it maps the rest by single entries.
#[derive(Clone, Copy)]
enum Part {
    Unmap,
    Protect,
    Drop,
    Move,
}

const PARTS: [(Part, &str); 4] = [
    (Part::Unmap, "unmap"),
    (Part::Protect, "protect"),
    (Part::Drop, "drop"),
    (Part::Move, "move"),
];

/// The part.
const PART: (usize, usize) = (SZ_2M / 2 + MIDDLE, MIDDLE);

impl Part {
    #[track_caller]
    fn run(self, map: Map) {
        let part = map.part(PART.0, PART.1);
        match self {
            Self::Unmap => part.unmap(),
            Self::Protect => part.protect(RO),
            Self::Drop => part.madvise(libc::MADV_DONTNEED),
            Self::Move => {
                let to = Map::reserve(PART.1, SZ_2M);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let moved = part.remap(PART.1, flags, Some(to));
                moved.expect("at its new place", |o| pattern(PART.0 + o));
            }
        }
    }

    /// Checks what is left, the words of one page in four.
    #[track_caller]
    fn check(self, map: Map) {
        for page in (0..SZ_2M).step_by(4 * PAGE) {
            let is_part = (PART.0..PART.0 + PART.1).contains(&page);
            let what = map.part(page, PAGE);
            match self {
                Self::Unmap | Self::Move if is_part => {}
                Self::Drop if is_part => what.expect("what was dropped", |_| 0),
                _ => what.expect("what is left", |o| pattern(page + o)),
            }
        }
    }
}

/// One of them cuts the huge page, before or after the GPU of the parent has worked on it: one maps it by
/// single entries then, and the other by one.
fn cut(part: Part, is_child: bool) {
    region(&device());
    for is_early in [true, false] {
        let (map, gpu) = (huge(), Gpu::new());
        let child = fork(|link| {
            if is_child {
                if !is_early {
                    link.receive();
                }
                part.run(map);
                if is_early {
                    link.send(0);
                    link.receive();
                }
                // From the middle on, so that it is no first page of anything that is touched first.
                map.expect_word("the child's", SZ_2M / 2 + PAGE, pattern(SZ_2M / 2 + PAGE));
                part.check(map);
                touch(&Gpu::new(), map.part(0, SZ_2M / 2));
                part.check(map);
            } else {
                link.receive();
                map.expect("the child's", pattern);
            }
        });
        match (is_early, is_child) {
            (true, true) => _ = child.link().receive(),
            (true, false) => part.run(map),
            _ => {}
        }
        prefetch(&gpu, map.part(0, SZ_2M / 2));
        touch(&gpu, map.part(0, SZ_2M / 2));
        if !is_early && !is_child {
            part.run(map);
        }
        child.link().send(0);
        if is_child {
            map.expect("the parent's", pattern);
            gpu.store(map.at(4), 0xa);
        } else {
            map.expect_word("the parent's", SZ_2M / 2 + PAGE, pattern(SZ_2M / 2 + PAGE));
            part.check(map);
            touch(&gpu, map.part(0, SZ_2M / 2));
            part.check(map);
        }
        child.expect_success();
    }
}

/// A process has the two halves of a huge page in two places, and so has its child; all of it moves to the
/// device and back.
fn two_places() {
    region(&device());
    for _ in 0..iterations(2) {
        let (map, gpu) = (huge(), Gpu::new());
        let half = SZ_2M / 2;
        let to = Map::reserve(half, SZ_2M);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let child = checker(map, pattern);
        let (lower, upper) = (map.part(0, half), map.part(half, half).remap(half, flags, Some(to)));
        prefetch(&gpu, upper);
        prefetch(&gpu, lower);
        check(&child);
        gpu.store(upper.at(8), 0xa);
        gpu.store(lower.at(8), 0xb);
        lower.expect("the lower half", |o| if o == 8 { 0xb } else { pattern(o) });
        upper.expect("the upper half", |o| if o == 8 { 0xa } else { pattern(half + o) });
        evict_all(gpu.device());
        dismiss(child);
        upper.expect_word("the upper half", 8, 0xa);
        lower.unmap();
        upper.unmap();
    }
}

/// What parent and child share is in swap, and some of it is back for one of them only; then the GPU of
/// either works on it.
fn swapped(is_child: bool) {
    region(&device());
    let swap = Swap::on();
    let (map, gpu) = (huge(), Gpu::new());
    // Only what nobody shares goes there by advice.
    let before = vmstat("pswpout");
    map.madvise(libc::MADV_PAGEOUT);
    assert!(vmstat("pswpout") > before, "nothing was swapped out");
    let child = fork(|link| {
        while link.receive() != 0 {
            if is_child {
                prefetch(&Gpu::new(), map);
            }
            map.expect("the child's", pattern);
            link.send(0);
        }
    });
    for page in (0..SZ_2M).step_by(3 * PAGE) {
        map.expect_word("back from swap", page, pattern(page));
    }
    if is_child {
        check(&child);
    } else {
        prefetch(&gpu, map);
        touch(&gpu, map);
        map.expect("the parent's", pattern);
    }
    dismiss(child);
    gpu.store(map.at(0), 0xa);
    map.expect("the parent's", |o| if o == 0 { 0xa } else { pattern(o) });
    map.unmap();
    drop(swap);
}

/// The child has KSM merge what it shares with its parent, who does not: the parent's pages become KSM's
/// where they are. Then the parent's GPU works on them.
fn merged_by_a_child() {
    region(&device());
    let (map, gpu) = (Map::aligned(MIDDLE, SZ_2M), Gpu::new());
    map.fill(|_| 0x4b53_4d00);
    let merging = Merging::on();
    let child = fork(|link| {
        map.madvise(libc::MADV_MERGEABLE);
        let end = Instant::now() + Duration::from_secs(30);
        while merging.sharing() < 14 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        link.send(merging.sharing());
        link.receive();
        map.expect("the child's", |_| 0x4b53_4d00);
    });
    let sharing = child.link().receive();
    assert!(sharing >= 14, "{sharing} pages are merged");
    prefetch(&gpu, map);
    touch(&gpu, map);
    map.expect("the parent's", |_| 0x4b53_4d00);
    gpu.store(map.at(PAGE), 0xa);
    map.expect("the parent's", |o| if o == PAGE { 0xa } else { 0x4b53_4d00 });
    child.link().send(0);
    child.expect_success();
    drop(merging);
    map.expect_word("the parent's", PAGE, 0xa);
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_svm_shared",
        "Pages that several processes have, or one in several places, move and are split.",
    );
    for (who, is_child) in [("parent", false), ("child", true)] {
        for (access, name) in ACCESSES {
            p.subtest(
                format!("huge-{name}-{who}"),
                format!("a shared huge page: the GPU of the {who} does a {name}"),
                move || one_works(access, is_child),
            );
        }
        for (part, name) in PARTS {
            p.subtest(
                format!("cut-{name}-{who}"),
                format!("a part of a shared huge page: {name} by the {who}"),
                move || cut(part, is_child),
            );
        }
        p.subtest(
            format!("swapped-{who}"),
            format!("shared, in swap and back: the GPU of the {who}"),
            move || swapped(is_child),
        );
    }
    p.subtest("huge-all", "the GPUs of several processes at once", all_work);
    p.subtest("evicted", "what is shared is evicted", evicted);
    p.subtest("unbound", "the device goes with what is shared", unbound);
    p.subtest("two-places", "halves of a huge page in two places", two_places);
    p.subtest("merged-by-child", "a child has KSM merge shared pages", merged_by_a_child);
    p.main()
}
