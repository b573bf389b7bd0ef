// SPDX-License-Identifier: GPL-2.0

//! Ranges that the CPU unmapped, waiting to be removed.
//!
//! An invalidation cannot remove a range: removal needs the driver's SVM lock, which is taken
//! outside of all that an invalidation runs in. So it adds the range to a list, which whoever has
//! the SVM lock next empties.
//!
//! # Locking
//!
//! The list has a spinlock of its own, which is a leaf. Ranges are added under the notifier lock,
//! held for writing, and taken out under the driver's SVM lock, before their removal.

use core::ptr::NonNull;
use kernel::{
    interop::list::CListHead,
    prelude::*,
    sync::{static_lock_class, SpinLock}, //
};
use kernel_ext::{list, lock_name};

/// The list. A range's place in it is a [`CListHead`] of its own, which is in this list or in none.
#[pin_data]
pub(crate) struct Garbage {
    #[pin]
    lock: SpinLock<()>,
    #[pin]
    head: CListHead,
}

impl Garbage {
    // Not generic, so that all drivers' locks are of the one class that is defined here.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- SpinLock::new((), lock_name!(c"gpusvm.garbage"), static_lock_class!()),
            head <- CListHead::new(),
        })
    }

    /// Adds a range; false if it is in the list already.
    ///
    /// # Safety
    ///
    /// `link` must be that of a range, and stay where it is until it is [removed](Self::remove).
    pub(crate) unsafe fn add(&self, link: &CListHead) -> bool {
        let _lock = self.lock.lock();
        if link.is_linked() {
            return false;
        }
        // SAFETY: The spinlock protects all entries of the list, and those that are in none.
        unsafe { list::add_before(&self.head, link) };
        true
    }

    /// Takes a range out, if it is in the list.
    pub(crate) fn remove(&self, link: &CListHead) {
        let _lock = self.lock.lock();
        // SAFETY: The spinlock protects all entries of the list.
        unsafe { list::del(link) };
    }

    /// The first range's link.
    pub(crate) fn first(&self) -> Option<NonNull<CListHead>> {
        let _lock = self.lock.lock();
        self.head
            .is_linked()
            .then(|| NonNull::from(self.head.next()))
    }
}
