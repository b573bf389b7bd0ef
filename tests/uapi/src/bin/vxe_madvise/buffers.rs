// SPDX-License-Identifier: GPL-2.0

//! Advice on buffers.

use super::{advise, expect, follow, span, Backing, ADVICE, ALL, DEFAULT};
use std::ops::Range;
use vxe_client::{request, sys, Advice, Bind, Bo, Vm};
use vxe_uapi::{gpu::device, vmas::vmas, vmas::Attributes, Gpu, Map, MIDDLE, NONE, PAGE, SZ_2M};

/// What a buffer is bound with.
const BUFFER: Attributes = Attributes::bound_with(2);

/// A mirror with a buffer in it: the VM, the buffer, its place.
fn scene() -> (Vm, Bo, Range<u64>) {
    let vm = Vm::mirrored(&device()).expect("a mirrored VM");
    let bo = Bo::system(vm.device(), MIDDLE).expect("a buffer");
    let place = Map::reserve(MIDDLE, SZ_2M);
    vm.bind(&[Bind::bo(&bo, 0, place.at(0), MIDDLE as u64)]).expect("bind");
    (vm, bo, span(place))
}

/// Advice on a part of a buffer is for all of it; mirrors beside it are split.
pub fn whole() {
    let page = PAGE as u64;
    for advice in ADVICE.into_iter().filter(|a| *a != ADVICE[1]) {
        let (vm, _bo, place) = scene();
        let wanted = follow(advice, BUFFER, Backing::Buffer);
        advise(&vm, &(place.start + page..place.start + 2 * page), advice);
        expect(
            &format!("in the middle: {advice:?}"),
            &vm,
            &ALL,
            &[
                (ALL.start..place.start, DEFAULT),
                (place.clone(), wanted),
                (place.end..ALL.end, DEFAULT),
            ],
        );
        advise(&vm, &(place.start - page..place.start + page), advice);
        expect(
            &format!("over its begin: {advice:?}"),
            &vm,
            &ALL,
            &[
                (ALL.start..place.start - page, DEFAULT),
                (place.start - page..place.start, follow(advice, DEFAULT, Backing::Mirror)),
                (place.clone(), wanted),
                (place.end..ALL.end, DEFAULT),
            ],
        );
    }
}

/// A buffer in system memory cannot bear atomics of both sides, and one that the CPU caches no access past
/// its caches: the GPU would see what whoever had the memory before left there. Advice that is refused for
/// its sake is refused for all that is beside it, too.
pub fn refuse() {
    // The first and the last entry of the table, and a compressing one, that are not coherent.
    let refused = [ADVICE[1], Advice::Pat(0), Advice::Pat(29), Advice::Pat(9)];
    let (vm, _bo, place) = scene();
    let before = vmas(&vm, ALL);
    let page = PAGE as u64;
    for span in [
        place.clone(),
        place.start..place.start + page,
        place.start - 4 * page..place.end + 4 * page,
        place.start - 4 * page..place.start + page,
        place.end - page..place.end + page,
        ALL,
    ] {
        for advice in refused {
            let result = vm.madvise(span.start, span.end - span.start, advice);
            assert_eq!(result.map_err(|e| e.errno()), Err(libc::EINVAL), "{advice:?} {span:#x?}");
            assert_eq!(vmas(&vm, ALL), before, "after a refusal of {advice:?} on {span:#x?}");
        }
    }
    for advice in refused {
        advise(&vm, &(place.end..place.end + page), advice);
    }
}

/// The contents of buffers that are not needed: vxe always retains them.
pub fn purgeable() {
    let gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    let mapping = bo.map().expect("a mapping");
    let memory = Map::existing(mapping.as_ptr() as usize, MIDDLE);
    memory.fill(|o| o as u32);
    let map = Map::reserve(MIDDLE, SZ_2M);
    let place = span(map);
    let vm = gpu.vm();
    vm.bind(&[Bind::bo(&bo, 0, place.start, MIDDLE as u64)]).expect("bind");
    let before = vmas(vm, ALL);
    for needed in [false, true, true, false, true] {
        let retained = vm.set_needed(place.start, MIDDLE as u64, needed).expect("advice");
        assert!(retained, "the contents are gone");
    }
    assert_eq!(vmas(vm, ALL), before, "attributes");
    memory.expect("kept", |o| o as u32);
    gpu.increment(place.start);
    memory.expect_word("kept for the GPU", 0, 1);

    // Where the answer is to go.
    let word = Map::anon(PAGE);
    let ask = |pointer: u64, change: &dyn Fn(&mut sys::drm_xe_madvise)| {
        let mut args = sys::drm_xe_madvise {
            vm_id: vm.id(),
            start: place.start,
            range: MIDDLE as u64,
            type_: sys::DRM_XE_VMA_ATTR_PURGEABLE_STATE,
            ..Default::default()
        };
        args.__bindgen_anon_1.purge_state_val = Default::default();
        args.__bindgen_anon_1.purge_state_val.retained_ptr = pointer;
        change(&mut args);
        // SAFETY: the kernel writes a word of the test's.
        unsafe { vm.device().call(&request::MADVISE, &mut args) }.map_err(|e| e.errno())
    };
    assert_eq!(ask(0, &|_| ()), Ok(()), "nowhere");
    assert_eq!(ask(word.at(0), &|_| ()), Ok(()), "to a word");
    word.expect_word("retained", 0, 1);
    assert_eq!(ask(word.at(0), &|_| ()), Err(libc::EINVAL), "to a word that is not 0");
    word.expect_word("as it was", 0, 1);
    let nothing = Map::anon_prot(PAGE, NONE);
    assert_eq!(ask(nothing.at(0), &|_| ()), Err(libc::EFAULT), "to no memory");
    let spoil = |spoil: fn(&mut sys::drm_xe_madvise)| ask(word.at(8), &spoil);
    assert_eq!(
        spoil(|a| a.__bindgen_anon_1.purge_state_val.val = 2),
        Err(libc::EINVAL),
        "an unknown state"
    );
    assert_eq!(spoil(|a| a.__bindgen_anon_1.purge_state_val.pad = 1), Err(libc::EINVAL), "pad");
    word.expect_word("no answer to what is refused", 8, 0);
    // What is no buffer has nothing to be purged.
    let memory = Map::aligned(MIDDLE, SZ_2M);
    assert_eq!(vm.set_needed(memory.at(0), MIDDLE as u64, false), Ok(true), "a mirror");
}
