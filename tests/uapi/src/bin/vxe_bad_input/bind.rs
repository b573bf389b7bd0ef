// SPDX-License-Identifier: GPL-2.0

//! VM_BIND.

use super::{
    cases::{nothing, Cases, KERNEL},
    vm::{foreign, NO_ID},
};
use libc::{EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EPERM};
use vxe_client::{
    request,
    sys::{self, drm_xe_vm_bind, drm_xe_vm_bind_op},
    Bind, Bo, Device, ExecQueue, Vm,
};
use vxe_uapi::{Gpu, Map, MIDDLE, PAGE, RO, SZ_2M};

/// The end of the GPU's addresses.
const END: u64 = 1 << 48;
const PAGE_SIZE: u64 = PAGE as u64;

/// One bind as the ioctl takes it.
pub fn args(vm: &Vm, op: Bind) -> drm_xe_vm_bind {
    let mut args = drm_xe_vm_bind { vm_id: vm.id(), num_binds: 1, ..Default::default() };
    args.__bindgen_anon_1.bind = *op.as_raw();
    args
}

/// A VM, a buffer of 64 KiB and where to bind it.
fn scene() -> (Gpu, Bo, Map) {
    let gpu = Gpu::new();
    let bo = Bo::system(gpu.device(), MIDDLE).expect("a buffer");
    (gpu, bo, Map::reserve(MIDDLE, SZ_2M))
}

