// SPDX-License-Identifier: GPL-2.0

//! How long advice holds.

use super::{advise, expect, follow, mirrored, span, Backing, ADVICE, ALL, BACK, DEFAULT};
use std::{
    ops::Range,
    time::{Duration, Instant},
};
use vxe_client::{sys, Bind, Stats, Vm};
use vxe_uapi::{
    gpu::device,
    time::expect_prompt,
    vmas::{vmas, Attributes, Vma},
    Gpu, Map, CHUNK, MIDDLE, PAGE, RW, SZ_2M,
};

/// How soon attributes must be gone with their memory.
const SOON: Duration = Duration::from_secs(2);

/// How long to wait for that on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(30);

/// What memory has after the advice of [`advise_all`].
fn advised() -> Attributes {
    ADVICE.iter().fold(DEFAULT, |a, advice| follow(*advice, a, Backing::Mirror))
}

fn advise_all(vm: &Vm, span: &Range<u64>) {
    ADVICE.iter().for_each(|advice| advise(vm, span, *advice));
    // The GPU may do atomics, or the tests' jobs would fail.
    advise(vm, span, ADVICE[1]);
}

fn wanted() -> Attributes {
    follow(ADVICE[1], advised(), Backing::Mirror)
}

/// `span` of a VM that is mirrored whole has these attributes, and the rest none.
fn only(span: &Range<u64>, attributes: Attributes) -> [(Range<u64>, Attributes); 3] {
    [(ALL.start..span.start, DEFAULT), (span.clone(), attributes), (span.end..ALL.end, DEFAULT)]
}

/// Advice holds through faults, through the loss of pages, and for whatever memory comes after.
pub fn survives() {
    let gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, SZ_2M);
    let place = span(map);
    gpu.increment(map.at(0));
    advise_all(gpu.vm(), &place);
    let held = |what: &str| expect(what, gpu.vm(), &ALL, &only(&place, wanted()));
    held("memory that the GPU has mapped");
    gpu.increment(map.at(0));
    held("mapped anew");
    map.madvise(libc::MADV_DONTNEED);
    held("without pages");
    gpu.increment(map.at(0));
    held("with new pages");
    map.unmap();
    held("without memory");
    map.replace_anon(RW);
    gpu.increment(map.at(0));
    held("with new memory");
    gpu.vm().bind(&[Bind::prefetch(place.start, MIDDLE as u64, 0)]).expect("prefetch");
    held("with memory mapped ahead");
    map.expect_word("counted", 0, 1);
}

/// A VM whose attributes go with the memory.
fn resetting() -> Gpu {
    let vm = Vm::new(&device()).expect("a VM");
    vm.bind(&[Bind::mirror(0, ALL.end).flags(sys::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET)])
        .expect("a mirror");
    Gpu::on_vm(&vm)
}

/// Waits until the VMAs are these: the kernel collects what was unmapped in its own time.
#[track_caller]
fn expect_soon(what: &str, vm: &Vm, wanted: &[(Range<u64>, Attributes)]) {
    let is = |vmas: &[Vma]| {
        vmas.len() == wanted.len()
            && vmas.iter().zip(wanted).all(|(v, (s, a))| v.span == *s && v.attributes == *a)
    };
    let start = Instant::now();
    while !is(&vmas(vm, ALL)) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    expect(what, vm, &ALL, wanted);
    expect_prompt(what, took, SOON);
}

/// Memory that the GPU used is unmapped: what is there next has no advice, and one VMA with all
/// around it.
pub fn autoreset() {
    let gpu = resetting();
    let map = Map::aligned(CHUNK, SZ_2M);
    let place = span(map);
    for round in 1..=3 {
        map.replace_anon(RW);
        gpu.increment(map.at(0));
        advise_all(gpu.vm(), &place);
        gpu.increment(map.at(0));
        expect(&format!("round {round}"), gpu.vm(), &ALL, &only(&place, wanted()));
        map.unmap();
        expect_soon(&format!("unmapped in round {round}"), gpu.vm(), &[(ALL, DEFAULT)]);
    }
}

