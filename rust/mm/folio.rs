// SPDX-License-Identifier: GPL-2.0

//! New folios, the destinations of migrations.
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

/// A new folio that is locked and not mapped anywhere. Dropping it unlocks and frees it.
///
/// # Invariants
///
/// `page` is the first of a folio of order `order`. The object owns the folio's lock and one reference.
#[must_use = "a folio that is dropped is freed"]
pub struct LockedFolio {
    page: NonNull<page>,
    order: u32,
}

/// The memory policy by which a folio is allocated.
#[derive(Clone, Copy)]
pub enum MemPolicy<'a> {
    /// That of the VMA at this address.
    Vma(&'a VmaRef, usize),
    /// None: the policy of the calling thread.
    Default,
}

impl LockedFolio {
    /// Allocates a movable folio of RAM with `1 << order` pages, whose contents are undefined. Sleeps, may
    /// reclaim. Returns none if there is no memory.
    ///
    /// The allocation of a large folio gives up early, but retries reclaim without a VMA, where the caller cannot fall
    /// back to small folios. The allocation of a single page invokes the OOM killer, except in a kernel thread: that
    /// thread retries reclaim and then gives up, as it cannot be killed while the allocation loops. Allocations that
    /// may fail do not warn in the log, as a process could trigger such warnings at any rate.
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
        // SAFETY: `vma` is null, or comes from a reference.
        let page = unsafe { bindings::ram_folio_alloc(gfp, order, vma, addr) };
        // INVARIANT: `ram_folio_alloc()` returns a locked folio with one reference.
        NonNull::new(page).map(|page| Self { page, order })
    }

    /// Initializes a folio of device-private memory with `1 << order` pages from `frame` on, with the private data
    /// `data`.
    ///
    /// # Safety
    ///
    /// The frames must be of `pagemap` and free, and no other thread may allocate them; `frame` must be a multiple
    /// of the folio's size. `data` must be what the `folio_free()` operation of `pagemap` expects.
    pub unsafe fn device(
        pagemap: *mut dev_pagemap,
        frame: usize,
        order: u32,
        data: *mut c_void,
    ) -> Self {
        // SAFETY: The caller guarantees that the frames are of `pagemap` and free.
        let page = unsafe {
            let page = zone_device::page_of(frame);
            bindings::zone_device_folio_init(page.as_ptr(), pagemap, order);
            zone_device::set_data(page, data);
            page
        };
        // INVARIANT: `zone_device_folio_init()` makes the folio locked, with one reference.
        Self { page, order }
    }

    /// Returns the first page.
    pub fn page(&self) -> NonNull<page> {
        self.page
    }

    /// Returns log2 of the number of pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Returns the first page and hands the folio, locked, to the caller.
    pub fn into_page(self) -> NonNull<page> {
        let page = self.page;
        mem::forget(self);
        page
    }

    /// Takes back a folio from [`into_page`](Self::into_page).
    ///
    /// # Safety
    ///
    /// The folio must still be locked and not mapped anywhere, and the caller must own its lock and reference.
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
