// SPDX-License-Identifier: GPL-2.0

//! Exec queues, and work on them.

use super::{
    cases::{nothing, Cases, KERNEL},
    vm::{foreign, NO_ID},
};
use libc::{E2BIG, ECANCELED, EFAULT, EINVAL, ENOENT};
use vxe_client::{
    request,
    sys::{self, drm_xe_engine_class_instance, drm_xe_exec_queue_create},
    Device, ExecQueue, Vm,
};
use vxe_uapi::{gpu::copy_engine, Gpu, Map, PAGE};

pub fn create() {
    let (device, vm, foreign) = foreign();
    let engine = copy_engine(&device);
    let change = |change: fn(&mut drm_xe_engine_class_instance)| {
        let mut engine = engine;
        change(&mut engine);
        [engine, engine]
    };
    let good_engine = change(|_| ());
    let good = drm_xe_exec_queue_create {
        width: 1,
        num_placements: 1,
        vm_id: vm.id(),
        instances: good_engine.as_ptr() as u64,
        ..Default::default()
    };
    let mut cases = Cases::new(&device, &request::EXEC_QUEUE_CREATE, good).accepted();
    cases
        .reject(EINVAL, "an unknown flag", |a| a.flags = 2)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "no width", |a| a.width = 0)
        .reject(EINVAL, "no placement", |a| a.num_placements = 0)
        .reject(EINVAL, "far too wide", |a| a.width = u16::MAX)
        .reject(EINVAL, "too many placements", |a| a.num_placements = 200)
        .reject(EINVAL, "a product of 2 to the 16th", |a| {
            a.width = 256;
            a.num_placements = 256;
        })
        .reject(EFAULT, "engines that are not there", |a| a.instances = nothing())
        .reject(EFAULT, "no engines", |a| a.instances = 0)
        .reject(EFAULT, "engines of the kernel's", |a| a.instances = KERNEL)
        .reject(ENOENT, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(ENOENT, "no VM", |a| a.vm_id = 0)
        .reject(ENOENT, "another file's VM", |a| a.vm_id = foreign);
    for (what, engines) in [
        ("an unknown GT", change(|e| e.gt_id = 99)),
        ("an unknown class", change(|e| e.engine_class = 9)),
        ("a class that the device has not", change(|e| e.engine_class = 0)),
        ("an unknown instance", change(|e| e.engine_instance = 7)),
        (
            "a second queue for binds",
            change(|e| {
                e.engine_class = sys::DRM_XE_ENGINE_CLASS_VM_BIND as u16;
                e.engine_instance = 1;
            }),
        ),
    ] {
        cases.reject(EINVAL, what, |a| a.instances = engines.as_ptr() as u64);
    }
    let binds = change(|e| e.engine_class = sys::DRM_XE_ENGINE_CLASS_VM_BIND as u16);
    cases
        .reject(EINVAL, "a wide queue for binds", |a| {
            a.instances = binds.as_ptr() as u64;
            a.width = 2;
        })
        .reject(ENOENT, "a queue for binds of no VM", |a| {
            a.instances = binds.as_ptr() as u64;
            a.vm_id = NO_ID;
        });
    extensions(&mut cases);
    cases.finish();
}

fn extensions(cases: &mut Cases<'_, drm_xe_exec_queue_create>) {
    // An address that stays, for the extension that names itself as the next.
    let extension = Map::anon(PAGE);
    let write = |name: u32, pad: u32, property: u32, next: u64| {
        let mut e = sys::drm_xe_ext_set_property { property, ..Default::default() };
        e.base = sys::drm_xe_user_extension { next_extension: next, name, pad };
        // The priority that is nothing special.
        e.__bindgen_anon_1.value = 1;
        // SAFETY: the page is the test's own.
        unsafe { (extension.at(0) as *mut sys::drm_xe_ext_set_property).write_volatile(e) };
        extension.at(0)
    };
    let priority = sys::DRM_XE_EXEC_QUEUE_SET_PROPERTY_PRIORITY;
    cases
        .reject(EFAULT, "an extension that is not there", |a| a.extensions = nothing())
        .reject(EINVAL, "an unknown extension", |a| a.extensions = write(1, 0, priority, 0))
        .reject(EINVAL, "pad of an extension", |a| a.extensions = write(0, 1, priority, 0))
        .reject(EINVAL, "an unknown property", |a| a.extensions = write(0, 0, 99, 0))
        .reject(E2BIG, "extensions without end", |a| {
            a.extensions = write(0, 0, priority, extension.at(0));
        });
}