/// One of three chunks that were advised together is unmapped: the others keep theirs.
pub fn autoreset_part() {
    let gpu = resetting();
    let map = Map::aligned(3 * CHUNK, SZ_2M);
    let place = span(map);
    let middle = map.part(CHUNK, CHUNK);
    let hole = span(middle);
    advise_all(gpu.vm(), &place);
    for chunk in 0..3 {
        gpu.increment(map.at(chunk * CHUNK));
    }
    middle.unmap();
    expect_soon(
        "the middle unmapped",
        gpu.vm(),
        &[
            (ALL.start..place.start, DEFAULT),
            (place.start..hole.start, wanted()),
            (hole.clone(), DEFAULT),
            (hole.end..place.end, wanted()),
            (place.end..ALL.end, DEFAULT),
        ],
    );
    for chunk in [0, 2] {
        map.part(chunk * CHUNK, CHUNK).unmap();
    }
    expect_soon("all unmapped", gpu.vm(), &[(ALL, DEFAULT)]);
}

/// As in xe, advice for memory that the GPU never used stays: nobody told the driver of its end.
pub fn untouched() {
    let gpu = resetting();
    let map = Map::aligned(MIDDLE, SZ_2M);
    let place = span(map);
    map.fill(|o| o as u32);
    advise_all(gpu.vm(), &place);
    map.unmap();
    // What comes first collects what was unmapped.
    // SAFETY: there is no fence to be written.
    unsafe { gpu.vm().bind_async(&[], None, &[]) }.expect("no binds");
    expect("never used", gpu.vm(), &ALL, &only(&place, wanted()));
}

/// What is bound over advised memory has no advice; a mirror becomes one with those beside it.
pub fn rebind() {
    let vm = mirrored();
    let map = Map::reserve(MIDDLE, SZ_2M);
    let place = span(map);
    advise_all(&vm, &place);
    let part = span(map.part(PAGE, PAGE));
    vm.bind(&[Bind::mirror(part.start, PAGE as u64)]).expect("a mirror over a page");
    expect(
        "a page bound anew",
        &vm,
        &ALL,
        &[
            (ALL.start..place.start, DEFAULT),
            (place.start..part.start, wanted()),
            (part.clone(), DEFAULT),
            (part.end..place.end, wanted()),
            (place.end..ALL.end, DEFAULT),
        ],
    );
    vm.bind(&[Bind::mirror(place.start, MIDDLE as u64)]).expect("a mirror over all");
    expect("all bound anew", &vm, &ALL, &[(ALL, DEFAULT)]);

    // Another entry of the table, and then what is advised to be the same: not the same mirror.
    vm.bind(&[Bind::mirror(place.start, MIDDLE as u64).pat(2)]).expect("another mirror");
    expect("another entry", &vm, &ALL, &only(&place, Attributes::bound_with(2)));
    advise(&vm, &place, BACK[1]);
    expect("advised to look alike", &vm, &ALL, &only(&place, DEFAULT));
    vm.bind(&[Bind::unmap(place.start, MIDDLE as u64)]).expect("unmap");
    let [before, _, after] = only(&place, DEFAULT);
    expect("unmapped", &vm, &ALL, &[before, after]);
}

/// Memory whose attributes change is mapped anew by the next fault, memory whose attributes stay
/// is not.
pub fn remapped() {
    let gpu = Gpu::new();
    // Chunks of a size that nothing else of this test has.
    let (map, other) = (Map::aligned(MIDDLE, SZ_2M), Map::aligned(MIDDLE, SZ_2M));
    let faults = || {
        let before = Stats::read(gpu.device()).expect("the counters");
        for map in [map, other] {
            gpu.increment(map.at(0));
        }
        let after = Stats::read(gpu.device()).expect("the counters");
        after.since(&before)["svm_64K_pagefault_count"]
    };
    // The kernel may take memory from the GPU at any time, for reasons of its own: not each time.
    let expect = |what: &str, wanted: u64, before: &dyn Fn()| {
        let counts: Vec<_> = (0..3)
            .map(|_| {
                before();
                faults()
            })
            .take_while(|&count| count != wanted)
            .collect();
        assert!(counts.len() < 3, "{what}: {counts:?} faults instead of {wanted}");
    };
    assert!(faults() >= 2, "nothing was mapped at first");
    expect("mapped", 0, &|| ());
    for advice in ADVICE.into_iter().filter(|a| *a != ADVICE[2]).chain(BACK) {
        advise(gpu.vm(), &span(map), advice);
        let count = faults();
        assert!((1..=2).contains(&count), "{advice:?}: {count} faults");
        expect(&format!("{advice:?} again"), 0, &|| advise(gpu.vm(), &span(map), advice));
    }
}
