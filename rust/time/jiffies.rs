// SPDX-License-Identifier: GPL-2.0

//! Jiffies, the kernel's coarse clock.
//!
//! C header: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h)

/// Returns the current time in jiffies. It reads one word, while a precise clock may be a slow
/// device.
pub fn now() -> usize {
    // SAFETY: `jiffies` is always valid to read. The read is volatile, as the timer interrupt
    // changes it.
    unsafe { (&raw const kernel::bindings::jiffies).read_volatile() }
}

/// Returns the number of jiffies since `then`; both wrap around.
pub fn since(then: usize) -> usize {
    now().wrapping_sub(then)
}
