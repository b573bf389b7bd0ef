// SPDX-License-Identifier: GPL-2.0

//! The kernel's coarse clock.
//!
//! C header: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h)

/// The current time in jiffies: a read of one word, where a fine clock may be a slow device.
pub fn now() -> usize {
    // SAFETY: `jiffies` is always valid to read; the read is volatile, as the timer interrupt
    // changes it.
    unsafe { (&raw const kernel::bindings::jiffies).read_volatile() }
}

/// How many jiffies passed since `then`, which wraps around as the clock does.
pub fn since(then: usize) -> usize {
    now().wrapping_sub(then)
}
