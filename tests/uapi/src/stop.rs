// SPDX-License-Identifier: GPL-2.0

//! Tells the other threads of a scope to stop, even if the thread that tells them panics: a scope
//! waits for all of its threads.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether threads are to stop.
pub struct Stop(AtomicBool);

impl Stop {
    #[expect(clippy::new_without_default, reason = "a flag that is not set is no default")]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sets it when the result is dropped.
    #[must_use = "it is set at once if the result is not kept"]
    pub fn on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(self)
    }
}

/// Sets a [`Stop`] when it is dropped.
pub struct StopOnDrop<'a>(&'a Stop);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0 .0.store(true, Ordering::Release);
    }
}
