// SPDX-License-Identifier: GPL-2.0

//! Entries of doubly linked lists that C code may share.
//!
//! A Rust list of objects that it owns is `kernel::list::List`. A [`Link`] is for an object that has
//! C's layout, whose place in a list is a `struct list_head`.
//!
//! C header: [`include/linux/list.h`](srctree/include/linux/list.h)

use crate::bindings as ext;
use core::{cell::UnsafeCell, convert::Infallible, ptr::NonNull};
use kernel::{
    bindings::{self, list_head},
    prelude::*, //
};

/// An object's place in a list, or the head of a list: `struct list_head`.
///
/// # Invariants
///
/// Linked to itself, or in a circle of links.
#[repr(transparent)]
pub struct Link(UnsafeCell<list_head>);

// SAFETY: A link is changed only under what protects its list, or by its only owner.
unsafe impl Send for Link {}
// SAFETY: As above.
unsafe impl Sync for Link {}

impl Link {
    /// A link in no list, or the head of an empty list.
    pub fn new() -> impl PinInit<Self> {
        let init = |slot: *mut Self| {
            // SAFETY: `slot` is valid for writes, and stays where it is.
            unsafe { bindings::INIT_LIST_HEAD(slot.cast()) };
            Ok::<(), Infallible>(())
        };
        // SAFETY: The closure initializes the entry and cannot fail.
        unsafe { pin_init::pin_init_from_closure(init) }
    }

    /// The C object.
    pub fn as_raw(&self) -> *mut list_head {
        self.0.get()
    }

    /// Whether the link is in a list; of a head, whether its list has entries.
    ///
    /// # Safety
    ///
    /// The caller must hold what protects the list.
    pub unsafe fn is_linked(&self) -> bool {
        // SAFETY: Nobody changes the entry, by this function's requirements.
        unsafe { (*self.as_raw()).next != self.as_raw() }
    }

    /// Adds `entry` in front of this link: at the end of the list if this is its head.
    ///
    /// # Safety
    ///
    /// The caller must hold what protects the list. `entry` must be in no list, and stay where it is
    /// until it is unlinked.
    pub unsafe fn insert_before(&self, entry: &Link) {
        // SAFETY: By this function's requirements.
        unsafe { bindings::list_add_tail(entry.as_raw(), self.as_raw()) }
    }

    /// Takes the link out of its list; does nothing if it is in none.
    ///
    /// # Safety
    ///
    /// The caller must hold what protects the list.
    pub unsafe fn unlink(&self) {
        // SAFETY: By this function's requirements. An entry in no list is linked to itself, and
        // stays so.
        unsafe { ext::list_del_init(self.as_raw()) }
    }

    /// The link after this one; of the last, the head. Its own if it is in no list.
    ///
    /// # Safety
    ///
    /// The caller must hold what protects the list.
    pub unsafe fn next(&self) -> NonNull<Link> {
        // SAFETY: By this function's requirements; by the type invariants it is not null.
        unsafe { NonNull::new_unchecked((*self.as_raw()).next.cast()) }
    }
}
