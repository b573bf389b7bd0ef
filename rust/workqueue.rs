// SPDX-License-Identifier: GPL-2.0

//! A work queue that a driver owns.
//!
//! The kernel crate reaches the system queues only, and those cannot be waited for: work that runs a
//! module's code must be on a queue that the module empties before it goes.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*,
    workqueue::Queue, //
};

/// The most work items of one queue that may run, or sleep while running, at once.
pub const MAX_ACTIVE: i32 = bindings::wq_consts_WQ_MAX_ACTIVE as i32;

/// A work queue of one's own, `struct workqueue_struct`.
///
/// Dropping it waits for all of its work, so it must not be dropped from work that runs on it.
///
/// # Invariants
///
/// The pointer is a work queue made by `alloc_workqueue()`, and this is its only owner.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue may be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: The work queue functions synchronise by themselves.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue whose work runs on any CPU, up to [`MAX_ACTIVE`] items at a time.
    ///
    /// Each item that sleeps occupies one of these; the kernel adds worker threads as needed.
    /// Fails with `ENOMEM`.
    pub fn new_unbound(name: &CStr) -> Result<Self> {
        // SAFETY: The format takes one C string, which `name` is; it is copied.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                MAX_ACTIVE,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Just made, and handed to nobody else.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    /// Waits until the queue is empty, work that its own work enqueues included.
    ///
    /// Nothing else may enqueue meanwhile: such work is refused with a warning. Sleeps.
    pub fn drain(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) }
    }

    /// Waits for the work that is on the queue now. Sleeps.
    pub fn flush(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant it is a work queue, which lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; nobody can enqueue any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}
