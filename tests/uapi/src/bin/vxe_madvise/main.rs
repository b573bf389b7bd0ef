// SPDX-License-Identifier: GPL-2.0

//! MADVISE and VM_QUERY_MEM_RANGE_ATTRS: what a program says of its memory holds exactly where it
//! said so, for as long as xe has it hold.

mod atomics;
mod buffers;
mod lifetime;
mod model;
mod query;

use model::{follow, Backing, Model};
use std::{ops::Range, os::fd::AsRawFd, process::ExitCode};
use vxe_client::{Advice, AtomicAccess, Bind, Bo, Location, Migrate, Vm};
use vxe_uapi::{
    env::iterations,
    gpu::device,
    vmas::{vmas, Attributes, Vma},
    Map, Program, Rng, MIDDLE, PAGE, SZ_2M,
};

/// The whole of the GPU's addresses.
const ALL: Range<u64> = 0..1 << 48;

/// What nobody advised.
const DEFAULT: Attributes = Attributes::bound_with(0);

/// Advice of each kind.
const ADVICE: [Advice; 6] = [
    Advice::Atomic(AtomicAccess::Device),
    Advice::Atomic(AtomicAccess::Global),
    Advice::Atomic(AtomicAccess::Cpu),
    Advice::Pat(4),
    Advice::Preferred(Location::System, Migrate::AllPages),
    Advice::Preferred(Location::Local, Migrate::OnlySystemPages),
];

/// Advice that undoes all of the above.
const BACK: [Advice; 3] = [
    Advice::Atomic(AtomicAccess::Undefined),
    Advice::Pat(0),
    Advice::Preferred(Location::Local, Migrate::AllPages),
];

fn span(map: Map) -> Range<u64> {
    map.at(0)..map.at(0) + map.len() as u64
}

fn advise(vm: &Vm, span: &Range<u64>, advice: Advice) {
    vm.madvise(span.start, span.end - span.start, advice).expect("advice");
}

fn mirrored() -> Vm {
    Vm::mirrored(&device()).expect("a mirrored VM")
}

/// Fails the subtest unless the VMAs in `within` are those given, from end to end.
#[track_caller]
fn expect(what: &str, vm: &Vm, within: &Range<u64>, wanted: &[(Range<u64>, Attributes)]) {
    let wanted: Vec<Vma> = wanted
        .iter()
        .filter(|(span, _)| !span.is_empty())
        .map(|(span, attributes)| Vma { span: span.clone(), attributes: *attributes })
        .collect();
    assert_eq!(vmas(vm, within.clone()), wanted, "{what}");
}

/// A VMA is split where advice begins and ends, and nothing else of it changes.
fn split() {
    const SIZE: usize = 16 * PAGE;
    let place = Map::reserve(SIZE, SZ_2M);
    for (what, offset, length) in [
        ("the first page", 0, PAGE),
        ("a page", 5 * PAGE, PAGE),
        ("the last page", SIZE - PAGE, PAGE),
        ("most", PAGE, SIZE - 2 * PAGE),
        ("all", 0, SIZE),
    ] {
        for advice in ADVICE {
            let vm = Vm::new(&device()).expect("a VM");
            let (whole, part) = (span(place), span(place.part(offset, length)));
            vm.bind(&[Bind::mirror(whole.start, SIZE as u64)]).expect("a mirror");
            advise(&vm, &part, advice);
            expect(
                &format!("{what}: {advice:?}"),
                &vm,
                &ALL,
                &[
                    (whole.start..part.start, DEFAULT),
                    (part.clone(), follow(advice, DEFAULT, Backing::Mirror)),
                    (part.end..whole.end, DEFAULT),
                ],
            );
        }
    }
}

