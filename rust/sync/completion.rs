// SPDX-License-Identifier: GPL-2.0

//! Waiting for a completion for a time, and unless the waiter is killed.
//!
//! The kernel crate's [`Completion`] waits without a time-out.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    bindings,
    prelude::*,
    sync::Completion,
    time::msecs_to_jiffies, //
};

// The C object is the only field, and as large as the whole, so that it is at the start.
static_assert!(size_of::<Completion>() == size_of::<bindings::completion>());

/// Waits until `completion` is completed, for `ms` milliseconds at the most. Sleeps.
/// C: `wait_for_completion_killable_timeout()`.
///
/// Fails with `ETIMEDOUT`, or with `EINTR` if the caller is killed.
pub fn wait_killable_timeout(completion: &Completion, ms: u32) -> Result {
    // CAST: See the assertion above.
    let raw: *mut bindings::completion = core::ptr::from_ref(completion).cast_mut().cast();
    // SAFETY: A `Completion` is initialized.
    let left = unsafe { bindings::wait_for_completion_killable_timeout(raw, msecs_to_jiffies(ms)) };
    match left {
        0 => Err(ETIMEDOUT),
        1.. => Ok(()),
        _ => Err(EINTR),
    }
}
