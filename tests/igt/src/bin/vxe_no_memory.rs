// SPDX-License-Identifier: GPL-2.0

//! Each allocation of a call fails once. The call then fails with it and changes nothing, and the
//! same call succeeds afterwards.
//!
//! That no memory leaks is for kmemleak to say, afterwards.

use libc::{ENOBUFS, ENOMEM};
use std::cell::Cell;
use vxe_client::{
    request,
    sys::{self, drm_xe_sync, drm_xe_vm_bind, drm_xe_vm_bind_op},
    Bind, Device, Error, Fence, Request, Result, Vm, Wait,
};
use vxe_igt::{
    failure::Failures,
    gpu::{copy_engine, device, write_batch, ALL, PATIENCE},
    vmas::{backings, vmas, Vma},
    Buffer, Gpu, Map, Program, PAGE, SZ_2M, SZ_64K,
};

/// What a bind may change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    vmas: Vec<Vma>,
    backings: Vec<String>,
}

impl State {
    #[track_caller]
    fn of(vm: &Vm) -> Self {
        Self { vmas: vmas(vm, 0..ALL), backings: backings(vm) }
    }
}

/// Calls an ioctl whose argument is all there.
fn call<T>(device: &Device, request: &Request<T>, argument: &mut T) -> Result<()> {
    // SAFETY: what it points to is the test's, and stays; so does what a job is to access.
    unsafe { device.call(request, argument) }
}

/// What may come of a call one of whose allocations failed.
#[track_caller]
fn check_errno(error: Option<Error>, allowed: &[i32]) {
    if let Some(e) = error {
        assert!(allowed.contains(&e.errno()), "without memory: {e}");
    }
}

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
    fn run(&self) {
        let Self { gpu, before, there, binds, after } = *self;
        let (device, vm) = (gpu.device(), gpu.vm());
        let failures = Failures::new();
        let ops: Vec<_> = binds.iter().map(|bind| *bind.as_raw()).collect();
        // Of each call one of its own.
        let fences = Map::anon(4 * SZ_64K);
        let next = Cell::new(0);

        let reset = || {
            vm.bind(&[Bind::mirror(0, ALL)]).expect("a mirror of everything");
            vm.bind(before).expect("what is bound before");
        };
        reset();
        let untouched = State::of(vm);
        vm.bind(binds).expect("the binds, with memory");
        let done = State::of(vm);
        assert_ne!(untouched, done, "nothing is bound");

        let count = failures.each(
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
                check_errno(error, if ops.len() > 1 { &[ENOMEM, ENOBUFS] } else { &[ENOMEM] });
                if let Some(e) = error {
                    assert_eq!(State::of(vm), untouched, "after {e}");
                    there.iter().for_each(|alias| alias.expect(gpu, "still bound"));
                    let word = Map::existing(fence.address as usize, 8);
                    word.expect_word("the fence of what did not happen", 0, 0);
                    call(device, &request::VM_BIND, &mut args).expect("the same call, with memory");
                }
                assert_eq!(State::of(vm), done, "after the binds");
                after.iter().for_each(|alias| alias.expect(gpu, "bound after"));
                let wait = Wait::equal(fence.address, fence.value, PATIENCE);
                device.wait_user_fence(&wait).expect("the fence");
            },
        );
        println!("{count} failures");
        assert!(count > 0, "no allocation failed");
    }
}

/// A buffer in holes of a mirror, mapped at once or by the first fault. They are many enough to need
/// more of the GPU's page table than a VM keeps in store.
fn bind_buffer(immediate: bool) {
    let gpu = Gpu::new();
    let length = SZ_2M + SZ_64K;
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
    .run();
}

/// A buffer over the middle of another one, and mirrors beside both.
fn buffer_over_buffer() {
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
    .run();
}