/// Advice on several VMAs, and on what is between them, keeps their borders.
fn across() {
    let vm = Vm::new(&device()).expect("a VM");
    let place = Map::reserve(16 * PAGE, SZ_2M);
    let at = |page: usize| place.at(0) + (page * PAGE) as u64;
    vm.bind(&[
        Bind::mirror(at(0), 4 * PAGE as u64),
        Bind::mirror(at(4), 4 * PAGE as u64).pat(1),
        Bind::mirror(at(10), 6 * PAGE as u64),
    ])
    .expect("mirrors");
    let advice = Advice::Atomic(AtomicAccess::Cpu);
    advise(&vm, &(at(2)..at(12)), advice);
    let one = Attributes::bound_with(1);
    let advised = |attributes| follow(advice, attributes, Backing::Mirror);
    expect(
        "three VMAs and a hole",
        &vm,
        &ALL,
        &[
            (at(0)..at(2), DEFAULT),
            (at(2)..at(4), advised(DEFAULT)),
            (at(4)..at(8), advised(one)),
            (at(10)..at(12), advised(DEFAULT)),
            (at(12)..at(16), DEFAULT),
        ],
    );
    // Where nothing is, nothing is advised.
    advise(&vm, &(at(8)..at(10)), advice);
    vm.bind(&[Bind::mirror(at(8), 2 * PAGE as u64)]).expect("a mirror in the hole");
    expect("the hole, filled", &vm, &(at(8)..at(10)), &[(at(8)..at(10), DEFAULT)]);
}

/// Advice of one kind leaves the others alone, in whichever order they come.
fn independent() {
    let kinds = [ADVICE[2], ADVICE[3], ADVICE[4]];
    let wanted = kinds.iter().fold(DEFAULT, |a, advice| follow(*advice, a, Backing::Mirror));
    let place = span(Map::reserve(MIDDLE, SZ_2M));
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let vm = mirrored();
        order.iter().for_each(|&i| advise(&vm, &place, kinds[i]));
        let rest = [(ALL.start..place.start, DEFAULT), (place.end..ALL.end, DEFAULT)];
        let [before, after] = rest;
        expect("all kinds", &vm, &ALL, &[before.clone(), (place.clone(), wanted), after.clone()]);
        // VMAs that became alike by advice stay apart.
        order.iter().for_each(|&i| advise(&vm, &place, BACK[i]));
        expect("none", &vm, &ALL, &[before, (place.clone(), DEFAULT), after]);
    }
}

/// Addresses may be sign-extended, as the CPU has them.
fn canonical() {
    let vm = mirrored();
    let upper = 1u64 << 47;
    let length = MIDDLE as u64;
    let advice = ADVICE[2];
    vm.madvise(!0 << 47, length, advice).expect("advice on a canonical address");
    let wanted = follow(advice, DEFAULT, Backing::Mirror);
    expect(
        "the upper half",
        &vm,
        &ALL,
        &[(0..upper, DEFAULT), (upper..upper + length, wanted), (upper + length..ALL.end, DEFAULT)],
    );
    let over = vm.madvise(ALL.end - length, 2 * length, advice);
    assert_eq!(over.map_err(|e| e.errno()), Err(libc::EINVAL), "over the end");
    vm.madvise(ALL.end - length, length, advice).expect("advice on the last addresses");
}

/// Memory is preferred in places that there are.
fn locations() {
    let device = device();
    let vm = mirrored();
    let place = span(Map::reserve(MIDDLE, SZ_2M));
    let regions = device.memory_regions().expect("the regions");
    let vram = vxe_client::sys::DRM_XE_MEM_REGION_CLASS_VRAM as u16;
    let prefer = |fd: i32, region: u16| {
        let advice = Advice::Preferred(Location::Device { fd, region }, Migrate::AllPages);
        vm.madvise(place.start, MIDDLE as u64, advice).map_err(|e| e.errno())
    };
    let file = vxe_uapi::memory::memfd(PAGE, 0);
    assert_eq!(prefer(file.as_raw_fd(), 0), Err(libc::ENOENT), "a file that is no device");
    assert_eq!(prefer(0x7000, 0), Err(libc::ENOENT), "no file");
    assert_eq!(prefer(0, 1), Err(libc::EINVAL), "a region of any device");
    assert_eq!(prefer(-1, 1), Err(libc::EINVAL), "a region of the system");
    assert_eq!(prefer(-2, 0), Err(libc::EINVAL), "no file, certainly");
    if regions.iter().all(|r| r.mem_class != vram) {
        assert_eq!(prefer(device.as_raw_fd(), 0), Err(libc::ENOENT), "a device without memory");
    }
    expect("all of it refused", &vm, &ALL, &[(ALL, DEFAULT)]);
}

