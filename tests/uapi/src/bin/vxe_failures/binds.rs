// SPDX-License-Identifier: GPL-2.0

//! VM_BIND and MADVISE: the VM is as it was, or as it was to be.

use crate::{call, check_errno, enough, one_bind, State};
use libc::ENOBUFS;
use std::cell::Cell;
use vxe_client::{
    request,
    sys::{self, drm_xe_sync, drm_xe_vm_bind, drm_xe_vm_bind_op},
    Bind, Fence, Timeout, Wait,
};
use vxe_uapi::{
    contents::{filled, pattern},
    failure::{Failures, Kind},
    gpu::{ALL, PATIENCE},
    Buffer, Gpu, Map, MIDDLE, PAGE, SZ_2M,
};

/// A GPU address that leads to this word of a buffer.
struct Alias {
    address: u64,
    word: Map,
}

impl Alias {
    #[track_caller]
    fn expect(&self, gpu: &Gpu, what: &str) {
        let before = self.word.read(0);
        gpu.increment(self.address);
        self.word.expect_word(what, 0, before.wrapping_add(1));
    }
}

fn mirror(place: Map) -> Bind {
    Bind::mirror(place.at(0), place.len() as u64)
}

fn unmap(place: Map) -> Bind {
    Bind::unmap(place.at(0), place.len() as u64)
}

/// Binds whose allocations fail.
struct Case<'a> {
    gpu: &'a Gpu,
    /// What is bound before, over a mirror of everything.
    before: &'a [Bind],
    /// Through what the GPU reaches buffers then.
    there: &'a [Alias],
    binds: &'a [Bind],
    /// Through what it reaches them when that was done.
    after: &'a [Alias],
}

impl Case<'_> {
    fn argument(&self, ops: &[drm_xe_vm_bind_op], fence: &[drm_xe_sync]) -> drm_xe_vm_bind {
        let mut args = drm_xe_vm_bind {
            vm_id: self.gpu.vm().id(),
            num_binds: ops.len() as u32,
            num_syncs: fence.len() as u32,
            syncs: fence.as_ptr() as u64,
            ..Default::default()
        };
        match ops {
            [op] => args.__bindgen_anon_1.bind = *op,
            _ => args.__bindgen_anon_1.vector_of_binds = ops.as_ptr() as u64,
        }
        args
    }

    #[track_caller]
    fn run(&self, kind: Kind) {
        let Self { gpu, before, there, binds, after } = *self;
        let (device, vm) = (gpu.device(), gpu.vm());
        let failures = Failures::of(kind);
        let ops: Vec<_> = binds.iter().map(|bind| *bind.as_raw()).collect();
        // Of each call one of its own.
        let fences = Map::anon(4 * MIDDLE);
        let (next, unwritten) = (Cell::new(0), Cell::new(0));

        let reset = || {
            vm.bind(&[Bind::mirror(0, ALL)]).expect("a mirror of everything");
            vm.bind(before).expect("what is bound before");
        };
        reset();
        let untouched = State::of(vm);
        vm.bind(binds).expect("the binds, with memory");
        let done = State::of(vm);
        assert_ne!(untouched, done, "nothing is bound");

        let met = failures.each(
            || {
                reset();
                there.iter().for_each(|alias| alias.expect(gpu, "bound before"));
                assert_eq!(State::of(vm), untouched, "bound before");
                let fence = Fence { address: fences.at(next.get()), value: 1 };
                next.set(next.get() + 8);
                let sync = Box::new([fence.to_sync()]);
                (self.argument(&ops, &*sync), sync, fence)
            },
            |(args, ..)| call(device, &request::VM_BIND, args),
            |(mut args, _sync, fence), error| {
                // So VM_BIND says that an array is too long.
                check_errno(kind, error, if ops.len() > 1 { &[ENOBUFS] } else { &[] });
                if let Some(e) = error {
                    assert_eq!(State::of(vm), untouched, "after {e}");
                    there.iter().for_each(|alias| alias.expect(gpu, "still bound"));
                    let word = Map::existing(fence.address as usize, 8);
                    word.expect_word("the fence of what did not happen", 0, 0);
                    call(device, &request::VM_BIND, &mut args).expect("the same call, with memory");
                }
                assert_eq!(State::of(vm), done, "after the binds");
                after.iter().for_each(|alias| alias.expect(gpu, "bound after"));
                let word = Map::existing(fence.address as usize, 8);
                if kind == Kind::Copy && error.is_none() && word.read(0) == 0 {
                    // It is written when all is done that could be told. See fence().
                    unwritten.set(unwritten.get() + 1);
                    return;
                }
                let wait = Wait::equal(fence.address, fence.value, PATIENCE);
                device.wait_user_fence(&wait).expect("the fence");
            },
        );
        assert!(unwritten.get() <= 1, "fences that were not written: {}", unwritten.get());
        enough(kind, met, 1);
    }
}