pub fn header() {
    let (device, vm, foreign) = foreign();
    let place = Map::reserve(MIDDLE, SZ_2M);
    let other = Vm::mirrored(&device).expect("a VM");
    let work = ExecQueue::new(&vm).expect("a queue");
    let of_other = ExecQueue::for_binds(&other).expect("a bind queue");
    let queue = ExecQueue::for_binds(&vm).expect("a bind queue");
    let mut good = args(&vm, Bind::mirror(place.at(0), MIDDLE as u64));
    good.exec_queue_id = queue.id();
    Cases::new(&device, &request::VM_BIND, good)
        .accepted()
        .reject(EINVAL, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(EINVAL, "another file's VM", |a| a.vm_id = foreign)
        .reject(EINVAL, "no VM", |a| a.vm_id = 0)
        .reject(EINVAL, "pad", |a| a.pad = 1)
        .reject(EINVAL, "pad2", |a| a.pad2 = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "an extension", |a| a.extensions = nothing())
        .reject(EINVAL, "too many syncs", |a| a.num_syncs = sys::DRM_XE_MAX_SYNCS + 1)
        .reject(ENOENT, "an unknown queue", |a| a.exec_queue_id = NO_ID)
        .reject(EINVAL, "a queue for work", |a| a.exec_queue_id = work.id())
        .reject(EINVAL, "another VM's queue", |a| a.exec_queue_id = of_other.id())
        .finish();
}

fn op(a: &mut drm_xe_vm_bind) -> &mut drm_xe_vm_bind_op {
    // SAFETY: all arguments here have one bind, and any bytes are one.
    unsafe { &mut a.__bindgen_anon_1.bind }
}

fn set_offset(a: &mut drm_xe_vm_bind, offset: u64) {
    op(a).__bindgen_anon_1.obj_offset = offset;
}

pub fn operation() {
    let (gpu, bo, place) = scene();
    let (device, vm) = (gpu.device(), gpu.vm());
    let there = Device::open().expect("another file");
    let theirs: Vec<_> = (0..3).map(|_| Bo::system(&there, PAGE).expect("a buffer")).collect();
    let length = MIDDLE as u64;

    Cases::new(device, &request::VM_BIND, args(vm, Bind::bo(&bo, 0, place.at(0), length)))
        .accepted()
        .reject(EINVAL, "an unknown operation", |a| op(a).op = 5)
        .reject(EINVAL, "an unknown flag", |a| op(a).flags |= 1 << 8)
        .reject(EINVAL, "the last flag", |a| op(a).flags |= 1 << 31)
        .reject(EINVAL, "no object", |a| op(a).obj = 0)
        .reject(ENOENT, "an unknown object", |a| op(a).obj = NO_ID)
        .reject(ENOENT, "another file's object", |a| op(a).obj = theirs[2].handle())
        .reject(EINVAL, "an unknown PAT index", |a| op(a).pat_index = 0xffff)
        .reject(EINVAL, "a mirror of an object", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR;
        })
        .reject(EINVAL, "nothing of an object", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_NULL;
        })
        .reject(EINVAL, "an autoreset object", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_MADVISE_AUTORESET;
        })
        .reject(EINVAL, "a prefetch region", |a| op(a).prefetch_mem_region_instance = 1)
        .reject(EINVAL, "a user pointer and an object", |a| {
            op(a).op = sys::DRM_XE_VM_BIND_OP_MAP_USERPTR;
        })
        .reject(EINVAL, "a prefetch of an object", |a| {
            op(a).op = sys::DRM_XE_VM_BIND_OP_PREFETCH;
        })
        .reject(EINVAL, "an unmap of an object", |a| op(a).op = sys::DRM_XE_VM_BIND_OP_UNMAP)
        .finish();

    Cases::new(device, &request::VM_BIND, args(vm, Bind::mirror(place.at(0), length)))
        .accepted()
        .reject(EINVAL, "a mirror that is shifted", |a| set_offset(a, PAGE_SIZE))
        .reject(EINVAL, "a mirrored user pointer", |a| {
            op(a).op = sys::DRM_XE_VM_BIND_OP_MAP_USERPTR;
        })
        .reject(EINVAL, "a mirrored prefetch", |a| op(a).op = sys::DRM_XE_VM_BIND_OP_PREFETCH)
        .reject(EINVAL, "a mirrored unmap", |a| op(a).op = sys::DRM_XE_VM_BIND_OP_UNMAP)
        .finish();

    Cases::new(device, &request::VM_BIND, args(vm, Bind::unmap_all(&bo)))
        .accepted()
        .reject(EINVAL, "UNMAP_ALL of nothing", |a| op(a).obj = 0)
        .reject(ENOENT, "UNMAP_ALL of an unknown object", |a| op(a).obj = NO_ID)
        .reject(EINVAL, "UNMAP_ALL at an address", |a| op(a).addr = PAGE_SIZE)
        .reject(EINVAL, "UNMAP_ALL of a range", |a| op(a).range = PAGE_SIZE)
        .finish();

    Cases::new(device, &request::VM_BIND, args(vm, Bind::unmap(place.at(0), length)))
        .accepted()
        .reject(EINVAL, "a prefetch region of an unmap", |a| {
            op(a).prefetch_mem_region_instance = 1;
        })
        .reject(EINVAL, "decompression of an unmap", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_DECOMPRESS;
        })
        .reject(EINVAL, "an unmap of null", |a| op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_NULL)
        .finish();

    let mut prefetch =
        Cases::new(device, &request::VM_BIND, args(vm, Bind::prefetch(place.at(0), length, 0)));
    for region in [7, 31, 32, 63, 64, -2] {
        prefetch.reject(EINVAL, &format!("a prefetch to region {region}"), |a| {
            op(a).prefetch_mem_region_instance = region as u32;
        });
    }
    prefetch.finish();
}

/// Nobody advises where buffers are: a prefetch to where it was advised is for mirrors only.
pub fn advised() {
    let (gpu, bo, place) = scene();
    let (device, vm, length) = (gpu.device(), gpu.vm(), MIDDLE as u64);
    let half = length / 2;
    vm.bind(&[Bind::unmap(place.at(0), half), Bind::bo(&bo, 0, place.at(0), half)])
        .expect("a bind");
    let good = args(vm, Bind::prefetch(place.at(MIDDLE / 2), half, -1));
    let mut cases = Cases::new(device, &request::VM_BIND, good).accepted();
    cases
        .reject(EINVAL, "a buffer", |a| op(a).addr = place.at(0))
        .reject(EINVAL, "the end of a buffer, and a mirror", |a| op(a).addr = place.at(PAGE))
        .finish();
    // In an array nothing of it is done.
    let other = Map::reserve(MIDDLE, SZ_2M);
    let result =
        vm.bind(&[Bind::bo(&bo, 0, other.at(0), length), Bind::prefetch(other.at(0), length, -1)]);
    assert_eq!(result.map_err(|e| e.errno()), Err(EINVAL));
    assert!(vm.bind(&[Bind::prefetch(other.at(0), length, -1)]).is_ok(), "still a mirror");
    vm.bind(&[Bind::prefetch(place.at(0), length, 0)]).expect("a buffer, to a region");
}

