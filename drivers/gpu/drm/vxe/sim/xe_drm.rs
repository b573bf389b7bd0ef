// SPDX-License-Identifier: GPL-2.0

//! Safe access to the structures of the Xe uAPI.
//!
//! C header: [`include/uapi/drm/xe_drm.h`](srctree/include/uapi/drm/xe_drm.h)

use crate::bindings::{
    drm_xe_device_query, drm_xe_engine, drm_xe_engine_class_instance, drm_xe_exec,
    drm_xe_exec_queue_create, drm_xe_exec_queue_destroy, drm_xe_exec_queue_get_property,
    drm_xe_exec_queue_set_property, drm_xe_ext_set_property, drm_xe_gem_create,
    drm_xe_gem_mmap_offset, drm_xe_gt, drm_xe_madvise, drm_xe_mem_range_attr, drm_xe_mem_region,
    drm_xe_observation_param, drm_xe_query_engine_cycles, drm_xe_query_topology_mask,
    drm_xe_query_uc_fw_version, drm_xe_sync, drm_xe_user_extension, drm_xe_vm_bind,
    drm_xe_vm_bind_op, drm_xe_vm_create, drm_xe_vm_destroy, drm_xe_vm_get_property,
    drm_xe_vm_query_mem_range_attr, drm_xe_wait_user_fence, xe_vm_fault,
};
use crate::ioctl::IoctlArgument;
use kernel::transmute::{
    AsBytes,
    FromBytes, //
};

/// Declares that structures consist of integers only: any bytes are a valid value, and each byte of
/// a value is initialised.
///
/// `size` is the sum of the sizes of the members, so the assertion proves that there is no padding
/// between them.
macro_rules! plain {
    ($($name:ident: $size:expr,)*) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: Integers, and unions of structures of integers, take any bit pattern.
        unsafe impl FromBytes for $name {}
        // SAFETY: The assertion above excludes padding, and there is no interior mutability.
        unsafe impl AsBytes for $name {}
    )*};
}

plain! {
    drm_xe_user_extension: 8 + 4 + 4,
    drm_xe_ext_set_property: 16 + 4 + 4 + 8 + 2 * 8,
    drm_xe_engine_class_instance: 4 * 2,
    drm_xe_engine: 8 + 3 * 8,
    drm_xe_mem_region: 2 + 2 + 4 + 4 * 8 + 6 * 8,
    drm_xe_gt: 3 * 2 + 3 * 2 + 4 + 8 + 8 + 4 * 2 + 7 * 8,
    drm_xe_query_topology_mask: 2 + 2 + 4,
    drm_xe_query_engine_cycles: 8 + 4 + 4 + 8 + 8 + 8,
    drm_xe_query_uc_fw_version: 2 + 2 + 4 * 4 + 4 + 8,
    drm_xe_sync: 8 + 4 + 4 + 8 + 8 + 2 * 8,
    drm_xe_vm_bind_op: 8 + 4 + 2 + 2 + 8 + 8 + 8 + 4 + 4 + 4 + 4 + 3 * 8,
    drm_xe_mem_range_attr: 8 + 8 + 8 + 8 + 8 + 8 + 2 * 8,
    xe_vm_fault: 8 + 4 + 4 + 4 * 8,
}

macro_rules! argument {
    ($($name:ident: $size:expr,)*) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: Integers, and unions of structures of integers. The assertion above excludes
        // padding, as its sum is over the members.
        unsafe impl IoctlArgument for $name {}
    )*};
}

