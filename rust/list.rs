// SPDX-License-Identifier: GPL-2.0

//! Operations on doubly linked lists whose entries have C's layout.
//!
//! `kernel::list::List` is a list of objects that it owns. [`CListHead`] is for an object with the
//! layout of a C structure that embeds a `struct list_head`; the kernel crate supports only reading
//! such lists.
//!
//! C header: [`include/linux/list.h`](srctree/include/linux/list.h)

pub mod llist;

use crate::bindings as ext;
use kernel::{
    bindings,
    interop::list::CListHead, //
};

/// Adds `entry` in front of `place`: at the end of the list if `place` is its head. C:
/// `list_add_tail()`.
///
/// # Safety
///
/// The caller must hold the lock that protects the list. `entry` must not be in a list, and must
/// not move until it is [removed](del).
pub unsafe fn add_before(place: &CListHead, entry: &CListHead) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::list_add_tail(entry.as_raw(), place.as_raw()) }
}

/// Adds `entry` behind `place`: at the start of the list if `place` is its head. C: `list_add()`.
///
/// # Safety
///
/// As for [`add_before`].
pub unsafe fn add_behind(place: &CListHead, entry: &CListHead) {
    // SAFETY: By this function's requirements; the neighbour of a list's entry is in the same list.
    unsafe { add_before(place.next(), entry) }
}

/// Removes `entry` from its list; does nothing if it is not in a list. C: `list_del_init()`.
///
/// # Safety
///
/// The caller must hold the lock that protects the list.
pub unsafe fn del(entry: &CListHead) {
    // SAFETY: By this function's requirements. An entry that is in no list is linked to itself.
    unsafe { ext::list_del_init(entry.as_raw()) }
}
