// SPDX-License-Identifier: GPL-2.0

//! New folios, to be migrated to.
//!
//! C headers: [`include/linux/gfp.h`](srctree/include/linux/gfp.h),
//! [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

use crate::{
    bindings,
    mm::zone_device,
    sched, //
};
use core::{
    ffi::c_void,
    mem,
    ptr::{self, NonNull},
};
use kernel::{
    bindings::{dev_pagemap, page},
    mm::virt::VmaRef, //
};

/// A folio that is locked, and known to nobody else. Dropped, it is unlocked and given back.
///
/// # Invariants
///
/// The page is the first of a folio of this order, whose lock and one reference are owned.
#[must_use = "a folio that is dropped is given back"]
pub struct LockedFolio {
    page: NonNull<page>,
    order: u32,
}

/// Where memory for a folio is to be had.
#[derive(Clone, Copy)]
pub enum MemPolicy<'a> {
    /// Where the policy of the process wants it, at this address of the VMA.
    Vma(&'a VmaRef, usize),
    /// Anywhere.
    Default,
}

impl LockedFolio {
    /// A folio of RAM with `1 << order` pages, movable, its contents undefined. Sleeps, may
    /// reclaim. None when there is no memory.
    ///
    /// A large folio is only tried for, but harder where there is no process, and so nobody who has a
    /// use for small ones. A small one is had, or the OOM killer makes room for it, unless a kernel thread
    /// asks: that reclaims what it can and then gives up, as nobody could kill it while it tries for ever.
    /// What may not be had is not reported: a process can have that happen as often as it likes.
    pub fn ram(place: MemPolicy<'_>, order: u32) -> Option<Self> {
        let mut gfp = bindings::KEXT_GFP_HIGHUSER_MOVABLE;
        let (vma, addr) = match place {
            MemPolicy::Vma(vma, addr) => (vma.as_ptr(), addr),
            MemPolicy::Default => (ptr::null_mut(), 0),
        };
        let is_optional = order == 0 && sched::is_kernel_thread();
        if is_optional || (order != 0 && vma.is_null()) {
            gfp |= bindings::KEXT_GFP_RETRY_MAYFAIL;
        }
        if is_optional || order != 0 {
            gfp |= bindings::KEXT_GFP_NOWARN;
        }
        // SAFETY: A VMA is null or valid, as a reference to it exists.
        let page = unsafe { bindings::ram_folio_alloc(gfp, order, vma, addr) };
        // INVARIANT: The folio is new and was locked.
        NonNull::new(page).map(|page| Self { page, order })
    }

    /// A folio of device-private memory with `1 << order` pages from `frame` on. Its word is
    /// `data`.
    ///
    /// # Safety
    ///
    /// The frames must be of `pagemap`, free, and handed to nobody else; `frame` must be a multiple
    /// of the folio's size. What frees folios of `pagemap` takes `data` to be its own.
    pub unsafe fn device(
        pagemap: *mut dev_pagemap,
        frame: usize,
        order: u32,
        data: *mut c_void,
    ) -> Self {
        // SAFETY: The frames are of a pagemap and free.
        let page = unsafe {
            let page = zone_device::page_of(frame);
            bindings::zone_device_folio_init(page.as_ptr(), pagemap, order);
            zone_device::set_data(page, data);
            page
        };
        // INVARIANT: The folio was made locked, with one reference.
        Self { page, order }
    }

    /// The first page.
    pub fn page(&self) -> NonNull<page> {
        self.page
    }

    /// Log2 of the number of pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Hands the folio over, locked.
    pub fn into_page(self) -> NonNull<page> {
        let page = self.page;
        mem::forget(self);
        page
    }

    /// Takes a folio back that [`into_page`](Self::into_page) gave away.
    ///
    /// # Safety
    ///
    /// It must still be locked, and known to nobody else.
    pub unsafe fn from_page(page: NonNull<page>) -> Self {
        Self {
            page,
            // SAFETY: By this function's requirements.
            order: unsafe { zone_device::order_of(page) },
        }
    }
}

impl Drop for LockedFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::page_folio_unlock_put(self.page.as_ptr()) }
    }
}
