// SPDX-License-Identifier: GPL-2.0

//! Messages as C has them and the kernel crate has not: debug messages that dynamic debug turns on, and
//! errors that do not flood the log.
//!
//! The kernel crate's `pr_debug!` prints only in kernels built with Rust's debug assertions, and
//! then always. [`debug!`](crate::debug) is C's `pr_debug()`: silent until
//! `echo 'module gpusvm +p' > /proc/dynamic_debug/control` asks for it.
//!
//! C headers: [`include/linux/dynamic_debug.h`](srctree/include/linux/dynamic_debug.h),
//! [`include/linux/dev_printk.h`](srctree/include/linux/dev_printk.h)

use crate::bindings;
use kernel::{
    device::Device,
    fmt, //
};

/// Prints a message if dynamic debug asks for those of `gpusvm`. Used by [`debug!`](crate::debug).
pub fn debug(args: fmt::Arguments<'_>) {
    // SAFETY: A pointer to `Arguments` is what `%pA` takes.
    unsafe { bindings::debug(core::ptr::from_ref(&args).cast()) }
}

/// Prints an error of a device, unless ten were printed within five seconds. The line's end is added.
///
/// All callers share the limit. C: `dev_err_ratelimited()`.
pub fn dev_err_ratelimited(dev: &Device, args: fmt::Arguments<'_>) {
    let dev: *const Device = dev;
    // SAFETY: `Device` is a transparent wrapper of `struct device`, whose own accessor is private to the
    // kernel crate; a pointer to `Arguments` is what `%pA` takes.
    unsafe { bindings::dev_err_ratelimited(dev.cast(), core::ptr::from_ref(&args).cast()) }
}

/// `pr_debug()` with Rust's formatting, under the control of dynamic debug. The line's end is added.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => {
        $crate::print::debug(::kernel::prelude::fmt!($($arg)+))
    };
}
