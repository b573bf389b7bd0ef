// SPDX-License-Identifier: GPL-2.0

//! Who may do atomics.

use super::{advise, span};
use vxe_client::{Advice, AtomicAccess, Bind, Bo};
use vxe_uapi::{Gpu, Map, MIDDLE, PAGE, SZ_2M};

const CPU: Advice = Advice::Atomic(AtomicAccess::Cpu);

/// What lets the GPU do atomics.
const BY_GPU: [AtomicAccess; 3] =
    [AtomicAccess::Undefined, AtomicAccess::Device, AtomicAccess::Global];

/// The GPU may do everything at `address` but atomics: those fail, and change nothing. `memory` is
/// what the CPU sees there.
#[track_caller]
fn expect_none(gpu: &mut Gpu, what: &str, address: u64, memory: Map) {
    gpu.store(address, 70);
    memory.expect_word(what, 0, 70);
    gpu.expect_fault(what, |c| _ = c.increment(address));
    memory.expect_word(what, 0, 70);
    let to = Map::anon(PAGE);
    gpu.run(|c| _ = c.copy(address, to.at(0), 256));
    to.expect_word(what, 0, 70);
    to.unmap();
}

#[track_caller]
fn expect_some(gpu: &Gpu, what: &str, address: u64, memory: Map) {
    gpu.store(address, 80);
    gpu.increment(address);
    memory.expect_word(what, 0, 81);
}

/// Memory is advised before the GPU uses it, while it uses it, and to the contrary.
pub fn on_memory() {
    let mut gpu = Gpu::new();
    let map = Map::aligned(MIDDLE, SZ_2M);
    advise(gpu.vm(), &span(map), CPU);
    expect_none(&mut gpu, "before the first use", map.at(0), map);
    for access in BY_GPU {
        let what = format!("{access:?}");
        advise(gpu.vm(), &span(map), Advice::Atomic(access));
        expect_some(&gpu, &what, map.at(0), map);
        advise(gpu.vm(), &span(map), CPU);
        expect_none(&mut gpu, &format!("after {what}"), map.at(0), map);
    }
}

/// A page of a chunk that the GPU has mapped as one; around it nothing changes.
pub fn on_a_page() {
    let mut gpu = Gpu::new();
    for size in [MIDDLE, SZ_2M] {
        let map = Map::aligned(size, SZ_2M);
        gpu.increment(map.at(0));
        let middle = size / 2;
        let page = map.part(middle, PAGE);
        advise(gpu.vm(), &span(page), CPU);
        expect_none(&mut gpu, "the page", page.at(0), page);
        for offset in [0, middle - PAGE, middle + PAGE, size - PAGE] {
            let beside = map.part(offset, PAGE);
            expect_some(&gpu, "beside the page", beside.at(0), beside);
        }
        expect_none(&mut gpu, "the page, after its neighbours", page.at(0), page);
        advise(gpu.vm(), &span(page), Advice::Atomic(AtomicAccess::Device));
        expect_some(&gpu, "the page, after all", page.at(0), page);
    }
}

/// A buffer that the GPU has mapped.
pub fn on_a_buffer() {
    let mut gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let mapping = bo.map().expect("a mapping");
    let memory = Map::existing(mapping.as_ptr() as usize, MIDDLE);
    let place = Map::reserve(MIDDLE, SZ_2M);
    let bind = Bind::bo(&bo, 0, place.at(0), MIDDLE as u64);
    gpu.vm().bind(&[bind.immediate()]).expect("bind");
    expect_some(&gpu, "at first", place.at(0), memory);
    advise(gpu.vm(), &span(place), CPU);
    expect_none(&mut gpu, "advised", place.at(0), memory);
    advise(gpu.vm(), &span(place), Advice::Atomic(AtomicAccess::Device));
    expect_some(&gpu, "advised to the contrary", place.at(0), memory);
    advise(gpu.vm(), &span(place), CPU);
    gpu.vm().bind(&[bind]).expect("bind");
    expect_some(&gpu, "bound anew", place.at(0), memory);
}
