// SPDX-License-Identifier: GPL-2.0

//! What makes objects and ends them. The driver counts them until they are freed, which debugfs shows, and
//! what memory is used.
//!
//! Where the object is there and only the argument cannot be copied back, a call fails in the DRM core: the
//! object is then the file's, and goes with it. So each is made in a file of its own.

use crate::{call, check_errno, enough};
use libc::ENOSPC;
use vxe_client::{request, stats::debugfs_directory, sys, Bo, Device, ExecQueue, Vm};
use vxe_uapi::{
    failure::{Failures, Kind},
    gpu::{copy_engine, device, works},
    vram::{region, soon_equal},
    Gpu, Map, MIDDLE, PAGE,
};

/// How many objects of each kind a device has, and how much of its memory is used.
struct Objects {
    device: Device,
    counts: String,
    used: Vec<u64>,
}

impl Objects {
    fn counts(device: &Device) -> String {
        let path = debugfs_directory(device).expect("debugfs").join("objects");
        std::fs::read_to_string(path).expect("the objects")
    }

    /// How many bytes are used of each region.
    fn used(device: &Device) -> Vec<u64> {
        device.memory_regions().expect("the regions").iter().map(|region| region.used).collect()
    }

    fn now() -> Self {
        let device = device();
        Self { counts: Self::counts(&device), used: Self::used(&device), device }
    }

    /// There are no more objects than there were. A closed file's go with a work of the kernel's.
    #[track_caller]
    fn expect(&self) {
        soon_equal("objects", &self.counts, || Self::counts(&self.device));
        soon_equal("bytes used of each region", &self.used, || Self::used(&self.device));
    }
}

/// A file of its own for an object.
fn in_a_file<T>(make: &impl Fn(&Device) -> T) -> (Device, T) {
    let device = device();
    let object = make(&device);
    (device, object)
}

/// Creates objects in files of their own, by a call that takes one of `make` and whose result `destroy`
/// destroys.
#[track_caller]
fn create<T>(
    kind: Kind,
    others: &[i32],
    make: impl Fn(&Device) -> T,
    create: impl Fn(&Device, &mut T) -> vxe_client::Result<()>,
    destroy: impl Fn(&Device, &T) -> vxe_client::Result<()>,
) {
    let before = Objects::now();
    let failures = Failures::of(kind);
    let met = failures.each(
        || {
            let (device, object) = in_a_file(&make);
            let counts = Objects::counts(&device);
            (device, object, counts)
        },
        |(device, object, _)| create(device, object),
        |(device, mut object, counts), error| {
            check_errno(kind, error, others);
            if error.is_some() {
                // Not only when the file goes; but see above for the argument.
                if kind != Kind::Copy {
                    soon_equal("objects", &counts, || Objects::counts(&device));
                }
                object = make(&device);
                create(&device, &mut object).expect("the same call, without a failure");
            }
            destroy(&device, &object).expect("its end");
            // An object may have the file, too.
            drop((device, object));
            before.expect();
        },
    );
    works(&before.device, "counted");
    enough(kind, met, 1);
}

/// A VM: none is left behind.
pub fn vm_create(kind: Kind) {
    let flags = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;
    create(
        kind,
        &[],
        |_| sys::drm_xe_vm_create { flags, ..Default::default() },
        |device, args| call(device, &request::VM_CREATE, args),
        |device, args| {
            let mut destroy = sys::drm_xe_vm_destroy { vm_id: args.vm_id, ..Default::default() };
            call(device, &request::VM_DESTROY, &mut destroy)
        },
    );
}