/// A buffer in holes of a mirror, mapped at once or by the first fault. They are many enough to need
/// more of the GPU's page table than a VM keeps in store.
pub fn bind_buffer(kind: Kind, immediate: bool) {
    let gpu = Gpu::new();
    let length = SZ_2M + MIDDLE;
    let buffer = Buffer::new(&gpu, length);
    let places: Vec<Map> = (0..8).map(|_| Map::reserve(length, SZ_2M)).collect();
    let bind = |place: &Map| {
        let bind = buffer.bind(*place);
        if immediate {
            bind.immediate()
        } else {
            bind
        }
    };
    let alias = |place: &Map| Alias { address: place.at(SZ_2M), word: buffer.word(SZ_2M) };
    Case {
        gpu: &gpu,
        before: &places.iter().map(|place| unmap(*place)).collect::<Vec<_>>(),
        there: &[],
        binds: &places.iter().map(bind).collect::<Vec<_>>(),
        after: &places.iter().map(alias).collect::<Vec<_>>(),
    }
    .run(kind);
}

/// A buffer over the middle of another one, and mirrors beside both.
pub fn buffer_over_buffer(kind: Kind) {
    let gpu = Gpu::new();
    let (old, new) = (Buffer::new(&gpu, 2 * SZ_2M), Buffer::new(&gpu, SZ_2M));
    let place = Map::reserve(2 * SZ_2M, SZ_2M);
    let middle = SZ_2M / 2;
    let alias = |buffer: &Buffer, at: usize, offset: usize| Alias {
        address: place.at(at),
        word: buffer.word(offset),
    };
    Case {
        gpu: &gpu,
        before: &[old.bind(place)],
        there: &[alias(&old, 0, 0), alias(&old, SZ_2M, SZ_2M)],
        binds: &[new.bind(place.part(middle, SZ_2M))],
        after: &[
            alias(&old, middle - PAGE, middle - PAGE),
            alias(&new, middle, 0),
            alias(&new, middle + SZ_2M - PAGE, SZ_2M - PAGE),
            alias(&old, middle + SZ_2M, middle + SZ_2M),
        ],
    }
    .run(kind);
}

/// A bind in the middle of a small buffer, of which the GPU reaches words before and after it.
fn in_a_buffer(kind: Kind, bind: impl Fn(Map) -> Bind, there: &[usize], after: &[usize]) {
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, MIDDLE);
    let place = Map::reserve(MIDDLE, SZ_2M);
    let aliases = |offsets: &[usize]| -> Vec<Alias> {
        let alias = |&at: &usize| Alias { address: place.at(at), word: buffer.word(at) };
        offsets.iter().map(alias).collect()
    };
    Case {
        gpu: &gpu,
        before: &[buffer.bind(place)],
        there: &aliases(there),
        binds: &[bind(place)],
        after: &aliases(after),
    }
    .run(kind);
}

/// A page out of the middle of a buffer that is mapped.
pub fn unmap_page(kind: Kind) {
    in_a_buffer(kind, |place| unmap(place.part(PAGE, PAGE)), &[0, PAGE], &[0, 2 * PAGE]);
}

/// The mirror over a part of a buffer, where it joins what is beside it.
pub fn bind_mirror(kind: Kind) {
    let rest = |place: Map| mirror(place.part(PAGE, MIDDLE - PAGE));
    in_a_buffer(kind, rest, &[0, MIDDLE - PAGE], &[0]);
}