/// A buffer of 64 KiB, cached by the CPU as said; it is never closed.
fn raw_buffer(device: &Device, caching: u32, flags: u32) -> u32 {
    let mut create = sys::drm_xe_gem_create {
        size: MIDDLE as u64,
        placement: 1,
        cpu_caching: caching as u16,
        flags,
        ..Default::default()
    };
    // SAFETY: creating a buffer touches no memory of the process.
    unsafe { device.call(&request::GEM_CREATE, &mut create) }.expect("a buffer");
    create.handle
}

/// Entries of the page attribute table, of which some do not go with some buffers: where the GPU
/// does not look into the CPU's caches these must have nothing.
pub fn caching() {
    // Neither coherent nor compressed; coherent with the CPU's caches; compressed.
    const ALONE: [u16; 4] = [0, 3, 6, 20];
    const COHERENT: [u16; 6] = [1, 2, 4, 5, 22, 31];
    const COMPRESSED: [u16; 3] = [9, 14, 29];

    let (gpu, bo, place) = scene();
    let (device, vm, length) = (gpu.device(), gpu.vm(), MIDDLE as u64);
    let combined = raw_buffer(device, sys::DRM_XE_GEM_CPU_CACHING_WC, 0);
    let incompressible = raw_buffer(
        device,
        sys::DRM_XE_GEM_CPU_CACHING_WC,
        sys::DRM_XE_GEM_CREATE_FLAG_NO_COMPRESSION,
    );
    let good = args(vm, Bind::bo(&bo, 0, place.at(0), length));
    let all = args(vm, Bind::unmap_all(&bo));
    let mirror = args(vm, Bind::mirror(place.at(0), length));
    let accept = |good: &drm_xe_vm_bind, obj: u32, pat: u16| {
        let mut good = *good;
        op(&mut good).obj = obj;
        op(&mut good).pat_index = pat;
        _ = Cases::new(device, &request::VM_BIND, good).accepted();
    };
    let reject = |good: &drm_xe_vm_bind, what: &str, obj: u32, pat: u16| {
        let what = format!("{what} with entry {pat}");
        Cases::new(device, &request::VM_BIND, *good)
            .reject(EINVAL, &what, |a| {
                op(a).obj = obj;
                op(a).pat_index = pat;
            })
            .finish();
    };

    for pat in COHERENT {
        for obj in [bo.handle(), combined, incompressible] {
            accept(&good, obj, pat);
        }
    }
    for pat in ALONE {
        reject(&good, "a cached buffer", bo.handle(), pat);
        reject(&all, "UNMAP_ALL of a cached buffer", bo.handle(), pat);
        accept(&good, combined, pat);
        accept(&good, incompressible, pat);
    }
    for pat in COMPRESSED {
        reject(&good, "a cached buffer, compressed", bo.handle(), pat);
        accept(&good, combined, pat);
        reject(&good, "a buffer not to be compressed", incompressible, pat);
    }
    for pat in ALONE.into_iter().chain(COHERENT).chain(COMPRESSED) {
        accept(&mirror, 0, pat);
    }
    for pat in [16, 17, 18, 19, 32, 0xffff] {
        reject(&good, "a buffer", combined, pat);
        reject(&mirror, "a mirror", 0, pat);
    }
}

