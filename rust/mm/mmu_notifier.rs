// SPDX-License-Identifier: GPL-2.0

//! MMU interval notifiers: callbacks for changes of the CPU's mappings of a span.
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

/// What the first pass returns to have the second one called. It belongs to the caller of the
/// notifier from then on, until the second pass is called with it.
pub use kernel::bindings::mmu_interval_notifier_finish as Finish;
/// The operations of a notifier: the callback `invalidate`, or the callbacks `invalidate_start` and
/// `invalidate_finish` of a notifier that works in two passes. A change of the CPU's mappings that
/// concerns several notifiers calls the first pass of all of them, then the second.
pub use kernel::bindings::mmu_interval_notifier_ops as Ops;

/// A `struct mmu_interval_notifier`.
#[repr(transparent)]
pub struct MmuIntervalNotifier(Opaque<kernel::bindings::mmu_interval_notifier>);

// SAFETY: The C functions for notifiers synchronise by themselves.
unsafe impl Send for MmuIntervalNotifier {}
// SAFETY: As above.
unsafe impl Sync for MmuIntervalNotifier {}

impl MmuIntervalNotifier {
    /// Returns a notifier that is not inserted.
    pub const fn new() -> Self {
        Self(Opaque::zeroed())
    }

    /// Returns the C object.
    pub fn as_raw(&self) -> *mut kernel::bindings::mmu_interval_notifier {
        self.0.get()
    }

    /// Inserts the notifier, so that `ops` is called for changes of `span` in `mm`. C:
    /// `mmu_interval_notifier_insert()`.
    ///
    /// Takes `mmap_lock` for the first notifier of `mm`. Fails with `EINTR` if the calling thread is
    /// killed meanwhile, or has a signal pending; with `ENOMEM`; and with `EOVERFLOW` for an empty
    /// span.
    ///
    /// # Safety
    ///
    /// The notifier must be pinned, must not be inserted, and must be removed before it is freed.
    pub unsafe fn insert(&self, mm: &MmWithUser, span: Range<usize>, ops: &'static Ops) -> Result {
        // SAFETY: `mm` has users.
        to_result(unsafe { bindings::mmu_interval_notifiers_init(mm.as_raw()) })?;
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

    /// Removes the notifier, and waits for callbacks that run. C: `mmu_interval_notifier_remove()`.
    ///
    /// # Safety
    ///
    /// The notifier must be inserted, and the caller must hold no lock that its callback takes.
    pub unsafe fn remove(&self) {
        // SAFETY: By this function's requirements.
        unsafe { kernel::bindings::mmu_interval_notifier_remove(self.as_raw()) }
    }

    /// Begins a collision-retry read side, after waiting for an invalidation that runs. C:
    /// `mmu_interval_read_begin()`.
    ///
    /// # Safety
    ///
    /// The notifier must be inserted.
    pub unsafe fn read_begin(&self) -> usize {
        // SAFETY: By this function's requirements.
        unsafe { kernel::bindings::mmu_interval_read_begin(self.as_raw()) as usize }
    }

    /// Returns the sequence number, without waiting for an invalidation that runs. The caller must
    /// hold the lock under which the callback sets it.
    #[inline]
    pub fn seq(&self) -> usize {
        // SAFETY: The field is valid from the creation of the notifier; the C functions change it
        // by `WRITE_ONCE()` only.
        unsafe { (&raw const (*self.as_raw()).invalidate_seq).read_volatile() }
    }

    /// Returns whether an invalidation began after the [`read_begin`](Self::read_begin) that
    /// returned `seq`. The caller must hold the lock under which the callback sets the sequence
    /// number.
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