/// A queue: those that there are work on.
pub fn queue_create(kind: Kind) {
    let gpu = Gpu::new();
    // Shared memory does not move to the device, where a page of 64 KiB would count as used.
    let memory = Map::shared(PAGE);
    let engine = Box::new(copy_engine(gpu.device()));
    create(
        kind,
        &[],
        |device| {
            let vm = Vm::mirrored(device).expect("a VM");
            let args = sys::drm_xe_exec_queue_create {
                width: 1,
                num_placements: 1,
                vm_id: vm.id(),
                instances: &raw const *engine as u64,
                ..Default::default()
            };
            (args, vm)
        },
        |device, (args, _)| call(device, &request::EXEC_QUEUE_CREATE, args),
        |device, (args, _)| {
            let id = args.exec_queue_id;
            gpu.increment(memory.at(0));
            let mut destroy =
                sys::drm_xe_exec_queue_destroy { exec_queue_id: id, ..Default::default() };
            call(device, &request::EXEC_QUEUE_DESTROY, &mut destroy)
        },
    );
}

/// A buffer, of which not a byte is left.
pub fn gem_create(kind: Kind, vram: bool) {
    let (placement, caching) = match vram {
        true => (1 << region(&device()).instance, sys::DRM_XE_GEM_CPU_CACHING_WC),
        false => (1, sys::DRM_XE_GEM_CPU_CACHING_WB),
    };
    create(
        kind,
        // So say shmem's inodes.
        &[ENOSPC],
        |_| sys::drm_xe_gem_create {
            size: MIDDLE as u64,
            placement,
            cpu_caching: caching as u16,
            ..Default::default()
        },
        |device, args| call(device, &request::GEM_CREATE, args),
        |device, args| {
            let mut close = sys::drm_gem_close { handle: args.handle, ..Default::default() };
            call(device, &request::GEM_CLOSE, &mut close)
        },
    );
}

/// Ends objects, by a call that may fail and is then made again; after it there is no such object.
#[track_caller]
fn destroy<T>(
    kind: Kind,
    make: impl Fn(&Device) -> T,
    destroy: impl Fn(&Device, &T) -> vxe_client::Result<()>,
    use_it: impl Fn(&T),
    gone: i32,
) {
    let before = Objects::now();
    let failures = Failures::of(kind);
    let met = failures.each(
        || in_a_file(&make),
        |(device, object)| destroy(device, object),
        |(device, object), error| {
            check_errno(kind, error, &[]);
            if error.is_some() {
                use_it(&object);
                destroy(&device, &object).expect("the same call, without a failure");
            }
            let again = destroy(&device, &object).map_err(|e| e.errno());
            assert_eq!(again, Err(gone), "a second time");
            drop((object, device));
            before.expect();
        },
    );
    // To end something must not take memory.
    enough(kind, met, 0);
    assert!(kind == Kind::Copy || met.errors == 0, "no end for want of memory: {met}");
}

/// A VM, which works as long as it is there: on shared memory, which does not move to the device.
pub fn vm_destroy(kind: Kind) {
    destroy(
        kind,
        |device| Vm::mirrored(device).expect("a VM"),
        |device, vm| {
            let mut args = sys::drm_xe_vm_destroy { vm_id: vm.id(), ..Default::default() };
            call(device, &request::VM_DESTROY, &mut args)
        },
        |vm| Gpu::on_vm(vm).store(Map::shared(PAGE).at(0), 1),
        libc::ENOENT,
    );
}

/// A queue, which works as long as it is there.
pub fn queue_destroy(kind: Kind) {
    destroy(
        kind,
        |device| ExecQueue::new(&Vm::mirrored(device).expect("a VM")).expect("a queue"),
        |device, queue| {
            let id = queue.id();
            let mut args =
                sys::drm_xe_exec_queue_destroy { exec_queue_id: id, ..Default::default() };
            call(device, &request::EXEC_QUEUE_DESTROY, &mut args)
        },
        |queue| assert_eq!(queue.is_banned(), Ok(false)),
        libc::ENOENT,
    );
}

/// A handle, which is good as long as it is there.
pub fn gem_close(kind: Kind) {
    destroy(
        kind,
        |device| Bo::system(device, MIDDLE).expect("a buffer"),
        |device, bo| {
            let mut args = sys::drm_gem_close { handle: bo.handle(), ..Default::default() };
            call(device, &request::GEM_CLOSE, &mut args)
        },
        |bo| _ = bo.map().expect("a mapping"),
        libc::EINVAL,
    );
}