/// User pointers.
pub fn userptr() {
    let (gpu, _bo, place) = scene();
    let (device, vm, length) = (gpu.device(), gpu.vm(), MIDDLE as u64);
    let memory = Map::aligned(MIDDLE, SZ_2M);
    let userptr = Bind::userptr(memory.at(0), place.at(0), length);
    Cases::new(device, &request::VM_BIND, args(vm, userptr))
        .accepted()
        .reject(EINVAL, "not coherent", |a| op(a).pat_index = 0)
        .reject(EINVAL, "of nothing", |a| op(a).range = 0)
        .reject(EINVAL, "beyond the end", |a| op(a).addr = END)
        .reject(EINVAL, "at half a page", |a| op(a).addr += PAGE_SIZE / 2)
        .reject(EINVAL, "half a page", |a| op(a).range = PAGE_SIZE / 2)
        .reject(EINVAL, "to half a page", |a| set_offset(a, memory.at(0) + PAGE_SIZE / 2))
        .reject(EINVAL, "with an object", |a| op(a).obj = 1)
        .reject(EINVAL, "with a prefetch region", |a| op(a).prefetch_mem_region_instance = 1)
        .reject(EINVAL, "mirrored", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR;
        })
        .reject(EINVAL, "null", |a| op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_NULL)
        .reject(EINVAL, "around the end", |a| set_offset(a, 0u64.wrapping_sub(PAGE_SIZE)))
        .reject(EFAULT, "to the kernel's memory", |a| set_offset(a, 0xffff_8000_0000_0000))
        .reject(EFAULT, "to address 0", |a| set_offset(a, 0))
        .reject(EFAULT, "beyond the memory", |a| set_offset(a, memory.at(0) + PAGE_SIZE))
        .finish();
    memory.protect(RO);
    Cases::new(device, &request::VM_BIND, args(vm, userptr))
        .reject(EPERM, "that may not be written", |_| ())
        .finish();
    Cases::new(device, &request::VM_BIND, args(vm, userptr.read_only())).accepted().finish();
}

/// What xe can and this device cannot is refused by a name of its own, after all that is wrong
/// with it.
pub fn not_supported() {
    let (gpu, bo, place) = scene();
    let (device, vm, length) = (gpu.device(), gpu.vm(), MIDDLE as u64);

    Cases::new(device, &request::VM_BIND, args(vm, Bind::null(place.at(0), length)))
        .accepted()
        .reject(EINVAL, "a mirror of nothing", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR;
        })
        .reject(EINVAL, "an empty mapping of nothing", |a| op(a).range = 0)
        .reject(EINVAL, "a mapping of nothing, shifted", |a| set_offset(a, PAGE_SIZE))
        .finish();
    let bind = Bind::bo(&bo, 0, place.at(0), length);
    Cases::new(device, &request::VM_BIND, args(vm, bind))
        .reject(EOPNOTSUPP, "decompression", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_DECOMPRESS;
        })
        .reject(EINVAL, "decompression to what is compressed", |a| {
            op(a).flags |= sys::DRM_XE_VM_BIND_FLAG_DECOMPRESS;
            op(a).pat_index = 9;
        })
        .finish();

    // Without faults there are no mirrors.
    let long = Vm::with_flags(device, sys::DRM_XE_VM_CREATE_FLAG_LR_MODE).expect("a VM");
    Cases::new(device, &request::VM_BIND, args(&long, bind))
        .accepted()
        .reject(EINVAL, "a mirror without faults", |a| {
            *op(a) = *Bind::mirror(place.at(0), length).as_raw();
        })
        .finish();
}

