// SPDX-License-Identifier: GPL-2.0

//! Debug messages under the control of dynamic debug, which the kernel crate lacks.
//!
//! The kernel crate's `pr_debug!` prints only in kernels built with Rust's debug assertions, and
//! then always. [`debug!`](crate::debug) is C's `pr_debug()`: it prints nothing until it is enabled
//! by `echo 'module gpusvm +p' > /proc/dynamic_debug/control`.
//!
//! C header: [`include/linux/dynamic_debug.h`](srctree/include/linux/dynamic_debug.h)

use crate::bindings;
use kernel::fmt;

/// Prints a message if dynamic debug is enabled for `gpusvm`. [`debug!`](crate::debug) calls it.
pub fn debug(args: fmt::Arguments<'_>) {
    // SAFETY: `%pA` takes a pointer to `Arguments`.
    unsafe { bindings::debug(core::ptr::from_ref(&args).cast()) }
}

/// C's `pr_debug()` with Rust's formatting. Adds the newline.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => {
        $crate::print::debug(::kernel::prelude::fmt!($($arg)+))
    };
}
