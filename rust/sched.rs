// SPDX-License-Identifier: GPL-2.0

//! Scheduling.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use crate::bindings;

/// Lets other tasks run if it is time: for loops that may go on for long. May sleep.
pub fn cond_resched() {
    // SAFETY: Has no requirements, but that the caller may sleep, which is its own affair: a debug
    // kernel warns if not.
    unsafe { bindings::cond_resched() }
}
