// SPDX-License-Identifier: GPL-2.0

//! The zone-device data of device-private folios.
//!
//! All folios that one migration fills share one [`Zdd`]. The last of them that is freed, in whatever context, drops
//! it; then the block's `devmem_release` passes the folios' reference to the provider.
//!
//! The lowest bit of a folio's zone-device data says that the contents were migrated to system memory. Such a *retired*
//! folio waits for its last reference to be dropped, and must not be migrated again. No page table maps it; only
//! eviction, which collects by frames, still finds it.
//!
//! C: `struct drm_pagemap_zdd`.

use super::{
    devmem::Devmem,
    drm_pagemap::{Pagemap, PagemapRef}, //
    fault,
};
use core::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    bindings::page,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        UniqueArc, //
    }, //
};
use kernel_ext::mm::zone_device;

const RETIRED: usize = 1;

/// The block and the pagemap of the device-private folios of one migration.
///
/// # Invariants
///
/// `devmem` is valid, and this object owns one reference to it.
pub(crate) struct Zdd {
    devmem: NonNull<Devmem>,
    pagemap: PagemapRef,
}

// SAFETY: Any thread may use and release a block and a pagemap.
unsafe impl Send for Zdd {}
// SAFETY: As above.
unsafe impl Sync for Zdd {}

// Pointers to a `Zdd` leave the bit clear.
static_assert!(core::mem::align_of::<Zdd>() > RETIRED);

impl Zdd {
    /// Allocates memory for a `Zdd`. Fails with `ENOMEM`.
    pub(crate) fn reserve() -> Result<UniqueArc<MaybeUninit<Self>>> {
        Ok(UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?)
    }

    /// Initializes reserved memory. The `Zdd` takes over one reference to `devmem`, and releases it when the last folio
    /// is freed.
    ///
    /// # Safety
    ///
    /// The caller must own that reference.
    pub(crate) unsafe fn init(
        reserved: UniqueArc<MaybeUninit<Self>>,
        devmem: NonNull<Devmem>,
        pagemap: &Pagemap,
    ) -> Arc<Self> {
        // INVARIANT: The caller hands its reference to `devmem` over.
        let zdd = Self {
            devmem,
            pagemap: pagemap.into(),
        };
        reserved.write(zdd).into()
    }

    /// Returns the block of the folios.
    pub(crate) fn devmem(&self) -> &Devmem {
        // SAFETY: By the type invariants.
        unsafe { self.devmem.as_ref() }
    }

    /// Returns the pagemap of the folios.
    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// Converts a reference to the zone-device data of a folio.
    pub(crate) fn into_data(self: Arc<Self>) -> *mut c_void {
        Arc::into_raw(self).cast_mut().cast()
    }

    /// Returns the pointer in the zone-device data of a folio.
    fn pointer(data: *mut c_void) -> *const Self {
        data.map_addr(|addr| addr & !RETIRED).cast()
    }

    /// Returns the `Zdd` of a page's folio.
    ///
    /// # Safety
    ///
    /// The page must be a device-private page of a pagemap of this core, and stay in use during `'a`.
    pub(crate) unsafe fn of<'a>(page: NonNull<page>) -> ArcBorrow<'a, Self> {
        // SAFETY: The folio is in use, and owns a reference to its `Zdd` until it is freed.
        unsafe { ArcBorrow::from_raw(Self::pointer(zone_device::data(page))) }
    }

    /// Returns whether the contents of a page's folio were migrated to system memory.
    ///
    /// # Safety
    ///
    /// As for [`of`](Self::of).
    pub(crate) unsafe fn is_retired(page: NonNull<page>) -> bool {
        // SAFETY: The caller guarantees that the page is in use.
        unsafe { zone_device::data(page) }.addr() & RETIRED != 0
    }

    /// Marks a page's folio as migrated to system memory.
    ///
    /// # Safety
    ///
    /// As for [`of`](Self::of). The caller must hold the folio lock.
    pub(crate) unsafe fn retire(page: NonNull<page>) {
        // SAFETY: The caller holds the folio lock, under which the data changes.
        unsafe {
            let data = zone_device::data(page);
            zone_device::set_data(page, data.map_addr(|addr| addr | RETIRED));
        }
    }

    /// Takes the reference from a folio that has been freed.
    ///
    /// # Safety
    ///
    /// The folio must be free. Must be called once for each time it is freed.
    pub(crate) unsafe fn take(page: NonNull<page>) -> Arc<Self> {
        // SAFETY: The folio's reference is handed over, and the free folio does not use it any more.
        unsafe { Arc::from_raw(Self::pointer(zone_device::data(page))) }
    }

    /// Gives a folio that was split off another one its own reference to the same `Zdd`.
    ///
    /// # Safety
    ///
    /// The caller must hold both folio locks. `from` must have a reference, and `to` must not have one yet.
    pub(crate) unsafe fn share(from: NonNull<page>, to: NonNull<page>) {
        // SAFETY: By this function's requirements.
        unsafe {
            let retired = zone_device::data(from).addr() & RETIRED;
            let data = Arc::from(Self::of(from)).into_data();
            zone_device::set_data(to, data.map_addr(|addr| addr | retired));
        }
    }
}

impl Drop for Zdd {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this object owns the reference, and no folio is left. `pagemap`, which keeps
        // the operations, is dropped after this.
        unsafe { Devmem::release(self.devmem) };
    }
}

/// Returns the pagemap of a page. C: `drm_pagemap_page_to_dpagemap()`.
///
/// # Safety
///
/// As for `Zdd::of()`.
pub(crate) unsafe fn pagemap_of_page<'a>(page: NonNull<page>) -> &'a Pagemap {
    // SAFETY: The page stays in use and so keeps its `Zdd`, which keeps the pagemap, during `'a`.
    unsafe { Pagemap::from_raw(Zdd::of(page).pagemap().as_raw()) }
}

/// Returns the pagemap of a zone-device page, or none if the page does not belong to a pagemap of this core.
///
/// # Safety
///
/// The page must be a zone-device page, and stay in use during `'a`.
pub(crate) unsafe fn find_pagemap<'a>(page: NonNull<page>) -> Option<&'a Pagemap> {
    // SAFETY: The page stays in use. All folios with the core's operations have a `Zdd`.
    unsafe {
        let pagemap = NonNull::new(zone_device::pagemap_of(page))?;
        core::ptr::eq(pagemap.as_ref().ops, &fault::OPS).then(|| pagemap_of_page(page))
    }
}
