// SPDX-License-Identifier: GPL-2.0

//! Messages of the driver: debug messages that `drm.debug` enables, and rate-limited errors.
//!
//! C headers: [`include/drm/drm_print.h`](srctree/include/drm/drm_print.h),
//! [`include/linux/dev_printk.h`](srctree/include/linux/dev_printk.h)

use crate::bindings;
use kernel::{
    device::Device,
    drm,
    fmt, //
};
use kernel_ext::drm::device::DrmDevice;

/// Prints a message of category `DRM_UT_DRIVER`. Used by [`drm_dbg!`](crate::drm_dbg).
pub fn dbg<T: drm::Driver, C: drm::DeviceContext>(
    drm: &drm::Device<T, C>,
    args: fmt::Arguments<'_>,
) {
    // SAFETY: The device is valid, and `%pA` takes a pointer to `Arguments`.
    unsafe {
        bindings::drm_dbg(
            DrmDevice::of(drm).as_raw(),
            core::ptr::from_ref(&args).cast(),
        )
    }
}

/// Prints an error of a device, at most ten in five seconds over all callers. Appends a newline. C:
/// `dev_err_ratelimited()`.
pub fn dev_err_ratelimited(dev: &Device, args: fmt::Arguments<'_>) {
    let dev: *const Device = dev;
    // SAFETY: `Device` is a transparent wrapper of `struct device`, and its own accessor is private
    // to the kernel crate; `%pA` takes a pointer to `Arguments`.
    unsafe { bindings::dev_err_ratelimited(dev.cast(), core::ptr::from_ref(&args).cast()) }
}

/// `drm_dbg()` with Rust's formatting: a message that `drm.debug=0x2` enables.
#[macro_export]
macro_rules! drm_dbg {
    ($drm:expr, $($arg:tt)+) => {
        $crate::print::dbg($drm, ::kernel::prelude::fmt!($($arg)+))
    };
}
