// SPDX-License-Identifier: GPL-2.0

//! What the mappings of anonymous pages are found by.
//!
//! An `anon_vma` lives as long as a VMA, or something else that has a reference. A folio that is mapped
//! keeps it; one that is under migration is not mapped, and does not. Whoever migrates pages without a
//! lock of their processes' therefore needs a reference, since the end of the migration looks for the
//! places that the folio had. The kernel does so itself, but for `migrate_device_pfns()` and its like.
//!
//! C: `folio_get_anon_vma()`, `put_anon_vma()` in `mm/rmap.c`, which are not exported.

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    bindings::{anon_vma, page},
    prelude::*,
    sync::rcu, //
};

/// A reference to an `anon_vma`.
///
/// # Invariants
///
/// It is valid, and one of its references is owned.
struct AnonVmaRef(NonNull<anon_vma>);

impl AnonVmaRef {
    /// That of the folio of a page, if it is mapped.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to the page.
    unsafe fn of(page: NonNull<page>) -> Option<Self> {
        // Under RCU the memory stays an `anon_vma`, though maybe a free one, or another folio's by now.
        let rcu = rcu::read_lock();
        // SAFETY: By this function's requirements.
        let anon_vma = NonNull::new(unsafe { bindings::page_anon_vma(page.as_ptr()) })?;
        // SAFETY: It is or was an `anon_vma`, and the memory is used for nothing else in the critical
        // section (`SLAB_TYPESAFE_BY_RCU`).
        if !unsafe { bindings::anon_vma_try_get(anon_vma.as_ptr()) } {
            return None;
        }
        // INVARIANT: It was not free, and the reference is ours.
        let this = Self(anon_vma);
        // What is not the folio's is given back, which sleeps.
        drop(rcu);
        // If the folio is mapped still, and by this one, it is the folio's, since nobody frees that of
        // a folio that is mapped.
        // SAFETY: By this function's requirements.
        (unsafe { bindings::page_anon_vma(page.as_ptr()) } == anon_vma.as_ptr()).then_some(this)
    }
}

/// Frees an `anon_vma`. Sleeps.
///
/// C: `anon_vma_free()`.
///
/// # Safety
///
/// It must have no reference any more, and its root be valid.
unsafe fn free(anon_vma: NonNull<anon_vma>) {
    // SAFETY: By this function's requirements. Objects of any slab cache may be given to `kfree()`.
    unsafe {
        bindings::anon_vma_synchronize(anon_vma.as_ptr());
        kernel::bindings::kfree(anon_vma.as_ptr().cast());
    }
}

impl Drop for AnonVmaRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; each `anon_vma` has a reference to its root.
        unsafe {
            let root = bindings::anon_vma_root(self.0.as_ptr());
            if !bindings::anon_vma_dec_and_test(self.0.as_ptr()) {
                return;
            }
            free(self.0);
            let Some(root) = NonNull::new(root).filter(|root| *root != self.0) else {
                return;
            };
            if bindings::anon_vma_dec_and_test(root.as_ptr()) {
                free(root);
            }
        }
    }
}

/// References to what the mappings of some folios are found by. Dropping it sleeps.
#[derive(Default)]
pub(crate) struct AnonVmas(KVec<AnonVmaRef>);

impl AnonVmas {
    /// Takes a reference for the folio of a page; says whether it is mapped, so that there is something
    /// to hold. Sleeps. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to the page. The folio must be one that no `anon_vma` but its
    /// first ever is of, such as that of device-private memory.
    pub(crate) unsafe fn hold(&mut self, page: NonNull<page>) -> Result<bool> {
        // Neighbours mostly have the same; what is held already cannot be another's meanwhile.
        // SAFETY: By this function's requirements.
        let seen = unsafe { bindings::page_anon_vma(page.as_ptr()) };
        if self.0.last().is_some_and(|last| last.0.as_ptr() == seen) {
            return Ok(true);
        }
        // SAFETY: By this function's requirements.
        let Some(anon_vma) = (unsafe { AnonVmaRef::of(page) }) else {
            return Ok(false);
        };
        self.0.push(anon_vma, GFP_KERNEL)?;
        Ok(true)
    }
}