argument! {
    drm_xe_device_query: 8 + 4 + 4 + 8 + 2 * 8,
    drm_xe_gem_create: 8 + 8 + 4 + 4 + 4 + 4 + 2 + 3 * 2 + 2 * 8,
    drm_xe_gem_mmap_offset: 8 + 4 + 4 + 8 + 2 * 8,
    drm_xe_vm_create: 8 + 4 + 4 + 2 * 8,
    drm_xe_vm_destroy: 4 + 4 + 2 * 8,
    drm_xe_vm_bind: 8 + 4 * 4 + 80 + 4 + 4 + 8 + 2 * 8,
    drm_xe_vm_get_property: 8 + 4 * 4 + 8 + 3 * 8,
    drm_xe_exec_queue_create: 8 + 2 + 2 + 3 * 4 + 8 + 2 * 8,
    drm_xe_exec_queue_destroy: 4 + 4 + 2 * 8,
    drm_xe_exec_queue_get_property: 8 + 4 + 4 + 8 + 2 * 8,
    drm_xe_exec_queue_set_property: 8 + 4 + 4 + 8 + 2 * 8,
    drm_xe_exec: 8 + 4 + 4 + 8 + 8 + 2 + 3 * 2 + 2 * 8,
    drm_xe_observation_param: 4 * 8,
    drm_xe_wait_user_fence: 8 + 8 + 2 + 2 + 4 + 8 + 8 + 8 + 4 + 4 + 2 * 8,
    drm_xe_madvise: 8 + 8 + 8 + 4 + 4 + 16 + 2 * 8,
    drm_xe_vm_query_mem_range_attr: 8 + 4 + 4 + 8 + 8 + 8 + 8 + 2 * 8,
}

// Accessors of unions. Each member consists of integers, and the whole structure is initialised, so
// reading any of them is sound, whichever was written.

impl drm_xe_ext_set_property {
    /// Returns the value of the property.
    pub fn value(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.value }
    }
}

impl drm_xe_sync {
    /// Returns the handle of a sync object.
    pub fn handle(&self) -> u32 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.handle }
    }

    /// Returns the address of a user fence.
    pub fn addr(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.addr }
    }
}

impl drm_xe_vm_bind {
    /// Returns the operation, if there is a single one.
    pub fn bind(&self) -> drm_xe_vm_bind_op {
        // SAFETY: A structure of integers; see above.
        unsafe { self.__bindgen_anon_1.bind }
    }

    /// Returns the user address of the operations, if there are several.
    pub fn vector_of_binds(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.vector_of_binds }
    }
}

impl drm_xe_vm_bind_op {
    /// Returns the offset into the object, in bytes.
    pub fn obj_offset(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.obj_offset }
    }

    /// Returns the user address of a userptr.
    pub fn userptr(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.userptr }
    }

    /// Returns the offset of a CPU address mirror.
    pub fn cpu_addr_mirror_offset(&self) -> i64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.cpu_addr_mirror_offset }
    }
}

impl drm_xe_madvise {
    /// Returns the preferred location: `devmem_fd`, `migration_policy`, `region_instance`,
    /// `reserved`.
    pub fn preferred_mem_loc(&self) -> (u32, u16, u16, u64) {
        // SAFETY: A structure of integers; see above.
        let loc = unsafe { &self.__bindgen_anon_1.preferred_mem_loc };
        (
            loc.devmem_fd,
            loc.migration_policy,
            loc.region_instance,
            loc.reserved,
        )
    }

    /// Returns the atomic mode, or the PAT index: `val`, `pad`, `reserved`.
    pub fn value(&self) -> (u32, u32, u64) {
        // SAFETY: A structure of integers, of the same layout for both; see above.
        let atomic = unsafe { &self.__bindgen_anon_1.atomic };
        (atomic.val, atomic.pad, atomic.reserved)
    }

    /// Returns the purgeable state: `val`, `pad`, `retained_ptr`.
    pub fn purge_state(&self) -> (u32, u32, u64) {
        // SAFETY: A structure of integers; see above.
        let state = unsafe { &self.__bindgen_anon_1.purge_state_val };
        (state.val, state.pad, state.retained_ptr)
    }
}

impl drm_xe_vm_get_property {
    /// Returns the user address of the array to write.
    pub fn data(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.data }
    }

    /// Sets the single value to return.
    pub fn set_value(&mut self, value: u64) {
        self.__bindgen_anon_1.value = value;
    }
}
