// SPDX-License-Identifier: GPL-2.0

//! Waiting for something that happens once, for a time, and unless one is killed.
//!
//! The kernel crate's completion waits without an end.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::bindings as ext;
use kernel::{
    bindings,
    prelude::*,
    time::msecs_to_jiffies,
    types::Opaque, //
};

/// Something that happens once, `struct completion`.
#[pin_data]
pub struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion may be used and freed by any thread.
unsafe impl Send for Completion {}
// SAFETY: The functions synchronise by themselves.
unsafe impl Sync for Completion {}

impl Completion {
    /// Something that has not happened.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The place is valid, and the object does not move.
            inner <- Opaque::ffi_init(|slot| unsafe { ext::init_completion(slot) }),
        })
    }

    /// It has happened: who waits goes on, and nobody waits any more. Any context.
    pub fn complete_all(&self) {
        // SAFETY: The object is initialized.
        unsafe { bindings::complete_all(self.inner.get()) }
    }

    /// Waits for `ms` milliseconds at the most. Sleeps.
    ///
    /// Fails with `ETIMEDOUT`, or with `EINTR` if the caller is killed.
    pub fn wait_killable(&self, ms: u32) -> Result {
        // SAFETY: The object is initialized.
        let left = unsafe {
            bindings::wait_for_completion_killable_timeout(self.inner.get(), msecs_to_jiffies(ms))
        };
        match left {
            0 => Err(ETIMEDOUT),
            1.. => Ok(()),
            _ => Err(EINTR),
        }
    }
}