/// A page out of the middle of a buffer that is mapped.
fn unmap_page() {
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, SZ_64K);
    let place = Map::reserve(SZ_64K, SZ_2M);
    let alias = |at: usize| Alias { address: place.at(at), word: buffer.word(at) };
    Case {
        gpu: &gpu,
        before: &[buffer.bind(place)],
        there: &[alias(0), alias(PAGE)],
        binds: &[unmap(place.part(PAGE, PAGE))],
        after: &[alias(0), alias(2 * PAGE)],
    }
    .run();
}

/// The mirror over a part of a buffer, where it joins what is beside it.
fn bind_mirror() {
    let gpu = Gpu::new();
    let buffer = Buffer::new(&gpu, SZ_64K);
    let place = Map::reserve(SZ_64K, SZ_2M);
    let alias = |at: usize| Alias { address: place.at(at), word: buffer.word(at) };
    Case {
        gpu: &gpu,
        before: &[buffer.bind(place)],
        there: &[alias(0), alias(SZ_64K - PAGE)],
        binds: &[mirror(place.part(PAGE, SZ_64K - PAGE))],
        after: &[alias(0)],
    }
    .run();
}

/// A hole in a mirror.
fn unmap_mirror() {
    let gpu = Gpu::new();
    let place = Map::reserve(SZ_64K, SZ_2M);
    Case {
        gpu: &gpu,
        before: &[mirror(place)],
        there: &[],
        binds: &[unmap(place.part(PAGE, PAGE))],
        after: &[],
    }
    .run();
}

/// A buffer leaves all its places.
fn unmap_all() {
    let gpu = Gpu::new();
    let (buffer, other) = (Buffer::new(&gpu, SZ_64K), Buffer::new(&gpu, SZ_64K));
    let place = Map::reserve(4 * SZ_64K, SZ_2M);
    let part = |i: usize| place.part(i * SZ_64K, SZ_64K);
    let alias = |buffer: &Buffer, i: usize| Alias { address: part(i).at(0), word: buffer.word(0) };
    Case {
        gpu: &gpu,
        before: &[
            buffer.bind(part(0)),
            other.bind(part(1)),
            buffer.bind(part(2)),
            buffer.bind(part(3)),
        ],
        there: &[alias(&buffer, 0), alias(&other, 1), alias(&buffer, 2)],
        binds: &[Bind::unmap_all(buffer.bo())],
        after: &[alias(&other, 1)],
    }
    .run();
}

/// All of that in one call.
fn array() {
    let gpu = Gpu::new();
    let (old, new) = (Buffer::new(&gpu, SZ_64K), Buffer::new(&gpu, SZ_64K));
    let place = Map::reserve(4 * SZ_64K, SZ_2M);
    let part = |i: usize| place.part(i * SZ_64K, SZ_64K);
    let alias = |buffer: &Buffer, i: usize| Alias { address: part(i).at(0), word: buffer.word(0) };
    Case {
        gpu: &gpu,
        before: &[old.bind(part(0)), old.bind(part(1))],
        there: &[alias(&old, 0), alias(&old, 1)],
        binds: &[
            Bind::unmap_all(old.bo()),
            new.bind(part(1)).immediate(),
            old.bind(part(2)),
            mirror(part(0)),
            unmap(part(2).part(PAGE, PAGE)),
            new.bind(part(3)).read_only(),
        ],
        after: &[alias(&new, 1), alias(&old, 2)],
    }
    .run();
}

/// A buffer gets its pages when it is bound first: or does not. It is another one that is bound
/// afterwards: where the kernel crate's `sg_table()` finds no memory after the pages were got it keeps a
/// reference to them, and warns of it in the end if it is called again.
fn first_bind() {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::new();
    let place = Map::reserve(SZ_64K, SZ_2M);
    let reset = || vm.bind(&[Bind::mirror(0, ALL)]).expect("a mirror of everything");
    reset();
    let untouched = State::of(vm);
    let count = failures.each(
        || {
            reset();
            let buffer = Buffer::new(&gpu, SZ_64K);
            let mut args = drm_xe_vm_bind { vm_id: vm.id(), num_binds: 1, ..Default::default() };
            args.__bindgen_anon_1.bind = *buffer.bind(place).as_raw();
            (args, buffer)
        },
        |(args, _)| call(device, &request::VM_BIND, args),
        |(mut args, mut buffer), error| {
            check_errno(error, &[ENOMEM]);
            if error.is_some() {
                assert_eq!(State::of(vm), untouched);
                buffer = Buffer::new(&gpu, SZ_64K);
                args.__bindgen_anon_1.bind = *buffer.bind(place).as_raw();
                call(device, &request::VM_BIND, &mut args).expect("a like call, with memory");
            }
            buffer.word(PAGE).expect_word("a new buffer", 0, 0);
            Alias { address: place.at(PAGE), word: buffer.word(PAGE) }.expect(&gpu, "bound");
        },
    );
    println!("{count} failures");
    assert!(count > 0, "no allocation failed");
}

