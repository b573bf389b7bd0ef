// SPDX-License-Identifier: GPL-2.0

//! Debug messages that dynamic debug turns on, as C has them and the kernel crate has not.
//!
//! The kernel crate's `pr_debug!` prints only in kernels built with Rust's debug assertions, and
//! then always. [`debug!`](crate::debug) is C's `pr_debug()`: silent until
//! `echo 'module gpusvm +p' > /proc/dynamic_debug/control` asks for it.
//!
//! C header: [`include/linux/dynamic_debug.h`](srctree/include/linux/dynamic_debug.h)

use crate::bindings;
use kernel::fmt;

/// Prints a message if dynamic debug asks for those of `gpusvm`. Used by [`debug!`](crate::debug).
pub fn debug(args: fmt::Arguments<'_>) {
    // SAFETY: A pointer to `Arguments` is what `%pA` takes.
    unsafe { bindings::debug(core::ptr::from_ref(&args).cast()) }
}

/// `pr_debug()` with Rust's formatting, under the control of dynamic debug. The line's end is added.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => {
        $crate::print::debug(::kernel::prelude::fmt!($($arg)+))
    };
}
