// SPDX-License-Identifier: GPL-2.0

//! The structures of the Xe uAPI, as safe code reads and writes them.
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

/// Says that structures are integers only: any bytes are a value, and each byte of a value is
/// initialised.
///
/// `size` is the sum of the sizes of the members, so that the assertion proves that there is no
/// padding between them.
macro_rules! plain {
    ($($name:ident: $size:expr,)*) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: Integers, and unions of structures of integers, take any bit pattern.
        unsafe impl FromBytes for $name {}
        // SAFETY: There is no padding, as the assertion above says, and no interior mutability.
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
        // SAFETY: Integers, and unions of structures of integers, without padding: the assertion
        // above says so, its sum being over the members.
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

// The members of unions. Each is integers, and the whole of the structure is initialised, so that
// reading any of them is sound, whichever was written.

impl drm_xe_ext_set_property {
    /// The value of the property.
    pub fn value(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.value }
    }
}

impl drm_xe_sync {
    /// The handle of a sync object.
    pub fn handle(&self) -> u32 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.handle }
    }

    /// The address of a user fence.
    pub fn addr(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.addr }
    }
}

impl drm_xe_vm_bind {
    /// The operation, if it is a single one.
    pub fn bind(&self) -> drm_xe_vm_bind_op {
        // SAFETY: A structure of integers; see above.
        unsafe { self.__bindgen_anon_1.bind }
    }

    /// The user address of the operations, if they are several.
    pub fn vector_of_binds(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.vector_of_binds }
    }
}

impl drm_xe_vm_bind_op {
    /// The offset into the object, in bytes.
    pub fn obj_offset(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.obj_offset }
    }

    /// The user address of a userptr.
    pub fn userptr(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.userptr }
    }

    /// The offset of a CPU address mirror.
    pub fn cpu_addr_mirror_offset(&self) -> i64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.cpu_addr_mirror_offset }
    }
}

impl drm_xe_madvise {
    /// The preferred location: `devmem_fd`, `migration_policy`, `region_instance`, `reserved`.
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

    /// The atomic mode, or the PAT index: `val`, `pad`, `reserved`.
    pub fn value(&self) -> (u32, u32, u64) {
        // SAFETY: A structure of integers, of the same layout for both; see above.
        let atomic = unsafe { &self.__bindgen_anon_1.atomic };
        (atomic.val, atomic.pad, atomic.reserved)
    }

    /// The purgeable state: `val`, `pad`, `retained_ptr`.
    pub fn purge_state(&self) -> (u32, u32, u64) {
        // SAFETY: A structure of integers; see above.
        let state = unsafe { &self.__bindgen_anon_1.purge_state_val };
        (state.val, state.pad, state.retained_ptr)
    }
}

impl drm_xe_vm_get_property {
    /// The user address that an array goes to.
    pub fn data(&self) -> u64 {
        // SAFETY: An integer; see above.
        unsafe { self.__bindgen_anon_1.data }
    }

    /// Answers with a single value.
    pub fn set_value(&mut self, value: u64) {
        self.__bindgen_anon_1.value = value;
    }
}
