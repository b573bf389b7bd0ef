// SPDX-License-Identifier: GPL-2.0

//! VMs and advice on their memory.

use super::cases::{nothing, Cases};
use libc::{EBUSY, EFAULT, EINVAL, ENOENT, EOPNOTSUPP};
use vxe_client::{
    request,
    sys::{self, drm_xe_vm_create, drm_xe_vm_destroy},
    Device, ExecQueue, Vm,
};
use vxe_uapi::{gpu::device, Map, MIDDLE, PAGE};

const FAULTING: u32 = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;

const SCRATCH: u32 = sys::DRM_XE_VM_CREATE_FLAG_SCRATCH_PAGE;

/// A number that no object of a test has.
pub const NO_ID: u32 = 0x7777;

/// VMs with the same numbers as on another file, and one more there: its number is foreign here.
pub fn foreign() -> (Device, Vm, u32) {
    let (here, there) = (device(), device());
    let vm = Vm::mirrored(&here).expect("a VM");
    let others: Vec<_> = (0..3).map(|_| Vm::new(&there).expect("a VM")).collect();
    let id = others[2].id();
    assert_ne!(vm.id(), id, "numbers are not per file");
    std::mem::forget((others, there));
    (here, vm, id)
}

pub fn create() {
    let device = device();
    let good = drm_xe_vm_create { flags: FAULTING, ..Default::default() };
    Cases::new(&device, &request::VM_CREATE, good)
        .accepted()
        .reject(EINVAL, "an unknown flag", |a| a.flags |= 1 << 4)
        .reject(EINVAL, "the last flag", |a| a.flags |= 1 << 31)
        .reject(EINVAL, "faults without long runs", |a| {
            a.flags = sys::DRM_XE_VM_CREATE_FLAG_FAULT_MODE;
        })
        .reject(EINVAL, "no overcommit and nothing else", |a| {
            a.flags = sys::DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT;
        })
        .reject(EINVAL, "no overcommit without faults", |a| {
            a.flags =
                sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | sys::DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT;
        })
        .reject(EINVAL, "scratch pages and faults", |a| a.flags |= SCRATCH)
        // What xe has and this device has not.
        .reject(EOPNOTSUPP, "work that ends soon", |a| a.flags = 0)
        .reject(EOPNOTSUPP, "work that ends soon, and scratch pages", |a| a.flags = SCRATCH)
        .reject(EOPNOTSUPP, "scratch pages", |a| {
            a.flags = sys::DRM_XE_VM_CREATE_FLAG_LR_MODE | SCRATCH;
        })
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1 << 63)
        .reject(EINVAL, "an extension", |a| a.extensions = nothing())
        .finish();
}

