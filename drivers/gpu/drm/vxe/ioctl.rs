// SPDX-License-Identifier: GPL-2.0

//! The table of ioctls.
//!
//! `kernel::declare_drm_ioctls!` knows the structures of `kernel::uapi` only, so that the callbacks
//! from C are here. They are the only unsafe code of the driver's uAPI: everything behind them takes
//! references.

#[deny(unsafe_code)]
mod context;

use crate::{
    bo,
    driver::{
        DrmFile,
        IoctlDevice, //
    },
    exec,
    exec_queue_ioctl,
    query,
    uapi::{
        self,
        IoctlArgument, //
    },
    vm,
    wait_user_fence, //
};
pub(crate) use context::Ioctl;
use kernel::{
    drm::{
        self,
        ioctl::{
            internal::{
                drm_device,
                drm_file, //
            },
            DrmIoctlDescriptor,
            RENDER_ALLOW, //
        }, //
    },
    error::from_result,
    prelude::*,
    str::as_char_ptr_in_const_context, //
};

/// Calls the handler of an ioctl if the device is registered. Fails with `ENODEV` if it is not.
///
/// # Safety
///
/// This must be called by the DRM core as an ioctl of this driver, with an argument of the size of
/// an `A`.
unsafe fn call<A: IoctlArgument>(
    dev: *mut drm_device,
    data: *mut c_void,
    file: *mut drm_file,
    handler: fn(&mut Ioctl<'_>, &mut A) -> Result<u32>,
) -> c_int {
    // SAFETY: The DRM core keeps the device, which is this driver's and has been registered.
    let dev: &IoctlDevice = unsafe { drm::Device::from_raw(dev) };
    // SAFETY: The core passes a buffer of at least the size of the argument, aligned for any, which
    // nobody else uses now; any bytes are an `A`, and every byte of it may be copied out.
    let args = unsafe { &mut *data.cast::<A>() };
    // SAFETY: The file is open, and of this driver.
    let file = unsafe { DrmFile::from_raw(file) };
    from_result(|| Ok(handler(&mut Ioctl::new(dev, file)?, args)? as c_int))
}

/// Makes the table: by number, each with its direction, argument and handler.
macro_rules! ioctls {
    ($($nr:ident: $dir:ident<$args:ident>, $handler:path;)*) => {
        /// The driver's ioctls, by number from `DRM_COMMAND_BASE`.
        pub(crate) const IOCTLS: &[DrmIoctlDescriptor] = {
            // The core finds an ioctl by its number in the table.
            const _: () = {
                let numbers = [$(uapi::$nr,)*];
                let mut i = 0;
                while i < numbers.len() {
                    assert!(numbers[i] == i as u32);
                    i += 1;
                }
            };
            &[$(
                DrmIoctlDescriptor {
                    cmd: drm::ioctl::$dir::<uapi::$args>(
                        kernel::uapi::DRM_COMMAND_BASE + uapi::$nr,
                    ),
                    func: {
                        /// # Safety
                        ///
                        /// To be called by the DRM core as this ioctl.
                        #[allow(non_snake_case)]
                        unsafe extern "C" fn $nr(
                            dev: *mut drm_device,
                            data: *mut c_void,
                            file: *mut drm_file,
                        ) -> c_int {
                            // SAFETY: The core calls this for `cmd`, which has the argument's
                            // size in it.
                            unsafe {
                                call::<uapi::$args>(dev, data, file, |ioctl, args| {
                                    $handler(ioctl, args)
                                })
                            }
                        }
                        Some($nr)
                    },
                    flags: RENDER_ALLOW,
                    name: as_char_ptr_in_const_context(kernel::c_str!(stringify!($nr))),
                },
            )*]
        };
    };
}

ioctls! {
    DRM_XE_DEVICE_QUERY: IOWR<drm_xe_device_query>, query::ioctl;
    DRM_XE_GEM_CREATE: IOWR<drm_xe_gem_create>, bo::create_ioctl;
    DRM_XE_GEM_MMAP_OFFSET: IOWR<drm_xe_gem_mmap_offset>, bo::mmap_offset_ioctl;
    DRM_XE_VM_CREATE: IOWR<drm_xe_vm_create>, vm::create_ioctl;
    DRM_XE_VM_DESTROY: IOW<drm_xe_vm_destroy>, vm::destroy_ioctl;
    DRM_XE_VM_BIND: IOW<drm_xe_vm_bind>, vm::bind::ioctl;
    DRM_XE_EXEC_QUEUE_CREATE: IOWR<drm_xe_exec_queue_create>,
        exec_queue_ioctl::create_ioctl;
    DRM_XE_EXEC_QUEUE_DESTROY: IOW<drm_xe_exec_queue_destroy>,
        exec_queue_ioctl::destroy_ioctl;
    DRM_XE_EXEC_QUEUE_GET_PROPERTY: IOWR<drm_xe_exec_queue_get_property>,
        exec_queue_ioctl::get_property_ioctl;
    DRM_XE_EXEC: IOW<drm_xe_exec>, exec::ioctl;
    DRM_XE_WAIT_USER_FENCE: IOWR<drm_xe_wait_user_fence>, wait_user_fence::ioctl;
    DRM_XE_OBSERVATION: IOW<drm_xe_observation_param>, observation_ioctl;
    DRM_XE_MADVISE: IOW<drm_xe_madvise>, vm::madvise::ioctl;
    DRM_XE_VM_QUERY_MEM_RANGE_ATTRS: IOWR<drm_xe_vm_query_mem_range_attr>,
        vm::query_attrs::ioctl;
    DRM_XE_EXEC_QUEUE_SET_PROPERTY: IOW<drm_xe_exec_queue_set_property>,
        exec_queue_ioctl::set_property_ioctl;
    DRM_XE_VM_GET_PROPERTY: IOWR<drm_xe_vm_get_property>, vm::property::ioctl;
}

/// `DRM_IOCTL_XE_OBSERVATION`: there is nothing to observe.
///
/// Fails with `ENODEV` for what xe can observe, with `EINVAL` for what it cannot.
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