pub fn ranges() {
    let (gpu, bo, place) = scene();
    let length = MIDDLE as u64;
    for (what, good) in [
        ("buffer", Bind::bo(&bo, 0, place.at(0), length)),
        ("mirror", Bind::mirror(place.at(0), length)),
        ("unmap", Bind::unmap(place.at(0), length)),
    ] {
        let mut cases =
            Cases::new(gpu.device(), &request::VM_BIND, args(gpu.vm(), good)).accepted();
        let mut range = |why: &str, addr: u64, range: u64| {
            cases.reject(EINVAL, &format!("{what}: {why}"), |a| {
                op(a).addr = addr;
                op(a).range = range;
            });
        };
        range("an empty range", place.at(0), 0);
        range("an address not of a page", place.at(8), length);
        range("a range not of pages", place.at(0), length - 1);
        range("less than a page", place.at(0), 512);
        range("beyond the end", END, PAGE_SIZE);
        range("over the end", END - PAGE_SIZE, 2 * PAGE_SIZE);
        range("far beyond the end", 1 << 60, PAGE_SIZE);
        range("the last page there is", u64::MAX - PAGE_SIZE + 1, PAGE_SIZE);
        range("an overflowing sum", u64::MAX - PAGE_SIZE + 1, 2 * PAGE_SIZE);
        range("more than all", 0, END + PAGE_SIZE);
        range("nearly 64 bits of it", PAGE_SIZE, u64::MAX - PAGE_SIZE + 1);
        cases.finish();
    }
    let good = args(gpu.vm(), Bind::bo(&bo, 0, place.at(0), length));
    Cases::new(gpu.device(), &request::VM_BIND, good)
        .reject(EINVAL, "more than the buffer", |a| op(a).range = 2 * length)
        .reject(EINVAL, "beyond the buffer", |a| set_offset(a, PAGE_SIZE))
        .reject(EINVAL, "far beyond the buffer", |a| set_offset(a, 1 << 40))
        .reject(EINVAL, "an overflowing offset", |a| set_offset(a, u64::MAX - PAGE_SIZE + 1))
        .reject(EINVAL, "an offset not of a page", |a| {
            op(a).range = PAGE_SIZE;
            set_offset(a, 64);
        })
        .finish();
}

pub fn arrays() {
    let (mut gpu, bo, place) = scene();
    let (good, bad) = (Bind::bo(&bo, 0, place.at(0), PAGE_SIZE), Bind::unmap(place.at(0), 0));
    let ops = [*good.as_raw(), *Bind::unmap(place.at(PAGE), PAGE_SIZE).as_raw()];
    let spoilt = [*good.as_raw(), *bad.as_raw()];
    // An array of which the second half is not there.
    let edge = Map::reserve(2 * PAGE, PAGE);
    edge.part(0, PAGE).replace_anon(vxe_uapi::RW);
    let half = edge.at(PAGE - size_of::<drm_xe_vm_bind_op>());
    // SAFETY: the page is the test's own and has room for one bind before its end.
    unsafe { (half as *mut drm_xe_vm_bind_op).write_unaligned(ops[0]) };

    let device = gpu.device().clone();
    let mut args = args(gpu.vm(), good);
    args.num_binds = 2;
    args.__bindgen_anon_1.vector_of_binds = ops.as_ptr() as u64;
    Cases::new(&device, &request::VM_BIND, args)
        .accepted()
        .reject(EFAULT, "an array that is not there", |a| {
            a.__bindgen_anon_1.vector_of_binds = nothing();
        })
        .reject(EFAULT, "no array", |a| a.__bindgen_anon_1.vector_of_binds = 0)
        .reject(EFAULT, "an array of the kernel's", |a| {
            a.__bindgen_anon_1.vector_of_binds = KERNEL;
        })
        .reject(EFAULT, "half an array", |a| a.__bindgen_anon_1.vector_of_binds = half)
        .reject(EFAULT, "a number that the array is far too short for", |a| {
            a.num_binds = u32::MAX;
            a.__bindgen_anon_1.vector_of_binds = half;
        })
        .finish();

    gpu.vm().bind(&[Bind::unmap(place.at(0), MIDDLE as u64)]).expect("unmap");
    Cases::new(&device, &request::VM_BIND, args)
        .reject(EINVAL, "an array with a bad bind", |a| {
            a.__bindgen_anon_1.vector_of_binds = spoilt.as_ptr() as u64;
        })
        .finish();
    gpu.expect_fault("the good bind of a bad array", |c| _ = c.store(place.at(0), 1));
}