pub fn destroy() {
    let (device, vm, foreign) = foreign();
    let good = drm_xe_vm_destroy { vm_id: vm.id(), ..Default::default() };
    let mut cases = Cases::new(&device, &request::VM_DESTROY, good);
    cases
        .reject(EINVAL, "pad", |a| a.pad = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(ENOENT, "no VM", |a| a.vm_id = 0)
        .reject(ENOENT, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(ENOENT, "another file's VM", |a| a.vm_id = foreign)
        .finish();
    vm.destroy().expect("the VM is still there");
    cases.reject(ENOENT, "a destroyed VM", |_| ()).finish();
}

/// A VM that maps at once stays while it has queues for jobs; others do not.
pub fn destroy_with_queues() {
    let device = device();
    let at_once = Vm::with_flags(&device, sys::DRM_XE_VM_CREATE_FLAG_LR_MODE).expect("a VM");
    let good = drm_xe_vm_destroy { vm_id: at_once.id(), ..Default::default() };
    let mut cases = Cases::new(&device, &request::VM_DESTROY, good);
    let queue = ExecQueue::new(&at_once).expect("a queue");
    let other = ExecQueue::new(&at_once).expect("another queue");
    let binds = ExecQueue::for_binds(&at_once).expect("a bind queue");
    cases.reject(EBUSY, "a VM with two queues", |_| ());
    drop(queue);
    cases.reject(EBUSY, "a VM with a queue", |_| ());
    drop(other);
    cases.accept().reject(ENOENT, "a destroyed VM", |_| ()).finish();
    drop(binds);

    let on_fault = Vm::mirrored(&device).expect("a VM");
    let queue = ExecQueue::new(&on_fault).expect("a queue");
    let good = drm_xe_vm_destroy { vm_id: on_fault.id(), ..Default::default() };
    Cases::new(&device, &request::VM_DESTROY, good).accept();
    drop(queue);
}

pub fn madvise() {
    let (device, vm, foreign) = foreign();
    let memory = Map::aligned(MIDDLE, MIDDLE);
    let mut good = sys::drm_xe_madvise {
        vm_id: vm.id(),
        start: memory.at(0),
        range: MIDDLE as u64,
        type_: sys::DRM_XE_MEM_RANGE_ATTR_ATOMIC,
        ..Default::default()
    };
    good.__bindgen_anon_1.atomic.val = sys::DRM_XE_ATOMIC_GLOBAL;
    Cases::new(&device, &request::MADVISE, good)
        .accepted()
        .reject(EINVAL, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(EINVAL, "another file's VM", |a| a.vm_id = foreign)
        .reject(EINVAL, "a misaligned start", |a| a.start += 1)
        .reject(EINVAL, "a misaligned range", |a| a.range += 8)
        .reject(EINVAL, "an empty range", |a| a.range = 0)
        .reject(EINVAL, "an unknown type", |a| a.type_ = 9)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "an unknown atomic", |a| a.__bindgen_anon_1.atomic.val = 4)
        .reject(EINVAL, "pad of an atomic", |a| a.__bindgen_anon_1.atomic.pad = 1)
        .reject(EINVAL, "reserved of an atomic", |a| a.__bindgen_anon_1.atomic.reserved = 1)
        .finish();

    let mut good = sys::drm_xe_madvise { type_: sys::DRM_XE_MEM_RANGE_ATTR_PAT, ..good };
    good.__bindgen_anon_1.pat_index = Default::default();
    Cases::new(&device, &request::MADVISE, good)
        .accepted()
        .reject(EINVAL, "an unknown PAT index", |a| a.__bindgen_anon_1.pat_index.val = 0xffff)
        .reject(EINVAL, "pad of a PAT index", |a| a.__bindgen_anon_1.pat_index.pad = 1)
        .reject(EINVAL, "reserved of a PAT index", |a| a.__bindgen_anon_1.pat_index.reserved = 1)
        .finish();

    let mut good = sys::drm_xe_madvise { type_: sys::DRM_XE_MEM_RANGE_ATTR_PREFERRED_LOC, ..good };
    good.__bindgen_anon_1.preferred_mem_loc = Default::default();
    good.__bindgen_anon_1.preferred_mem_loc.devmem_fd = -1i32 as u32;
    Cases::new(&device, &request::MADVISE, good)
        .accepted()
        .reject(EINVAL, "a location below the lowest", |a| {
            a.__bindgen_anon_1.preferred_mem_loc.devmem_fd = -2i32 as u32;
        })
        .reject(EINVAL, "a region of no device", |a| {
            a.__bindgen_anon_1.preferred_mem_loc.region_instance = 1;
        })
        .reject(EINVAL, "an unknown policy", |a| {
            a.__bindgen_anon_1.preferred_mem_loc.migration_policy = 2;
        })
        .reject(EINVAL, "reserved of a location", |a| {
            a.__bindgen_anon_1.preferred_mem_loc.reserved = 1;
        })
        .finish();
}

pub fn attributes() {
    let (device, vm, foreign) = foreign();
    let memory = Map::anon(PAGE);
    let good = sys::drm_xe_vm_query_mem_range_attr {
        vm_id: vm.id(),
        start: memory.at(0),
        range: PAGE as u64,
        ..Default::default()
    };
    let size = size_of::<sys::drm_xe_mem_range_attr>() as u64;
    Cases::new(&device, &request::VM_QUERY_MEM_RANGE_ATTRS, good)
        .accepted()
        .reject(EINVAL, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(EINVAL, "another file's VM", |a| a.vm_id = foreign)
        .reject(EINVAL, "an array of none", |a| a.vector_of_mem_attr = memory.at(0))
        .reject(EINVAL, "a size of none", |a| a.sizeof_mem_range_attr = size)
        .reject(EINVAL, "no array of one", |a| {
            a.num_mem_ranges = 1;
            a.sizeof_mem_range_attr = size;
        })
        .reject(EINVAL, "a wrong size", |a| {
            a.num_mem_ranges = 1;
            a.sizeof_mem_range_attr = size - 8;
            a.vector_of_mem_attr = memory.at(0);
        })
        .reject(EFAULT, "an array that is not there", |a| {
            a.num_mem_ranges = 1;
            a.sizeof_mem_range_attr = size;
            a.vector_of_mem_attr = nothing();
        })
        .finish();
}

pub fn get_property() {
    let (device, vm, foreign) = foreign();
    let good = sys::drm_xe_vm_get_property {
        vm_id: vm.id(),
        property: sys::DRM_XE_VM_GET_PROPERTY_FAULTS,
        ..Default::default()
    };
    Cases::new(&device, &request::VM_GET_PROPERTY, good)
        .accepted_or_skip()
        .reject(ENOENT, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(ENOENT, "another file's VM", |a| a.vm_id = foreign)
        .reject(EINVAL, "an unknown property", |a| a.property = 1)
        .reject(EINVAL, "pad", |a| a.pad = 1)
        .reject(EINVAL, "an extension", |a| a.extensions = 8)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[2]", |a| a.reserved[2] = 1)
        .reject(EINVAL, "more than there is", |a| {
            a.size = size_of::<sys::xe_vm_fault>() as u32;
        })
        .finish();
}
