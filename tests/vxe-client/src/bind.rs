// SPDX-License-Identifier: GPL-2.0

//! What DRM_IOCTL_XE_VM_BIND can do to a VM's addresses.

use crate::{sys, Bo};

/// The entry of the page attribute table that means write-back and coherent with the CPU's caches.
const PAT_WRITE_BACK: u16 = 2;

/// One operation on a VM's address space.
///
/// The referenced buffer is named by its handle: it must be open when the operation is executed,
/// and may be closed afterwards.
#[derive(Clone, Copy)]
pub struct Bind {
    op: sys::drm_xe_vm_bind_op,
}

impl Bind {
    fn new(op: u32, address: u64, length: u64) -> Self {
        Self {
            op: sys::drm_xe_vm_bind_op { op, addr: address, range: length, ..Default::default() },
        }
    }

    /// Mirrors the CPU's addresses: GPU accesses fault pages in.
    pub fn mirror(address: u64, length: u64) -> Self {
        Self::new(sys::DRM_XE_VM_BIND_OP_MAP, address, length)
            .flags(sys::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR)
    }

    /// Maps a part of a buffer.
    pub fn bo(bo: &Bo, offset: u64, address: u64, length: u64) -> Self {
        let mut bind = Self::new(sys::DRM_XE_VM_BIND_OP_MAP, address, length);
        bind.op.obj = bo.handle();
        bind.op.__bindgen_anon_1.obj_offset = offset;
        bind.pat(PAT_WRITE_BACK)
    }

    /// Maps nothing: reads give zero, writes vanish.
    pub fn null(address: u64, length: u64) -> Self {
        Self::new(sys::DRM_XE_VM_BIND_OP_MAP, address, length).flags(sys::DRM_XE_VM_BIND_FLAG_NULL)
    }

    /// Maps memory of the process at another GPU address.
    pub fn userptr(pointer: u64, address: u64, length: u64) -> Self {
        let mut bind = Self::new(sys::DRM_XE_VM_BIND_OP_MAP_USERPTR, address, length);
        bind.op.__bindgen_anon_1.userptr = pointer;
        bind.pat(PAT_WRITE_BACK)
    }

    /// Removes whatever is mapped.
    pub fn unmap(address: u64, length: u64) -> Self {
        Self::new(sys::DRM_XE_VM_BIND_OP_UNMAP, address, length)
    }

    /// Removes a buffer everywhere.
    pub fn unmap_all(bo: &Bo) -> Self {
        let mut bind = Self::new(sys::DRM_XE_VM_BIND_OP_UNMAP_ALL, 0, 0);
        bind.op.obj = bo.handle();
        bind.pat(PAT_WRITE_BACK)
    }

    /// Maps pages before they are needed. `region` is an instance of a memory region, or -1 for
    /// the place that was advised.
    pub fn prefetch(address: u64, length: u64, region: i32) -> Self {
        let mut bind = Self::new(sys::DRM_XE_VM_BIND_OP_PREFETCH, address, length);
        bind.op.prefetch_mem_region_instance = region as u32;
        bind
    }

    /// Adds `DRM_XE_VM_BIND_FLAG_*`.
    #[must_use]
    pub const fn flags(mut self, flags: u32) -> Self {
        self.op.flags |= flags;
        self
    }

    /// Lets the GPU only read.
    #[must_use]
    pub const fn read_only(self) -> Self {
        self.flags(sys::DRM_XE_VM_BIND_FLAG_READONLY)
    }

    /// Maps at once instead of on a fault.
    #[must_use]
    pub const fn immediate(self) -> Self {
        self.flags(sys::DRM_XE_VM_BIND_FLAG_IMMEDIATE)
    }

    /// Chooses the entry of the page attribute table.
    #[must_use]
    pub const fn pat(mut self, index: u16) -> Self {
        self.op.pat_index = index;
        self
    }

    /// The struct of the uAPI.
    pub const fn as_raw(&self) -> &sys::drm_xe_vm_bind_op {
        &self.op
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_names_no_object() {
        let op = *Bind::mirror(0x1000, 0x2000).as_raw();
        assert_eq!((op.addr, op.range, op.obj), (0x1000, 0x2000, 0));
        assert_eq!(op.op, sys::DRM_XE_VM_BIND_OP_MAP);
        assert_eq!(op.flags, sys::DRM_XE_VM_BIND_FLAG_CPU_ADDR_MIRROR);
    }

    #[test]
    fn flags_add_up() {
        let op = *Bind::null(0, 4096).read_only().immediate().pat(3).as_raw();
        assert_eq!(
            op.flags,
            sys::DRM_XE_VM_BIND_FLAG_NULL
                | sys::DRM_XE_VM_BIND_FLAG_READONLY
                | sys::DRM_XE_VM_BIND_FLAG_IMMEDIATE
        );
        assert_eq!(op.pat_index, 3);
        let prefetch = Bind::prefetch(0, 4096, -1);
        assert_eq!(prefetch.as_raw().prefetch_mem_region_instance, u32::MAX);
    }
}
