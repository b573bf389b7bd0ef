// SPDX-License-Identifier: GPL-2.0

//! Waiting for a completion, with a time-out and for a kill.
//!
//! The kernel crate's [`Completion`] has no wait with a time-out.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    bindings,
    prelude::*,
    sync::Completion,
    time::msecs_to_jiffies, //
};

// The C object is the only field, and has the size of the whole, so that its offset is 0.
static_assert!(size_of::<Completion>() == size_of::<bindings::completion>());

/// Waits until `completion` is completed, for at most `ms` milliseconds. Sleeps. C:
/// `wait_for_completion_killable_timeout()`.
///
/// Fails with `ETIMEDOUT`, or with `EINTR` if the calling thread is killed.
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
