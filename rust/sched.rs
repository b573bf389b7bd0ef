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

/// Sleeps for so many jiffies, or until the thread is killed.
pub fn sleep_killable(jiffies: usize) {
    // CAST: Longer than this is for ever.
    let jiffies = jiffies.min(isize::MAX as usize) as isize;
    // SAFETY: Has no requirements, but that the caller may sleep.
    unsafe { kernel::bindings::schedule_timeout_killable(jiffies) };
}
