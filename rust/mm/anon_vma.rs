// SPDX-License-Identifier: GPL-2.0

//! References to `anon_vma`s, through which the rmap finds the mappings of anonymous folios.
//!
//! An `anon_vma` lives as long as a VMA or another holder has a reference. A mapped folio implies
//! one; a folio under migration is not mapped, and does not. The end of a migration looks up the
//! former mappings of the folio through its `anon_vma`. So a thread that migrates pages without a
//! lock of their address spaces needs a reference. The kernel's migration takes one, but
//! `migrate_device_pfns()` and the other functions for device memory do not.
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
/// Owns one reference to a valid `anon_vma`.
struct AnonVmaRef(NonNull<anon_vma>);

impl AnonVmaRef {
    /// Returns a reference to the `anon_vma` of a page's folio, if the folio is mapped.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to the page.
    unsafe fn of(page: NonNull<page>) -> Option<Self> {
        // The RCU read lock keeps the memory an `anon_vma`, but it may be freed, or reused for
        // another folio.
        let rcu = rcu::read_lock();
        // SAFETY: By this function's requirements.
        let anon_vma = NonNull::new(unsafe { bindings::page_anon_vma(page.as_ptr()) })?;
        // SAFETY: The memory is or was an `anon_vma`, and is not used for another type within the
        // critical section (`SLAB_TYPESAFE_BY_RCU`).
        if !unsafe { bindings::anon_vma_try_get(anon_vma.as_ptr()) } {
            return None;
        }
        // INVARIANT: `anon_vma_try_get()` took a reference.
        let this = Self(anon_vma);
        // Dropping `this`, if it is not the folio's, sleeps.
        drop(rcu);
        // If the folio is still mapped and its `anon_vma` is the same, `this` is the right one: the
        // `anon_vma` of a mapped folio is not freed.
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
/// The `anon_vma` must have no reference left, and its root must be valid.
unsafe fn free(anon_vma: NonNull<anon_vma>) {
    // SAFETY: By this function's requirements. `kfree()` accepts objects of any slab cache.
    unsafe {
        bindings::anon_vma_synchronize(anon_vma.as_ptr());
        kernel::bindings::kfree(anon_vma.as_ptr().cast());
    }
}

impl Drop for AnonVmaRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; each `anon_vma` holds a reference to its root.
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

/// References to the `anon_vma`s of some folios. Dropping it sleeps.
#[derive(Default)]
pub(crate) struct AnonVmas(KVec<AnonVmaRef>);

impl AnonVmas {
    /// Takes a reference to the `anon_vma` of a page's folio; returns false if the folio is not
    /// mapped. Sleeps. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to the page. The folio's `anon_vma` must never be replaced
    /// by another one: this is true for folios of device-private memory.
    pub(crate) unsafe fn hold(&mut self, page: NonNull<page>) -> Result<bool> {
        // Neighbouring folios mostly share an `anon_vma`. One that is referenced is not reused for
        // another folio.
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
