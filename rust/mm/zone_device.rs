// SPDX-License-Identifier: GPL-2.0

//! Pages of a device's own memory that the CPU cannot reach, in the kernel's memory management.
//!
//! Such a *device-private* page has a `struct page` and belongs to a folio like any other; what the
//! CPU's page tables have in its place is an entry of a kind that faults. Each folio in use carries
//! one word of whoever manages it, [`data`].
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

use crate::bindings;
use core::{ffi::c_void, ptr::NonNull};
use kernel::bindings::{dev_pagemap, page};

/// Log2 of the number of pages of the one large folio that the page tables map as a whole.
pub const HUGE_ORDER: u32 = bindings::KEXT_HPAGE_PMD_ORDER;

/// The number of pages of such a folio.
pub const HUGE_PAGES: usize = 1 << HUGE_ORDER;

/// The page of a frame.
///
/// # Safety
///
/// The frame must have a page: it is RAM, or of a [`DevPagemap`](crate::mm::memremap::DevPagemap).
pub unsafe fn page_of(frame: usize) -> NonNull<page> {
    // SAFETY: By this function's requirements the page is there, so that its address is not null.
    unsafe { NonNull::new_unchecked(bindings::pfn_to_page(frame)) }
}

/// The frame of a page.
///
/// # Safety
///
/// `page` must be a page.
pub unsafe fn frame_of(page: NonNull<page>) -> usize {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_to_pfn(page.as_ptr()) }
}

/// Log2 of the number of pages of the folio that the page belongs to.
///
/// # Safety
///
/// The caller must hold a reference to the page, or know otherwise that its folio stays.
pub unsafe fn order_of(page: NonNull<page>) -> u32 {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_folio_order(page.as_ptr()) }
}

/// Whether two pages are of the same folio.
///
/// # Safety
///
/// As for [`order_of`], of both.
pub unsafe fn is_same_folio(one: NonNull<page>, other: NonNull<page>) -> bool {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_folio_pfn(one.as_ptr()) == bindings::page_folio_pfn(other.as_ptr()) }
}

/// Whether the page is the first of its folio.
///
/// # Safety
///
/// As for [`order_of`].
pub unsafe fn is_first(page: NonNull<page>) -> bool {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_folio_pfn(page.as_ptr()) == frame_of(page) }
}

/// Whether the page is a device's, and not one that the CPU can reach.
///
/// # Safety
///
/// As for [`order_of`].
pub unsafe fn is_device_private(page: NonNull<page>) -> bool {
    // SAFETY: By this function's requirements.
    unsafe { bindings::is_device_private_page(page.as_ptr()) }
}

/// Whose memory the page is; null for memory that is no device's.
///
/// # Safety
///
/// As for [`order_of`].
pub unsafe fn pagemap_of(page: NonNull<page>) -> *mut dev_pagemap {
    // SAFETY: By this function's requirements.
    unsafe { bindings::device_page_pgmap(page.as_ptr()) }
}

/// The word of a device-private page's folio.
///
/// # Safety
///
/// As for [`order_of`]; the page must be device-private.
pub unsafe fn data(page: NonNull<page>) -> *mut c_void {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_zone_device_data(page.as_ptr()) }
}

/// Sets the word of a device-private page's folio.
///
/// # Safety
///
/// As for [`data`]; the caller must hold the folio's lock, or the folio be known to nobody else.
pub unsafe fn set_data(page: NonNull<page>, data: *mut c_void) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_set_zone_device_data(page.as_ptr(), data) }
}

/// Locks the folio of a page. Sleeps.
///
/// # Safety
///
/// The caller must hold a reference to the page, and not the lock.
pub unsafe fn lock(page: NonNull<page>) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_folio_lock(page.as_ptr()) }
}

/// Unlocks the folio of a page.
///
/// # Safety
///
/// The caller must hold a reference to the page, and the lock of its folio.
pub unsafe fn unlock(page: NonNull<page>) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_folio_unlock(page.as_ptr()) }
}
