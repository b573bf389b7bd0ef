// SPDX-License-Identifier: GPL-2.0

//! Syncs, and the wait for user fences.

use super::{
    bind,
    cases::{nothing, Cases, KERNEL},
    vm::NO_ID,
};
use libc::{EFAULT, EINVAL, ENOENT, EOPNOTSUPP};
use vxe_client::{
    request,
    sys::{self, drm_xe_sync},
    Bind, Fence, Request,
};
use vxe_uapi::{Gpu, Map, PAGE, SZ_2M};

/// What is wrong about a sync, whatever it is the sync of. `point` puts a sync array into the
/// argument.
fn common<T: Copy>(
    gpu: &Gpu,
    request: &Request<T>,
    good: T,
    memory: Map,
    point: fn(&mut T, u64, u32),
) {
    let fence = Fence { address: memory.at(0), value: 1 }.to_sync();
    let spoil = |spoil: fn(&mut drm_xe_sync)| {
        let mut sync = fence;
        spoil(&mut sync);
        sync
    };
    let misaligned = Fence { address: memory.at(4), value: 1 }.to_sync();
    let bad: &[(&str, i32, drm_xe_sync)] = &[
        ("an unknown flag", EINVAL, spoil(|s| s.flags |= 2)),
        ("reserved[0]", EINVAL, spoil(|s| s.reserved[0] = 1)),
        ("reserved[1]", EINVAL, spoil(|s| s.reserved[1] = 1)),
        ("an unknown type", EINVAL, spoil(|s| s.type_ = 3)),
        ("a fence to wait for", EOPNOTSUPP, spoil(|s| s.flags = 0)),
        ("a misaligned fence", EINVAL, misaligned),
        ("a syncobj to signal", EOPNOTSUPP, spoil(|s| s.type_ = sys::DRM_XE_SYNC_TYPE_SYNCOBJ)),
        (
            "a timeline to signal",
            EOPNOTSUPP,
            spoil(|s| s.type_ = sys::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ),
        ),
        (
            "an unknown syncobj",
            ENOENT,
            spoil(|s| {
                s.type_ = sys::DRM_XE_SYNC_TYPE_SYNCOBJ;
                s.flags = 0;
                s.__bindgen_anon_1.addr = 0x1234;
            }),
        ),
        (
            "a syncobj of 64 bits",
            EINVAL,
            spoil(|s| {
                s.type_ = sys::DRM_XE_SYNC_TYPE_SYNCOBJ;
                s.flags = 0;
                s.__bindgen_anon_1.addr = 1 << 32;
            }),
        ),
        (
            "a timeline at zero",
            EINVAL,
            spoil(|s| {
                s.type_ = sys::DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ;
                s.flags = 0;
                s.__bindgen_anon_1.addr = 1;
                s.timeline_value = 0;
            }),
        ),
    ];
    let mut valid = good;
    let one = [fence];
    point(&mut valid, one.as_ptr() as u64, 1);
    let mut cases = Cases::new(gpu.device(), request, valid).accepted();
    for (what, errno, sync) in bad {
        cases.reject(*errno, what, |a| point(a, std::ptr::from_ref(sync) as u64, 1));
    }
    let two = [fence, Fence { address: memory.at(8), value: 2 }.to_sync()];
    cases
        .reject(EINVAL, "two fences", |a| point(a, two.as_ptr() as u64, 2))
        .reject(EFAULT, "syncs that are not there", |a| point(a, nothing(), 1))
        .reject(EFAULT, "no syncs", |a| point(a, 0, 1))
        .reject(EFAULT, "the kernel's syncs", |a| point(a, KERNEL, 1))
        .finish();
}

pub fn of_bind() {
    let gpu = Gpu::new();
    let (memory, place) = (Map::anon(PAGE), Map::reserve(PAGE, SZ_2M));
    let good = bind::args(gpu.vm(), Bind::mirror(place.at(0), PAGE as u64));
    let point = |a: &mut sys::drm_xe_vm_bind, syncs, count| {
        a.syncs = syncs;
        a.num_syncs = count;
    };
    common(&gpu, &request::VM_BIND, good, memory, point);

    // The fence of a bind is the process's memory, so it is looked at.
    let missing = [Fence { address: nothing(), value: 1 }.to_sync()];
    let kernels = [Fence { address: KERNEL, value: 1 }.to_sync()];
    let fence = [Fence { address: memory.at(0), value: 1 }.to_sync()];
    Cases::new(gpu.device(), &request::VM_BIND, good)
        .reject(EFAULT, "a fence that is not there", |a| point(a, missing.as_ptr() as u64, 1))
        .reject(EFAULT, "a fence of the kernel's", |a| point(a, kernels.as_ptr() as u64, 1))
        .reject(EOPNOTSUPP, "a fence for no binds", |a| {
            a.num_binds = 0;
            point(a, fence.as_ptr() as u64, 1);
        })
        .finish();
}

pub fn of_exec() {
    let gpu = Gpu::new();
    let memory = Map::anon(2 * PAGE);
    memory.write(PAGE, vxe_client::batch::MI_BATCH_BUFFER_END);
    let good = sys::drm_xe_exec {
        exec_queue_id: gpu.queue().id(),
        address: memory.at(PAGE),
        num_batch_buffer: 1,
        ..Default::default()
    };
    common(&gpu, &request::EXEC, good, memory, |a, syncs, count| {
        a.syncs = syncs;
        a.num_syncs = count;
    });
    // After all that was refused, the queue is as good as before.
    gpu.store(memory.at(64), 1);
}

pub fn wait() {
    let gpu = Gpu::new();
    let memory = Map::anon(PAGE);
    let other = Gpu::new();
    let foreign: Vec<_> = (0..3).map(|_| other.another()).collect();
    let good = sys::drm_xe_wait_user_fence {
        addr: memory.at(0),
        mask: u64::MAX,
        exec_queue_id: gpu.queue().id(),
        ..Default::default()
    };
    Cases::new(gpu.device(), &request::WAIT_USER_FENCE, good)
        .accepted()
        .reject(EINVAL, "an extension", |a| a.extensions = nothing())
        .reject(EINVAL, "pad", |a| a.pad = 1)
        .reject(EINVAL, "pad2", |a| a.pad2 = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "an unknown flag", |a| a.flags = 2)
        .reject(EINVAL, "an unknown operation", |a| a.op = 6)
        .reject(EINVAL, "the last operation", |a| a.op = u16::MAX)
        .reject(EINVAL, "a misaligned address", |a| a.addr += 4)
        .reject(EFAULT, "an address that is not there", |a| a.addr = nothing())
        .reject(EFAULT, "no address", |a| a.addr = 0)
        .reject(EFAULT, "an address of the kernel's", |a| a.addr = KERNEL)
        .reject(ENOENT, "an unknown queue", |a| a.exec_queue_id = NO_ID)
        .reject(ENOENT, "another file's queue", |a| {
            a.exec_queue_id = foreign[2].queue().id();
        })
        .finish();
}
