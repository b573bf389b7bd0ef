// SPDX-License-Identifier: GPL-2.0

//! Buffer objects.

use super::{
    cases::{nothing, Cases},
    vm::{foreign, NO_ID},
};
use libc::{EFAULT, EINVAL, ENOENT};
use vxe_client::{
    request,
    sys::{self, drm_xe_gem_create},
    Bo,
};
use vxe_uapi::{gpu::device, Map, PAGE};

pub fn create() {
    let (device, vm, foreign) = foreign();
    let good = drm_xe_gem_create {
        size: PAGE as u64,
        placement: 1,
        vm_id: vm.id(),
        cpu_caching: sys::DRM_XE_GEM_CPU_CACHING_WB as u16,
        ..Default::default()
    };
    let extension = Map::anon(PAGE);
    extension.write(8, 1); // The name: there is no extension 1.
    Cases::new(&device, &request::GEM_CREATE, good)
        .accepted()
        .reject(EINVAL, "pad[0]", |a| a.pad[0] = 1)
        .reject(EINVAL, "pad[1]", |a| a.pad[1] = 1)
        .reject(EINVAL, "pad[2]", |a| a.pad[2] = 1)
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "no placement", |a| a.placement = 0)
        .reject(EINVAL, "an unknown placement", |a| a.placement = 1 << 7)
        .reject(EINVAL, "the last placement", |a| a.placement |= 1 << 31)
        .reject(EINVAL, "an unknown flag", |a| a.flags = 1 << 4)
        .reject(EINVAL, "the last flag", |a| a.flags = 1 << 31)
        .reject(EINVAL, "visible VRAM in system memory", |a| {
            a.flags = sys::DRM_XE_GEM_CREATE_FLAG_NEEDS_VISIBLE_VRAM;
        })
        .reject(EINVAL, "a handle", |a| a.handle = 1)
        .reject(EINVAL, "no size", |a| a.size = 0)
        .reject(EINVAL, "a size not of pages", |a| a.size += 512)
        .reject(EINVAL, "no caching", |a| a.cpu_caching = 0)
        .reject(EINVAL, "an unknown caching", |a| a.cpu_caching = 3)
        .reject(EINVAL, "scan-out from cached memory", |a| {
            a.flags = sys::DRM_XE_GEM_CREATE_FLAG_SCANOUT;
        })
        .reject(ENOENT, "an unknown VM", |a| a.vm_id = NO_ID)
        .reject(ENOENT, "another file's VM", |a| a.vm_id = foreign)
        .reject(EFAULT, "an extension that is not there", |a| a.extensions = nothing())
        .reject(EINVAL, "an unknown extension", |a| a.extensions = extension.at(0))
        .finish();
    let regions = device.memory_regions().expect("the regions");
    let vram = sys::DRM_XE_MEM_REGION_CLASS_VRAM as u16;
    if let Some(region) = regions.iter().find(|r| r.mem_class == vram) {
        Cases::new(&device, &request::GEM_CREATE, good)
            .reject(EINVAL, "cached VRAM", |a| a.placement = 1 << region.instance)
            .finish();
    }
}

pub fn mmap_offset() {
    let (here, there) = (device(), device());
    let bo = Bo::system(&here, PAGE).expect("a buffer");
    let theirs: Vec<_> = (0..3).map(|_| Bo::system(&there, PAGE).expect("a buffer")).collect();
    let good = sys::drm_xe_gem_mmap_offset { handle: bo.handle(), ..Default::default() };
    Cases::new(&here, &request::GEM_MMAP_OFFSET, good)
        .accepted()
        .reject(EINVAL, "an extension", |a| a.extensions = nothing())
        .reject(EINVAL, "reserved[0]", |a| a.reserved[0] = 1)
        .reject(EINVAL, "reserved[1]", |a| a.reserved[1] = 1)
        .reject(EINVAL, "an unknown flag", |a| a.flags = 2)
        .reject(EINVAL, "a barrier of a buffer", |a| {
            a.flags = sys::DRM_XE_MMAP_OFFSET_FLAG_PCI_BARRIER;
        })
        .reject(ENOENT, "no handle", |a| a.handle = 0)
        .reject(ENOENT, "an unknown handle", |a| a.handle = NO_ID)
        .reject(ENOENT, "another file's handle", |a| a.handle = theirs[2].handle())
        .finish();

    // The offset of one file is worth nothing on another.
    let offset = bo.mmap_offset().expect("an offset") as i64;
    let map = |device: &vxe_client::Device, offset| {
        use std::os::fd::AsRawFd;
        Map::try_mmap(0, PAGE, vxe_uapi::RW, libc::MAP_SHARED, device.as_raw_fd(), offset)
            .map_err(|e| e.raw_os_error())
            .map(|_| ())
    };
    assert_eq!(map(&here, offset), Ok(()), "one's own offset");
    assert_eq!(map(&there, offset), Err(Some(libc::EACCES)), "another file's offset");
    assert_eq!(map(&here, offset + (1 << 40)), Err(Some(EINVAL)), "an offset of nothing");
}

pub fn close() {
    let device = device();
    let bo = Bo::system(&device, PAGE).expect("a buffer");
    let good = sys::drm_gem_close { handle: bo.handle(), ..Default::default() };
    Cases::new(&device, &request::GEM_CLOSE, good)
        .reject(EINVAL, "no handle", |a| a.handle = 0)
        .reject(EINVAL, "an unknown handle", |a| a.handle = NO_ID)
        .accept()
        .reject(EINVAL, "a closed handle", |_| ())
        .finish();
}