/// Advice in the middle of a mirror, over a buffer.
fn madvise() {
    let gpu = Gpu::new();
    let (device, vm) = (gpu.device(), gpu.vm());
    let failures = Failures::new();
    let buffer = Buffer::new(&gpu, SZ_64K);
    let place = Map::reserve(4 * SZ_64K, SZ_2M);
    let alias = Alias { address: place.at(SZ_64K), word: buffer.word(0) };
    let reset = || {
        vm.bind(&[Bind::mirror(0, ALL), buffer.bind(place.part(SZ_64K, SZ_64K))]).expect("binds");
        alias.expect(&gpu, "bound");
    };
    let good = || {
        let mut args = sys::drm_xe_madvise {
            vm_id: vm.id(),
            start: place.at(PAGE),
            range: 2 * SZ_64K as u64,
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
    let count = failures.each(
        || {
            reset();
            assert_eq!(State::of(vm), untouched, "before");
            good()
        },
        |args| call(device, &request::MADVISE, args),
        |mut args, error| {
            check_errno(error, &[ENOMEM]);
            if let Some(e) = error {
                assert_eq!(State::of(vm), untouched, "after {e}");
                alias.expect(&gpu, "still bound");
                call(device, &request::MADVISE, &mut args).expect("the same call, with memory");
            }
            assert_eq!(State::of(vm), done, "after the advice");
            alias.expect(&gpu, "bound still");
        },
    );
    println!("{count} failures");
    assert!(count > 0, "no allocation failed");
}

/// A VM: none is left behind.
fn vm_create() {
    let device = device();
    let failures = Failures::new();
    let flags = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;
    let path = vxe_client::stats::debugfs_directory(&device).expect("debugfs").join("vms");
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    let before = text();
    let count = failures.each(
        || sys::drm_xe_vm_create { flags, ..Default::default() },
        |args| call(&device, &request::VM_CREATE, args),
        |args, error| {
            check_errno(error, &[ENOMEM]);
            if error.is_none() {
                let mut destroy =
                    sys::drm_xe_vm_destroy { vm_id: args.vm_id, ..Default::default() };
                call(&device, &request::VM_DESTROY, &mut destroy).expect("destroy");
            }
            assert_eq!(text(), before, "a VM is left");
            Gpu::on_device(&device).store(Map::anon(PAGE).at(0), 1);
        },
    );
    println!("{count} failures");
    assert!(count > 0, "no allocation failed");
}

/// A queue: those that there are work on.
fn queue_create() {
    let gpu = Gpu::new();
    let device = gpu.device();
    let failures = Failures::new();
    let engine = copy_engine(device);
    let good = sys::drm_xe_exec_queue_create {
        width: 1,
        num_placements: 1,
        vm_id: gpu.vm().id(),
        instances: &raw const engine as u64,
        ..Default::default()
    };
    let memory = Map::anon(PAGE);
    let count = failures.each(
        || good,
        |args| call(device, &request::EXEC_QUEUE_CREATE, args),
        |args, error| {
            check_errno(error, &[ENOMEM]);
            if error.is_none() {
                let id = args.exec_queue_id;
                let mut destroy =
                    sys::drm_xe_exec_queue_destroy { exec_queue_id: id, ..Default::default() };
                call(device, &request::EXEC_QUEUE_DESTROY, &mut destroy).expect("destroy");
            }
            gpu.increment(memory.at(0));
            gpu.another().increment(memory.at(0));
        },
    );
    println!("{count} failures");
    assert!(count > 0, "no allocation failed");
}

/// A job: it runs, or it never was.
fn exec() {
    let gpu = Gpu::new();
    let device = gpu.device();
    let failures = Failures::new();
    let memory = Map::anon(PAGE);
    let batch = write_batch(Map::anon(PAGE), |c| _ = c.increment(memory.at(0)));
    let (fences, next) = (Map::anon(SZ_64K), Cell::new(0));
    let count = failures.each(
        || {
            let fence = Fence { address: fences.at(next.get()), value: 1 };
            next.set(next.get() + 8);
            let sync = Box::new([fence.to_sync()]);
            let args = sys::drm_xe_exec {
                exec_queue_id: gpu.queue().id(),
                num_syncs: 1,
                syncs: sync.as_ptr() as u64,
                address: batch,
                num_batch_buffer: 1,
                ..Default::default()
            };
            (args, sync, fence, memory.read(0))
        },
        |(args, ..)| call(device, &request::EXEC, args),
        |(mut args, _sync, fence, before), error| {
            check_errno(error, &[ENOMEM]);
            if error.is_some() {
                // Whatever was queued before it is done with this.
                gpu.run(|c| _ = c.noop());
                memory.expect_word("what did not run", 0, before);
                Map::existing(fence.address as usize, 8).expect_word("its fence", 0, 0);
                call(device, &request::EXEC, &mut args).expect("the same call, with memory");
            }
            let wait = Wait::equal(fence.address, fence.value, PATIENCE);
            gpu.queue().wait(&wait).expect("the job");
            memory.expect_word("what ran", 0, before + 1);
        },
    );
    println!("{count} failures");
    assert!(count >= 1, "no allocation failed");
}

/// A buffer.
fn gem_create() {
    let device = device();
    let failures = Failures::new();
    let good = sys::drm_xe_gem_create {
        size: SZ_64K as u64,
        placement: 1,
        cpu_caching: sys::DRM_XE_GEM_CPU_CACHING_WB as u16,
        ..Default::default()
    };
    let count = failures.each(
        || good,
        |args| call(&device, &request::GEM_CREATE, args),
        |args, error| {
            // shmem's inodes say ENOSPC.
            check_errno(error, &[ENOMEM, libc::ENOSPC]);
            if error.is_none() {
                let mut close = sys::drm_gem_close { handle: args.handle, ..Default::default() };
                call(&device, &request::GEM_CLOSE, &mut close).expect("close");
            }
        },
    );
    println!("{count} failures");
    assert!(count > 0, "no allocation failed");
}

fn main() -> std::process::ExitCode {
    let mut p = Program::new(
        "vxe_no_memory",
        "Each allocation of a call fails once: nothing changes, and the call can be made again.",
    );
    p.subtest("bind-buffer", "a buffer in several holes", || bind_buffer(false));
    p.subtest("bind-buffer-immediate", "that is mapped at once", || bind_buffer(true));
    p.subtest("bind-buffer-over-buffer", "a buffer over another", buffer_over_buffer);
    p.subtest("bind-mirror", "a mirror over a buffer", bind_mirror);
    p.subtest("unmap-page", "a page of a buffer", unmap_page);
    p.subtest("unmap-mirror", "a page of a mirror", unmap_mirror);
    p.subtest("unmap-all", "UNMAP_ALL of a buffer", unmap_all);
    p.subtest("bind-array", "all of that in one call", array);
    p.subtest("bind-first", "a buffer that has no pages yet", first_bind);
    p.subtest("madvise", "advice on mirrors and a buffer", madvise);
    p.subtest("vm-create", "a VM", vm_create);
    p.subtest("exec-queue-create", "a queue", queue_create);
    p.subtest("exec", "a job", exec);
    p.subtest("gem-create", "a buffer", gem_create);
    p.main()
}
