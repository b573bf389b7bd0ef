// SPDX-License-Identifier: GPL-2.0

//! The mmap lock of an address space, taken by threads that can be killed.
//!
//! A thread of the process may hold the lock as long as userspace wants: a page fault on a file of a FUSE server holds
//! it when the fault is repeated. [`MmWithUser::mmap_read_lock`] does not end when the waiting thread is killed.
//!
//! C header: [`include/linux/mmap_lock.h`](srctree/include/linux/mmap_lock.h)

use crate::bindings;
use kernel::{
    error::to_result,
    mm::{virt::VmaRef, MmWithUser},
    prelude::*,
    types::NotThreadSafe, //
};

/// The mmap lock, held for reading until this is dropped.
///
/// # Invariants
///
/// This thread holds the mmap lock of `mm` for reading.
#[must_use = "the lock is released when the guard is dropped"]
pub struct MmapReadGuard<'a> {
    mm: &'a MmWithUser,
    _nts: NotThreadSafe,
}

impl<'a> MmapReadGuard<'a> {
    /// Takes the lock. Fails with `EINTR` if the calling thread is killed while it waits. C:
    /// `mmap_read_lock_killable()`.
    pub fn lock_killable(mm: &'a MmWithUser) -> Result<Self> {
        // SAFETY: `mm` is valid.
        to_result(unsafe { bindings::mmap_read_lock_killable(mm.as_raw()) })?;
        // INVARIANT: `mmap_read_lock_killable()` succeeded.
        Ok(Self {
            mm,
            _nts: NotThreadSafe,
        })
    }

    /// Returns the VMA that includes `addr`. C: `vma_lookup()`.
    pub fn vma_lookup(&self, addr: usize) -> Option<&VmaRef> {
        // SAFETY: The mmap lock is held, and the VMA is valid as long as it is.
        unsafe {
            let vma = kernel::bindings::vma_lookup(self.mm.as_raw(), addr);
            vma.as_ref().map(|_| VmaRef::from_raw(vma))
        }
    }
}

impl Drop for MmapReadGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mmap_read_unlock(self.mm.as_raw()) }
    }
}
