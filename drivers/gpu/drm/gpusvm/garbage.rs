// SPDX-License-Identifier: GPL-2.0

//! Ranges that the CPU unmapped, until the driver's garbage collector removes them.
//!
//! An invalidation cannot remove a range: the removal needs the driver's SVM lock, which is taken
//! before `mmap_lock` and the notifier lock, with which an invalidation runs. So the invalidation
//! adds the range to a list, and the next holder of the SVM lock removes the ranges on the list.
//!
//! # Locking
//!
//! A spinlock protects the list; no other lock is taken under it. Ranges are added under the
//! notifier lock, held for writing, and taken out under the driver's SVM lock, when they are
//! removed.

use core::ptr::NonNull;
use kernel::{
    interop::list::CListHead,
    prelude::*,
    sync::{static_lock_class, SpinLock}, //
};
use kernel_ext::{list, lock_name};

/// The list of ranges to remove. A range's `link` is in this list or in none.
#[pin_data]
pub(crate) struct Garbage {
    #[pin]
    lock: SpinLock<()>,
    #[pin]
    head: CListHead,
}

impl Garbage {
    // This function is not generic, so that the locks of all drivers share the lock class defined
    // here.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- SpinLock::new((), lock_name!(c"gpusvm.garbage"), static_lock_class!()),
            head <- CListHead::new(),
        })
    }

    /// Adds a range; returns false if it is in the list already.
    ///
    /// # Safety
    ///
    /// `link` must be part of a range, and stay where it is until it is [removed](Self::remove).
    pub(crate) unsafe fn add(&self, link: &CListHead) -> bool {
        let _lock = self.lock.lock();
        if link.is_linked() {
            return false;
        }
        // SAFETY: The spinlock is held, which protects all entries of the list and all links in no
        // list.
        unsafe { list::add_before(&self.head, link) };
        true
    }

    /// Takes a range out of the list, if it is in it.
    pub(crate) fn remove(&self, link: &CListHead) {
        let _lock = self.lock.lock();
        // SAFETY: The spinlock is held, which protects all entries of the list.
        unsafe { list::del(link) };
    }

    /// Returns the link of the first range.
    pub(crate) fn first(&self) -> Option<NonNull<CListHead>> {
        let _lock = self.lock.lock();
        self.head
            .is_linked()
            .then(|| NonNull::from(self.head.next()))
    }
}
