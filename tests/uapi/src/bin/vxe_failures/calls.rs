// SPDX-License-Identifier: GPL-2.0

//! Jobs, waits and questions.

use crate::{call, check_errno, enough, State};
use std::cell::Cell;
use vxe_client::{request, sys, Device, Fence, Request, Wait};
use vxe_uapi::{
    failure::{Failures, Kind, Met},
    gpu::{write_batch, ALL, PATIENCE},
    Buffer, Gpu, Map, MIDDLE, PAGE,
};

/// A job: it runs, or it never was.
pub fn exec(kind: Kind) {
    let gpu = Gpu::new();
    let device = gpu.device();
    let failures = Failures::of(kind);
    let memory = Map::anon(PAGE);
    let batch = write_batch(Map::anon(PAGE), |c| _ = c.increment(memory.at(0)));
    let (fences, next) = (Map::anon(MIDDLE), Cell::new(0));
    let met = failures.each(
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
            check_errno(kind, error, &[]);
            if error.is_some() {
                // Whatever was queued before it is done with this.
                gpu.run(|c| _ = c.noop());
                memory.expect_word("what did not run", 0, before);
                Map::existing(fence.address as usize, 8).expect_word("its fence", 0, 0);
                call(device, &request::EXEC, &mut args).expect("the same call, without a failure");
            }
            let wait = Wait::equal(fence.address, fence.value, PATIENCE);
            gpu.queue().wait(&wait).expect("the job");
            memory.expect_word("what ran", 0, before + 1);
        },
    );
    enough(kind, met, 1);
}

/// A call that changes nothing, whether it fails or not, and says the same each time that it does not.
/// It fails with the error of the failure, or one of `others`. `answer` is what it says, from its argument
/// and the memory that this points to.
#[track_caller]
fn question<T: Clone, A: PartialEq + std::fmt::Debug>(
    kind: Kind,
    device: &Device,
    request: &Request<T>,
    argument: &T,
    others: &[i32],
    answer: impl Fn(&T) -> A,
) -> Met {
    let mut good = argument.clone();
    call(device, request, &mut good).expect("without a failure");
    let wanted = answer(&good);
    let failures = Failures::of(kind);
    failures.each(
        || argument.clone(),
        |args| call(device, request, args),
        |mut args, error| {
            check_errno(kind, error, others);
            if error.is_some() {
                args = argument.clone();
                call(device, request, &mut args).expect("the same call, without a failure");
            }
            assert_eq!(answer(&args), wanted, "{}", request.name());
        },
    )
}

/// A wait for what is there already.
pub fn wait_user_fence(kind: Kind) {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    gpu.store(memory.at(0), 1);
    let args = sys::drm_xe_wait_user_fence {
        addr: memory.at(0),
        op: sys::DRM_XE_UFENCE_WAIT_OP_EQ as u16,
        value: 1,
        mask: u64::MAX,
        timeout: 1_000_000_000,
        ..Default::default()
    };
    let state = State::of(gpu.vm());
    let met = question(kind, gpu.device(), &request::WAIT_USER_FENCE, &args, &[], |_| ());
    assert_eq!(State::of(gpu.vm()), state);
    enough(kind, met, 0);
}

/// What the device says of itself: how much that is, and all of it.
pub fn query(kind: Kind) {
    let gpu = Gpu::new();
    let room = Map::anon(PAGE);
    let mut met = Met::default();
    for query in [
        sys::DRM_XE_DEVICE_QUERY_ENGINES,
        sys::DRM_XE_DEVICE_QUERY_MEM_REGIONS,
        sys::DRM_XE_DEVICE_QUERY_CONFIG,
        sys::DRM_XE_DEVICE_QUERY_GT_LIST,
    ] {
        // So xe says of memory regions, too.
        let others: &[i32] =
            if query == sys::DRM_XE_DEVICE_QUERY_MEM_REGIONS { &[libc::ENOSPC] } else { &[] };
        let ask = sys::drm_xe_device_query { query, ..Default::default() };
        let size = Cell::new(0);
        met += question(kind, gpu.device(), &request::DEVICE_QUERY, &ask, others, |args| {
            size.set(args.size);
            args.size
        });
        let ask = sys::drm_xe_device_query { size: size.get(), data: room.at(0), ..ask };
        let bytes = size.get() as usize;
        met += question(kind, gpu.device(), &request::DEVICE_QUERY, &ask, others, |args| {
            // How much memory is used may differ.
            let words = if query == sys::DRM_XE_DEVICE_QUERY_MEM_REGIONS { 1 } else { bytes / 4 };
            (args.size, (0..words).map(|word| room.read(word * 4)).collect::<Vec<_>>())
        });
    }
    enough(kind, met, 0);
}

/// What is advised about the memory of a VM: how many entries, and all of them.
pub fn query_attributes(kind: Kind) {
    let gpu = Gpu::new();
    let vm = gpu.vm();
    let advice = vxe_client::Advice::Atomic(vxe_client::AtomicAccess::Device);
    let place = Map::reserve(MIDDLE, MIDDLE);
    vm.madvise(place.at(0), MIDDLE as u64, advice).expect("advice");
    let state = State::of(vm);
    let ask = sys::drm_xe_vm_query_mem_range_attr {
        vm_id: vm.id(),
        start: 0,
        range: ALL,
        ..Default::default()
    };
    let size = Cell::new((0, 0));
    let request = &request::VM_QUERY_MEM_RANGE_ATTRS;
    let mut met = question(kind, gpu.device(), request, &ask, &[], |args| {
        size.set((args.num_mem_ranges, args.sizeof_mem_range_attr));
        size.get()
    });
    let room = Map::anon(16 * PAGE);
    let (number, each) = size.get();
    assert!(number >= 3, "{number} entries");
    let ask = sys::drm_xe_vm_query_mem_range_attr {
        num_mem_ranges: number,
        sizeof_mem_range_attr: each,
        vector_of_mem_attr: room.at(0),
        ..ask
    };
    met += question(kind, gpu.device(), request, &ask, &[], |args| {
        let words = number as usize * each as usize / 4;
        (args.num_mem_ranges, (0..words).map(|word| room.read(word * 4)).collect::<Vec<_>>())
    });
    assert_eq!(State::of(vm), state);
    enough(kind, met, 0);
}

/// Whether a queue is banned, and where a buffer can be mapped; and the priority that a queue gets.
pub fn properties(kind: Kind) {
    let gpu = Gpu::new();
    let device = gpu.device();
    let buffer = Buffer::new(&gpu, MIDDLE);
    let ban = sys::drm_xe_exec_queue_get_property {
        exec_queue_id: gpu.queue().id(),
        property: sys::DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN,
        ..Default::default()
    };
    let request = &request::EXEC_QUEUE_GET_PROPERTY;
    let mut met = question(kind, device, request, &ban, &[], |args| args.value);
    let faults = sys::drm_xe_vm_get_property {
        vm_id: gpu.vm().id(),
        property: sys::DRM_XE_VM_GET_PROPERTY_FAULTS,
        ..Default::default()
    };
    met += question(kind, device, &request::VM_GET_PROPERTY, &faults, &[], |args| args.size);
    let offset = sys::drm_xe_gem_mmap_offset { handle: buffer.bo().handle(), ..Default::default() };
    met += question(kind, device, &request::GEM_MMAP_OFFSET, &offset, &[], |args| args.offset);
    enough(kind, met, 0);
}
