// SPDX-License-Identifier: GPL-2.0

//! Changing doubly linked lists whose entries have C's layout.
//!
//! A Rust list of objects that it owns is `kernel::list::List`. [`CListHead`] is for an object that has
//! the layout of a C structure, whose place in a list is a `struct list_head`; the kernel crate reads such
//! lists only.
//!
//! C header: [`include/linux/list.h`](srctree/include/linux/list.h)

pub mod llist;

use crate::bindings as ext;
use kernel::{
    bindings,
    interop::list::CListHead, //
};

/// Adds `entry` in front of `place`: at the end of the list if that is its head. C: `list_add_tail()`.
///
/// # Safety
///
/// The caller must hold what protects the list. `entry` must be in no list, and stay where it is until it
/// is [removed](del).
pub unsafe fn add_before(place: &CListHead, entry: &CListHead) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::list_add_tail(entry.as_raw(), place.as_raw()) }
}

/// Adds `entry` behind `place`: at the start of the list if that is its head. C: `list_add()`.
///
/// # Safety
///
/// As for [`add_before`].
pub unsafe fn add_behind(place: &CListHead, entry: &CListHead) {
    // SAFETY: By this function's requirements; what is next to a list's entry is in the list.
    unsafe { add_before(place.next(), entry) }
}

/// Takes `entry` out of its list; does nothing if it is in none. C: `list_del_init()`.
///
/// # Safety
///
/// The caller must hold what protects the list.
pub unsafe fn del(entry: &CListHead) {
    // SAFETY: By this function's requirements. An entry in no list is linked to itself, and stays so.
    unsafe { ext::list_del_init(entry.as_raw()) }
}