/// A hole in a mirror.
pub fn unmap_mirror(kind: Kind) {
    let gpu = Gpu::new();
    let place = Map::reserve(MIDDLE, SZ_2M);
    Case {
        gpu: &gpu,
        before: &[mirror(place)],
        there: &[],
        binds: &[unmap(place.part(PAGE, PAGE))],
        after: &[],
    }
    .run(kind);
}

/// Places for four buffers, side by side.
struct Places(Map);

impl Places {
    fn new() -> Self {
        Self(Map::reserve(4 * MIDDLE, SZ_2M))
    }

    fn get(&self, i: usize) -> Map {
        self.0.part(i * MIDDLE, MIDDLE)
    }

    /// The first word of a buffer in one of them.
    fn alias(&self, buffer: &Buffer, i: usize) -> Alias {
        Alias { address: self.get(i).at(0), word: buffer.word(0) }
    }
}

/// A buffer leaves all its places.
pub fn unmap_all(kind: Kind) {
    let gpu = Gpu::new();
    let (buffer, other) = (Buffer::new(&gpu, MIDDLE), Buffer::new(&gpu, MIDDLE));
    let places = Places::new();
    Case {
        gpu: &gpu,
        before: &[
            buffer.bind(places.get(0)),
            other.bind(places.get(1)),
            buffer.bind(places.get(2)),
            buffer.bind(places.get(3)),
        ],
        there: &[places.alias(&buffer, 0), places.alias(&other, 1), places.alias(&buffer, 2)],
        binds: &[Bind::unmap_all(buffer.bo())],
        after: &[places.alias(&other, 1)],
    }
    .run(kind);
}

/// All of that in one call.
pub fn array(kind: Kind) {
    let gpu = Gpu::new();
    let (old, new) = (Buffer::new(&gpu, MIDDLE), Buffer::new(&gpu, MIDDLE));
    let places = Places::new();
    Case {
        gpu: &gpu,
        before: &[old.bind(places.get(0)), old.bind(places.get(1))],
        there: &[places.alias(&old, 0), places.alias(&old, 1)],
        binds: &[
            Bind::unmap_all(old.bo()),
            new.bind(places.get(1)).immediate(),
            old.bind(places.get(2)),
            mirror(places.get(0)),
            unmap(places.get(2).part(PAGE, PAGE)),
            new.bind(places.get(3)).read_only(),
        ],
        after: &[places.alias(&new, 1), places.alias(&old, 2)],
    }
    .run(kind);
}

/// A buffer gets its pages when it is bound first: or does not. It is another one that is bound
/// afterwards: where the kernel crate's `sg_table()` finds no memory after the pages were got it keeps a
/// reference to them, and warns of it in the end if it is called again.
pub fn first_bind(kind: Kind) {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::of(kind);
    let place = Map::reserve(MIDDLE, SZ_2M);
    let reset = || vm.bind(&[Bind::mirror(0, ALL)]).expect("a mirror of everything");
    reset();
    let untouched = State::of(vm);
    let met = failures.each(
        || {
            reset();
            let buffer = Buffer::new(&gpu, MIDDLE);
            (one_bind(vm, &buffer.bind(place)), buffer)
        },
        |(args, _)| call(device, &request::VM_BIND, args),
        |(_, mut buffer), error| {
            check_errno(kind, error, &[]);
            if error.is_some() {
                assert_eq!(State::of(vm), untouched);
                buffer = Buffer::new(&gpu, MIDDLE);
                vm.bind(&[buffer.bind(place)]).expect("a like call, with memory");
            }
            buffer.word(PAGE).expect_word("a new buffer", 0, 0);
            Alias { address: place.at(PAGE), word: buffer.word(PAGE) }.expect(&gpu, "bound");
        },
    );
    enough(kind, met, 1);
}