/// A VM that is gone takes no advice, and has no attributes.
fn destroyed() {
    let vm = mirrored();
    vm.destroy().expect("destroy");
    let advice = vm.madvise(0, MIDDLE as u64, ADVICE[0]);
    assert_eq!(advice.map_err(|e| e.errno()), Err(libc::EINVAL), "advice");
    let attributes = vm.memory_attributes(0, MIDDLE as u64);
    assert_eq!(attributes.err().map(|e| e.errno()), Some(libc::EINVAL), "attributes");
}

/// Random advice and binds, against a model.
fn random() {
    const PAGES: usize = 24;
    let mut rng = Rng::from_environment();
    let vm = mirrored();
    let mut model = Model::mirrored(ALL);
    let place = Map::reserve(PAGES * PAGE, SZ_2M);
    let bo = Bo::system(vm.device(), PAGES * PAGE).expect("a buffer");
    for round in 0..iterations(300) {
        let start = rng.below(PAGES);
        let length = (1 + rng.below(PAGES - start)) * PAGE;
        let part = span(place.part(start * PAGE, length));
        let (at, bytes) = (part.start, length as u64);
        match rng.below(8) {
            0 => {
                vm.bind(&[Bind::unmap(at, bytes)]).expect("unmap");
                model.unmap(part.clone());
            }
            1 => {
                vm.bind(&[Bind::bo(&bo, 0, at, bytes)]).expect("a buffer");
                model.bind(part.clone(), Backing::Buffer, 2);
            }
            2 | 3 => {
                let pat = rng.below(2) as u16;
                vm.bind(&[Bind::mirror(at, bytes).pat(pat)]).expect("a mirror");
                model.bind(part.clone(), Backing::Mirror, pat.into());
            }
            _ => {
                let all = [ADVICE.as_slice(), &BACK].concat();
                let advice = all[rng.below(all.len())];
                let done = vm.madvise(at, bytes, advice).map_err(|e| e.errno());
                let wanted = model.advise(part.clone(), advice);
                assert_eq!(done, wanted, "round {round}: {advice:?} on {part:#x?}");
            }
        }
        assert_eq!(vmas(&vm, ALL), model.vmas(), "round {round}, at {part:#x?}");
    }
}

fn main() -> ExitCode {
    let mut p = Program::new(
        "vxe_madvise",
        "What a program says of its memory holds exactly where it said so, and as long.",
    );
    p.subtest("split", "VMAs are split where advice begins and ends", split);
    p.subtest("across", "advice on several VMAs and a hole", across);
    p.subtest("independent", "one kind of advice leaves the others", independent);
    p.subtest("canonical", "addresses that are sign-extended", canonical);
    p.subtest("locations", "places that there are, and are not", locations);
    p.subtest("destroyed", "a VM that is gone", destroyed);
    p.subtest("survives", "attributes outlive memory", lifetime::survives);
    p.subtest("autoreset", "or go with it", lifetime::autoreset);
    p.subtest("autoreset-part", "or a part of it", lifetime::autoreset_part);
    p.subtest("autoreset-untouched", "but not from where the GPU never was", lifetime::untouched);
    p.subtest("rebind", "a bind begins anew", lifetime::rebind);
    p.subtest("remapped", "what changes is mapped anew, and only that", lifetime::remapped);
    p.subtest("atomics", "atomics of the GPU, where it may do them", atomics::on_memory);
    p.subtest("atomics-part", "of a chunk that is mapped", atomics::on_a_page);
    p.subtest("atomics-buffer", "on a buffer", atomics::on_a_buffer);
    p.subtest("buffers", "a buffer is advised as a whole", buffers::whole);
    p.subtest("buffers-refuse", "what it does not bear changes nothing", buffers::refuse);
    p.subtest("purgeable", "contents that are not needed", buffers::purgeable);
    p.subtest("query", "the count, then the entries", query::protocol);
    p.subtest("query-part", "entries of a part", query::part);
    p.subtest("random", "random advice and binds against a model", random);
    p.main()
}