pub fn destroy() {
    let (device, vm, _) = foreign();
    let queue = ExecQueue::new(&vm).expect("a queue");
    let foreign = foreign_queue(&queue);
    let good = sys::drm_xe_exec_queue_destroy { exec_queue_id: queue.id(), ..Default::default() };
    Cases::new(&device, &request::EXEC_QUEUE_DESTROY, good)
        .reject(EINVAL, "pad", |a| a.pad = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(ENOENT, "no queue", |a| a.exec_queue_id = 0)
        .reject(ENOENT, "an unknown queue", |a| a.exec_queue_id = NO_ID)
        .reject(ENOENT, "another file's queue", |a| a.exec_queue_id = foreign)
        .accept()
        .reject(ENOENT, "a destroyed queue", |_| ())
        .finish();
}

/// A queue on another file whose number is not one here.
fn foreign_queue(here: &ExecQueue) -> u32 {
    let there = Device::open().expect("another file");
    let vm = Vm::mirrored(&there).expect("a VM");
    let queues: Vec<_> = (0..3).map(|_| ExecQueue::new(&vm).expect("a queue")).collect();
    let id = queues[2].id();
    assert_ne!(here.id(), id, "numbers are not per file");
    std::mem::forget(queues);
    id
}

pub fn get_property() {
    let gpu = Gpu::new();
    let foreign = foreign_queue(gpu.queue());
    let good = sys::drm_xe_exec_queue_get_property {
        exec_queue_id: gpu.queue().id(),
        property: sys::DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN,
        ..Default::default()
    };
    Cases::new(gpu.device(), &request::EXEC_QUEUE_GET_PROPERTY, good)
        .accepted()
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(ENOENT, "an unknown queue", |a| a.exec_queue_id = NO_ID)
        .reject(ENOENT, "another file's queue", |a| a.exec_queue_id = foreign)
        .reject(EINVAL, "an unknown property", |a| a.property = 1)
        .finish();
}

pub fn exec() {
    let mut gpu = Gpu::new();
    let foreign = foreign_queue(gpu.queue());
    let binds = ExecQueue::for_binds(gpu.vm()).expect("a bind queue");
    let memory = Map::anon(PAGE);
    memory.write(0, vxe_client::batch::MI_BATCH_BUFFER_END);
    let good = sys::drm_xe_exec {
        exec_queue_id: gpu.queue().id(),
        address: memory.at(0),
        num_batch_buffer: 1,
        ..Default::default()
    };
    let device = gpu.device().clone();
    let mut cases = Cases::new(&device, &request::EXEC, good).accepted();
    cases
        .reject(EINVAL, "an extension", |a| a.extensions = nothing())
        .reject(EINVAL, "pad[0]", |a| a.pad[0] = 1)
        .reject(EINVAL, "pad[1]", |a| a.pad[1] = 1)
        .reject(EINVAL, "pad[2]", |a| a.pad[2] = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "too many syncs", |a| a.num_syncs = sys::DRM_XE_MAX_SYNCS + 1)
        .reject(ENOENT, "no queue", |a| a.exec_queue_id = 0)
        .reject(ENOENT, "an unknown queue", |a| a.exec_queue_id = NO_ID)
        .reject(ENOENT, "another file's queue", |a| a.exec_queue_id = foreign)
        .reject(EINVAL, "a queue for binds", |a| a.exec_queue_id = binds.id())
        .reject(EINVAL, "two batches", |a| a.num_batch_buffer = 2)
        .finish();
    gpu.store(memory.at(64), 1);
    let bad = Map::reserve(PAGE, PAGE);
    let result = gpu.try_run(|c| _ = c.store(bad.at(0), 1));
    assert_eq!(result.map_err(|e| e.errno()), Err(libc::EIO));
    cases.reject(ECANCELED, "a banned queue", |_| ()).finish();
    gpu.renew();
    gpu.store(memory.at(64), 2);
}