/// Advice in the middle of a mirror, over a buffer.
pub fn madvise(kind: Kind) {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::of(kind);
    let buffer = Buffer::new(&gpu, MIDDLE);
    let place = Map::reserve(4 * MIDDLE, SZ_2M);
    let alias = Alias { address: place.at(MIDDLE), word: buffer.word(0) };
    let reset = || {
        vm.bind(&[Bind::mirror(0, ALL), buffer.bind(place.part(MIDDLE, MIDDLE))]).expect("binds");
        alias.expect(&gpu, "bound");
    };
    let good = || {
        let mut args = sys::drm_xe_madvise {
            vm_id: vm.id(),
            start: place.at(PAGE),
            range: 2 * MIDDLE as u64,
            type_: sys::DRM_XE_MEM_RANGE_ATTR_ATOMIC,
            ..Default::default()
        };
        args.__bindgen_anon_1.atomic.val = sys::DRM_XE_ATOMIC_DEVICE;
        args
    };
    reset();
    let untouched = State::of(vm);
    call(device, &request::MADVISE, &mut good()).expect("advice, with memory");
    let done = State::of(vm);
    assert_ne!(untouched, done, "nothing is advised");
    let met = failures.each(
        || {
            reset();
            assert_eq!(State::of(vm), untouched, "before");
            good()
        },
        |args| call(device, &request::MADVISE, args),
        |mut args, error| {
            check_errno(kind, error, &[]);
            if let Some(e) = error {
                assert_eq!(State::of(vm), untouched, "after {e}");
                alias.expect(&gpu, "still bound");
                call(device, &request::MADVISE, &mut args).expect("the same call, with memory");
            }
            assert_eq!(State::of(vm), done, "after the advice");
            alias.expect(&gpu, "bound still");
        },
    );
    enough(kind, met, 1);
}

/// Memory goes to the device: or stays, as it was.
pub fn prefetch(kind: Kind) {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::of(kind);
    let state = State::of(vm);
    let met = failures.each(
        || {
            let map = filled(2 * MIDDLE);
            (one_bind(vm, &Bind::prefetch(map.at(0), map.len() as u64, 1)), map)
        },
        |(args, _)| call(device, &request::VM_BIND, args),
        |(mut args, map), error| {
            // Deep in a page fault it is told as a bad address.
            check_errno(kind, error, &[libc::EFAULT]);
            if error.is_some() {
                call(device, &request::VM_BIND, &mut args)
                    .expect("the same call, without a failure");
            }
            assert_eq!(State::of(vm), state, "VMAs");
            gpu.increment(map.at(PAGE));
            map.expect("all", |o| pattern(o).wrapping_add(u32::from(o == PAGE)));
            map.unmap();
        },
    );
    enough(kind, met, 1);
}

/// The value of a bind's fence cannot be written: what was bound is, the call says so, and who waits for the
/// fence has a time-out. Every other copy that fails is told, with nothing bound.
pub fn fence() {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::of(Kind::Copy);
    let place = Map::reserve(MIDDLE, SZ_2M);
    let reset = || vm.bind(&[Bind::mirror(0, ALL)]).expect("a mirror of everything");
    reset();
    let untouched = State::of(vm);
    vm.bind(&[unmap(place)]).expect("a hole");
    let done = State::of(vm);
    let words = Map::anon(PAGE);
    let (next, unwritten) = (Cell::new(0), Cell::new(0));
    failures.each(
        || {
            reset();
            let fence = Fence { address: words.at(next.get()), value: 1 };
            next.set(next.get() + 8);
            let sync = Box::new([fence.to_sync()]);
            let mut args = one_bind(vm, &unmap(place));
            (args.num_syncs, args.syncs) = (1, sync.as_ptr() as u64);
            (args, sync, fence)
        },
        |(args, ..)| call(device, &request::VM_BIND, args),
        |(_, _, fence), error| {
            let written = Map::existing(fence.address as usize, 8).read(0) == 1;
            let is_bound = State::of(vm) == done;
            match error {
                Some(e) => {
                    assert_eq!(e.errno(), libc::EFAULT, "{e}");
                    // Unless its own answer is what could not be copied: that is the last.
                    assert!(written == is_bound, "after {e}");
                    assert!(is_bound || State::of(vm) == untouched, "after {e}");
                }
                None => {
                    assert!(is_bound, "nothing is bound");
                    if !written {
                        unwritten.set(unwritten.get() + 1);
                        let wait = Wait::equal(fence.address, 1, Timeout::ms(50));
                        let waited = device.wait_user_fence(&wait).map_err(|e| e.errno());
                        assert_eq!(waited.map(|_| ()), Err(libc::ETIME), "the wait for it");
                    }
                }
            }
        },
    );
    assert_eq!(unwritten.get(), 1, "fences that were not written");
}
