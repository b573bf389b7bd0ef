// SPDX-License-Identifier: GPL-2.0

//! Debug messages of DRM drivers, shown when `drm.debug` asks for them.
//!
//! C header: [`include/drm/drm_print.h`](srctree/include/drm/drm_print.h)

use crate::{
    bindings,
    drm_device::DrmDevice, //
};
use kernel::{
    drm,
    fmt, //
};

/// Prints a message of category `DRM_UT_DRIVER`. Used by [`drm_dbg!`](crate::drm_dbg).
pub fn dbg<T: drm::Driver, C: drm::DeviceContext>(
    drm: &drm::Device<T, C>,
    args: fmt::Arguments<'_>,
) {
    // SAFETY: The device is valid, and a pointer to `Arguments` is what `%pA` takes.
    unsafe {
        bindings::drm_dbg(
            DrmDevice::of(drm).as_raw(),
            core::ptr::from_ref(&args).cast(),
        )
    }
}

/// `drm_dbg()` with Rust's formatting: a message that `drm.debug=0x2` shows.
#[macro_export]
macro_rules! drm_dbg {
    ($drm:expr, $($arg:tt)+) => {
        $crate::drm_print::dbg($drm, ::kernel::prelude::fmt!($($arg)+))
    };
}
