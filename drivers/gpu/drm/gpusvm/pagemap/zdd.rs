// SPDX-License-Identifier: GPL-2.0

//! What device-private folios carry: whose memory they are.
//!
//! All folios that one migration fills share one [`Zdd`]. It goes with the last of them, wherever a
//! folio may be freed; then the allocation is told that nothing of it is in use any more, and its
//! release is the provider's.
//!
//! In the word of a folio there is also a bit that says that its contents were moved to RAM: such a
//! folio is only waiting for its last reference, and must not be moved again. No process maps it any more,
//! so that only who goes by frames comes across it.
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

/// What the device-private folios of one migration have in common.
///
/// # Invariants
///
/// The allocation is valid, and one reference to it is owned.
pub(crate) struct Zdd {
    allocation: NonNull<Devmem>,
    pagemap: PagemapRef,
}

// SAFETY: It may be used and given back from any thread, as what it refers to may.
unsafe impl Send for Zdd {}
// SAFETY: As above.
unsafe impl Sync for Zdd {}

// The bit is free.
static_assert!(core::mem::align_of::<Zdd>() > RETIRED);

/// Memory for a [`Zdd`].
pub(crate) struct Vacant(UniqueArc<MaybeUninit<Zdd>>);

impl Vacant {
    /// Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?))
    }

    /// Takes over a reference to `allocation`, which is released with the last folio.
    ///
    /// # Safety
    ///
    /// The reference must be the caller's.
    pub(crate) unsafe fn fill(self, allocation: NonNull<Devmem>, pagemap: &Pagemap) -> Arc<Zdd> {
        // INVARIANT: The reference is handed over.
        let zdd = Zdd {
            allocation,
            pagemap: pagemap.into(),
        };
        self.0.write(zdd).into()
    }
}

impl Zdd {
    /// The allocation that the folios are part of.
    pub(crate) fn allocation(&self) -> &Devmem {
        // SAFETY: By the type invariants.
        unsafe { self.allocation.as_ref() }
    }

    /// The memory that the folios are part of.
    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// The word of a folio that carries a new reference.
    pub(crate) fn into_data(self: Arc<Self>) -> *mut c_void {
        Arc::into_raw(self).cast_mut().cast()
    }

    /// The word of a folio without the bit.
    fn pointer(data: *mut c_void) -> *const Self {
        data.map_addr(|addr| addr & !RETIRED).cast()
    }

    /// What the folio of a page carries.
    ///
    /// # Safety
    ///
    /// The page must be a device-private page of a pagemap of this core, whose reference the caller
    /// holds during `'a`.
    pub(crate) unsafe fn of<'a>(page: NonNull<page>) -> ArcBorrow<'a, Self> {
        // SAFETY: A folio in use carries a counted reference.
        unsafe { ArcBorrow::from_raw(Self::pointer(zone_device::data(page))) }
    }

    /// Whether the contents of a page's folio were moved to RAM.
    ///
    /// # Safety
    ///
    /// As for [`of`](Self::of).
    pub(crate) unsafe fn is_retired(page: NonNull<page>) -> bool {
        // SAFETY: By this function's requirements.
        unsafe { zone_device::data(page) }.addr() & RETIRED != 0
    }

    /// Notes that the contents of a page's folio were moved to RAM.
    ///
    /// # Safety
    ///
    /// As for [`of`](Self::of); the folio must be locked.
    pub(crate) unsafe fn retire(page: NonNull<page>) {
        // SAFETY: By this function's requirements.
        unsafe {
            let data = zone_device::data(page);
            zone_device::set_data(page, data.map_addr(|addr| addr | RETIRED));
        }
    }

    /// Takes back what a folio carries that is free now.
    ///
    /// # Safety
    ///
    /// The folio must be free, and this be done once.
    pub(crate) unsafe fn take(page: NonNull<page>) -> Arc<Self> {
        // SAFETY: The reference was the folio's, which carries it no more.
        unsafe { Arc::from_raw(Self::pointer(zone_device::data(page))) }
    }

    /// Has a folio that was split off another carry the same.
    ///
    /// # Safety
    ///
    /// Both must be locked, `from` carry a reference and `to` none yet.
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
        // SAFETY: By the type invariants; no page is left, and the reference is given up. The
        // operations can be called, as the pagemap is let go only after this.
        unsafe { Devmem::release(self.allocation) };
    }
}

/// The memory that a page is part of. C: `drm_pagemap_page_to_dpagemap()`.
///
/// # Safety
///
/// As for `Zdd::of()`.
pub(crate) unsafe fn pagemap_of_page<'a>(page: NonNull<page>) -> &'a Pagemap {
    // SAFETY: By this function's requirements; the reference keeps what is borrowed for `'a`.
    unsafe { Pagemap::from_raw(Zdd::of(page).pagemap().as_raw()) }
}

/// The memory that a page is part of; none if that is no pagemap of this core.
///
/// # Safety
///
/// The page must be in use, and stay so during `'a`.
pub(crate) unsafe fn find_pagemap<'a>(page: NonNull<page>) -> Option<&'a Pagemap> {
    // SAFETY: The page stays as it is, by this function's requirements. With these operations it
    // carries a reference.
    unsafe {
        let pagemap = NonNull::new(zone_device::pagemap_of(page))?;
        core::ptr::eq(pagemap.as_ref().ops, &fault::OPS).then(|| pagemap_of_page(page))
    }
}
