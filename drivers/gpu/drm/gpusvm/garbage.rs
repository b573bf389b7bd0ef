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

use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{
    bindings::list_head,
    prelude::*,
    sync::{static_lock_class, SpinLock}, //
};
use kernel_ext::lock_name;

/// A range's place in the list.
///
/// # Invariants
///
/// A list entry, linked to itself or in a [`Garbage`] list.
#[repr(transparent)]
pub(crate) struct Link(UnsafeCell<list_head>);

// SAFETY: A link is changed only with the spinlock of its list held, or by its only owner.
unsafe impl Send for Link {}
// SAFETY: As above.
unsafe impl Sync for Link {}

impl Link {
    pub(crate) fn new() -> impl PinInit<Self> {
        let init = |slot: *mut Self| {
            let entry = slot.cast::<list_head>();
            // SAFETY: `slot` is valid for writes, and stays where it is.
            unsafe {
                (*entry).next = entry;
                (*entry).prev = entry;
            }
            Ok::<(), core::convert::Infallible>(())
        };
        // SAFETY: The closure initializes the entry and cannot fail.
        unsafe { pin_init::pin_init_from_closure(init) }
    }
}

/// The list.
#[pin_data]
pub(crate) struct Garbage {
    #[pin]
    lock: SpinLock<()>,
    #[pin]
    head: Link,
}

impl Garbage {
    // Not generic, so that all drivers' locks are of the one class that is defined here.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lock <- SpinLock::new((), lock_name!(c"gpusvm.garbage"), static_lock_class!()),
            head <- Link::new(),
        })
    }

    /// Adds a range; false if it is in the list already.
    pub(crate) fn add(&self, link: &Link) -> bool {
        let _lock = self.lock.lock();
        let (head, entry) = (self.head.0.get(), link.0.get());
        // SAFETY: The spinlock protects all entries of the list, and those that are in none.
        unsafe {
            if (*entry).next != entry {
                return false;
            }
            let last = (*head).prev;
            (*entry).next = head;
            (*entry).prev = last;
            (*last).next = entry;
            (*head).prev = entry;
        }
        true
    }

    /// Takes a range out, if it is in the list.
    pub(crate) fn remove(&self, link: &Link) {
        let _lock = self.lock.lock();
        let entry = link.0.get();
        // SAFETY: The spinlock protects all entries of the list; an entry in no list is linked to
        // itself, and stays so.
        unsafe {
            (*(*entry).prev).next = (*entry).next;
            (*(*entry).next).prev = (*entry).prev;
            (*entry).next = entry;
            (*entry).prev = entry;
        }
    }

    /// The first range's link.
    pub(crate) fn first(&self) -> Option<NonNull<Link>> {
        let _lock = self.lock.lock();
        let head = self.head.0.get();
        // SAFETY: The spinlock protects the list.
        let next = unsafe { (*head).next };
        NonNull::new(next)
            .filter(|_| next != head)
            .map(NonNull::cast)
    }
}
