// SPDX-License-Identifier: GPL-2.0

//! MMU interval notifiers: being told when the CPU changes its mappings of a span.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use crate::bindings;
use core::ops::Range;
use kernel::{
    error::to_result,
    ffi::c_ulong,
    mm::MmWithUser,
    prelude::*,
    types::Opaque, //
};

/// What `invalidate` callbacks look like.
pub use kernel::bindings::mmu_interval_notifier_ops as Ops;

/// A `struct mmu_interval_notifier`.
#[repr(transparent)]
pub struct MmuIntervalNotifier(Opaque<kernel::bindings::mmu_interval_notifier>);

// SAFETY: The C functions on a notifier take care of concurrency themselves.
unsafe impl Send for MmuIntervalNotifier {}
// SAFETY: As above.
unsafe impl Sync for MmuIntervalNotifier {}

impl MmuIntervalNotifier {
    /// A notifier that is not inserted.
    pub const fn new() -> Self {
        Self(Opaque::zeroed())
    }

    /// The C object.
    pub fn as_raw(&self) -> *mut kernel::bindings::mmu_interval_notifier {
        self.0.get()
    }

    /// Begins to call `ops` for changes of `span` in `mm`, `mmu_interval_notifier_insert()`.
    ///
    /// May take the mmap lock. Fails with `ENOMEM`, or `EOVERFLOW` for an empty span.
    ///
    /// # Safety
    ///
    /// The notifier must be pinned, not inserted, and be removed before it is freed.
    pub unsafe fn insert(&self, mm: &MmWithUser, span: Range<usize>, ops: &'static Ops) -> Result {
        // SAFETY: By this function's requirements; `mm` has users.
        to_result(unsafe {
            kernel::bindings::mmu_interval_notifier_insert(
                self.as_raw(),
                mm.as_raw(),
                span.start as c_ulong,
                span.end.wrapping_sub(span.start) as c_ulong,
                ops,
            )
        })
    }

    /// Ends the calls and waits for those that run, `mmu_interval_notifier_remove()`.
    ///
    /// # Safety
    ///
    /// The notifier must be inserted, and the caller must hold no lock that its callback takes.
    pub unsafe fn remove(&self) {
        // SAFETY: By this function's requirements.
        unsafe { kernel::bindings::mmu_interval_notifier_remove(self.as_raw()) }
    }

    /// Begins a collision-retry read side, after waiting for an invalidation that runs.
    ///
    /// # Safety
    ///
    /// The notifier must be inserted.
    pub unsafe fn read_begin(&self) -> usize {
        // SAFETY: By this function's requirements.
        unsafe { kernel::bindings::mmu_interval_read_begin(self.as_raw()) as usize }
    }

    /// Whether an invalidation came after the [`read_begin`](Self::read_begin) that gave `seq`.
    /// The caller must hold the lock under which the callback sets the sequence.
    pub fn read_retry(&self, seq: usize) -> bool {
        // SAFETY: Reads one word of the notifier.
        unsafe { bindings::mmu_interval_read_retry(self.as_raw(), seq as c_ulong) }
    }
}

impl Default for MmuIntervalNotifier {
    fn default() -> Self {
        Self::new()
    }
}
