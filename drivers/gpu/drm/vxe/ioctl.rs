// SPDX-License-Identifier: GPL-2.0

//! The table of ioctls.
//!
//! The callbacks from C are in [`vxe_sim::ioctl`]. Each creates an [`Ioctl`], which fails with
//! `ENODEV` if the device is not registered any more, and calls the handler.

mod context;

use crate::{
    bo,
    exec,
    exec_queue_ioctl,
    file::File,
    query,
    uapi,
    vm,
    wait_user_fence, //
};
pub(crate) use context::Ioctl;
use kernel::prelude::*;

vxe_sim::drm_ioctls! {
    File, uapi, Ioctl::new;
    DRM_XE_DEVICE_QUERY: IOWR<drm_xe_device_query>, query::ioctl;
    DRM_XE_GEM_CREATE: IOWR<drm_xe_gem_create>, bo::create_ioctl;
    DRM_XE_GEM_MMAP_OFFSET: IOWR<drm_xe_gem_mmap_offset>, bo::mmap_offset_ioctl;
    DRM_XE_VM_CREATE: IOWR<drm_xe_vm_create>, vm::create_ioctl;
    DRM_XE_VM_DESTROY: IOW<drm_xe_vm_destroy>, vm::destroy_ioctl;
    DRM_XE_VM_BIND: IOW<drm_xe_vm_bind>, vm::bind::ioctl;
    DRM_XE_EXEC_QUEUE_CREATE: IOWR<drm_xe_exec_queue_create>, exec_queue_ioctl::create_ioctl;
    DRM_XE_EXEC_QUEUE_DESTROY: IOW<drm_xe_exec_queue_destroy>, exec_queue_ioctl::destroy_ioctl;
    DRM_XE_EXEC_QUEUE_GET_PROPERTY: IOWR<drm_xe_exec_queue_get_property>,
        exec_queue_ioctl::get_property_ioctl;
    DRM_XE_EXEC: IOW<drm_xe_exec>, exec::ioctl;
    DRM_XE_WAIT_USER_FENCE: IOWR<drm_xe_wait_user_fence>, wait_user_fence::ioctl;
    DRM_XE_OBSERVATION: IOW<drm_xe_observation_param>, observation_ioctl;
    DRM_XE_MADVISE: IOW<drm_xe_madvise>, vm::madvise::ioctl;
    DRM_XE_VM_QUERY_MEM_RANGE_ATTRS: IOWR<drm_xe_vm_query_mem_range_attr>, vm::query_attrs::ioctl;
    DRM_XE_EXEC_QUEUE_SET_PROPERTY: IOW<drm_xe_exec_queue_set_property>,
        exec_queue_ioctl::set_property_ioctl;
    DRM_XE_VM_GET_PROPERTY: IOWR<drm_xe_vm_get_property>, vm::property::ioctl;
}

/// `DRM_IOCTL_XE_OBSERVATION`: the device has no observation streams.
///
/// Fails with `ENODEV` for the types that xe has, and with `EINVAL` for others.
fn observation_ioctl(
    ioctl: &mut Ioctl<'_>,
    args: &mut uapi::drm_xe_observation_param,
) -> Result<u32> {
    let dev = ioctl.dev();
    const TYPES: u64 = 2;
    crate::check::ensure!(dev, args.extensions == 0, EINVAL);
    crate::check::ensure!(dev, args.observation_type < TYPES, EINVAL);
    Err(ENODEV)
}
