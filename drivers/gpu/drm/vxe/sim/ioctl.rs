// SPDX-License-Identifier: GPL-2.0

//! The table of a DRM driver's ioctls.
//!
//! `kernel::declare_drm_ioctls!` only supports the structures of `kernel::uapi`. [`drm_ioctls!`]
//! makes such a table for the structures of another uAPI, which implement [`IoctlArgument`]. The
//! handlers take references.
//!
//! [`drm_ioctls!`]: crate::drm_ioctls
//!
//! C header: [`include/drm/drm_ioctl.h`](srctree/include/drm/drm_ioctl.h)

use kernel::{
    drm::{
        self,
        file::DriverFile,
        ioctl::internal::{
            drm_device,
            drm_file, //
        }, //
    },
    error::from_result,
    prelude::*, //
};

/// An argument of an ioctl.
///
/// # Safety
///
/// Any bit pattern must be valid, and each byte initialised: the DRM core copies it in and out.
pub unsafe trait IoctlArgument {}

/// The handler of an ioctl of a driver whose files are `F`. Returns the result of the system call.
pub type Handler<F, A> =
    fn(&drm::Device<<F as DriverFile>::Driver, drm::Ioctl>, &drm::File<F>, &mut A) -> Result<u32>;

/// Calls the handler of an ioctl. Used by [`drm_ioctls!`](crate::drm_ioctls).
///
/// # Safety
///
/// The DRM core must call this as an ioctl of the driver whose files are `F`, with an argument of
/// the size of an `A`.
pub unsafe fn call<F: DriverFile, A: IoctlArgument>(
    dev: *mut drm_device,
    data: *mut c_void,
    file: *mut drm_file,
    handler: Handler<F, A>,
) -> c_int {
    // SAFETY: The DRM core keeps the device, which is this driver's and has been registered.
    let dev = unsafe { drm::Device::from_raw(dev) };
    // SAFETY: The core passes a buffer of at least the size of the argument, aligned for any type,
    // which only this ioctl uses; any bytes are an `A`, and every byte of it may be copied out.
    let args = unsafe { &mut *data.cast::<A>() };
    // SAFETY: The file is open, and of this driver.
    let file = unsafe { drm::File::<F>::from_raw(file) };
    from_result(|| Ok(handler(dev, file, args)? as c_int))
}

/// Defines the constant `IOCTLS`: the ioctls of the driver whose files are `$file`, by number from
/// `DRM_COMMAND_BASE`, each with its direction, argument and handler. `$uapi` is the module with
/// the numbers and arguments. `$enter` converts the device and the file to the first argument of
/// the handlers, or fails.
#[macro_export]
macro_rules! drm_ioctls {
    ($file:ty, $uapi:ident, $enter:path; $($nr:ident: $dir:ident<$args:ident>, $handler:path;)*) => {
        /// The driver's ioctls, by number from `DRM_COMMAND_BASE`.
        pub(crate) const IOCTLS: &[::kernel::drm::ioctl::DrmIoctlDescriptor] = {
            // The core uses the number of an ioctl as the index.
            const _: () = {
                let numbers = [$($uapi::$nr,)*];
                let mut i = 0;
                while i < numbers.len() {
                    assert!(numbers[i] == i as u32);
                    i += 1;
                }
            };
            &[$(
                ::kernel::drm::ioctl::DrmIoctlDescriptor {
                    cmd: ::kernel::drm::ioctl::$dir::<$uapi::$args>(
                        ::kernel::uapi::DRM_COMMAND_BASE + $uapi::$nr,
                    ),
                    func: {
                        /// # Safety
                        ///
                        /// To be called by the DRM core as this ioctl.
                        #[allow(non_snake_case)]
                        unsafe extern "C" fn $nr(
                            dev: *mut ::kernel::drm::ioctl::internal::drm_device,
                            data: *mut ::core::ffi::c_void,
                            file: *mut ::kernel::drm::ioctl::internal::drm_file,
                        ) -> ::kernel::ffi::c_int {
                            // SAFETY: The core calls this for `cmd`, which contains the size of the
                            // argument.
                            unsafe {
                                $crate::ioctl::call::<$file, $uapi::$args>(
                                    dev,
                                    data,
                                    file,
                                    |dev, file, args| $handler(&mut $enter(dev, file)?, args),
                                )
                            }
                        }
                        Some($nr)
                    },
                    flags: ::kernel::drm::ioctl::RENDER_ALLOW,
                    name: ::kernel::str::as_char_ptr_in_const_context(
                        ::kernel::c_str!(stringify!($nr)),
                    ),
                },
            )*]
        };
    };
}
