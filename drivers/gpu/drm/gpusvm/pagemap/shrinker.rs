// SPDX-License-Identifier: GPL-2.0

//! Pagemaps that nobody uses, which reclaim may free.
//!
//! A device has one list of them, for all its caches, and one lock: what the list and a cache
//! know of a pagemap changes in one step. There is no moment at which one of them still knows a
//! pagemap that the other gave up; the shrinker looks at no cache after it has let the lock go.
//!
//! # Locking
//!
//! The lock is a spinlock and a leaf but for that of work queues. It is taken in reclaim.
//!
//! C: `struct drm_pagemap_shrinker`.

use super::{
    cache::Cache,
    drm_pagemap::Pagemap, //
    hold,
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    device::{Bound, Device},
    devres,
    interop::list::CListHead,
    prelude::*,
    str::CString,
    sync::{new_spinlock, Arc, SpinLock},
};
use kernel_ext::{
    drm::device::DrmDevice,
    list,
    mm::shrinker::{
        Registration,
        Shrink, //
    }, //
};

/// The unused pagemaps of one device.
#[pin_data]
pub struct Shrinker {
    #[pin]
    pub(crate) idle: SpinLock<IdleList>,
}

/// A list of pagemaps without references.
///
/// # Invariants
///
/// Each of them is what its cache has, which is not closed. `count` is how many there are.
pub(crate) struct IdleList {
    // In a box, so that who has the lock can have the list exclusively, and not pinned.
    head: Pin<KBox<CListHead>>,
    count: usize,
}

impl IdleList {
    /// Fails with `ENOMEM`.
    fn new() -> Result<Self> {
        Ok(Self {
            head: KBox::pin_init(CListHead::new(), GFP_KERNEL)?,
            count: 0,
        })
    }

    /// Adds a pagemap.
    ///
    /// # Safety
    ///
    /// The pagemap must have no references, and be in no list. It must be what its cache has, which
    /// must not be closed.
    pub(crate) unsafe fn add(&mut self, pagemap: NonNull<Pagemap>) {
        // SAFETY: The pagemap is valid until it is taken out, and in no list. Having the list
        // exclusively is having its lock.
        unsafe { list::add_before(&self.head, &(*pagemap.as_ptr()).shrink_link) };
        self.count += 1;
    }

    /// Takes a pagemap out.
    ///
    /// # Safety
    ///
    /// The pagemap must be in the list.
    pub(crate) unsafe fn remove(&mut self, pagemap: NonNull<Pagemap>) {
        // SAFETY: The pagemaps in the list are valid. Having the list exclusively is having its
        // lock.
        unsafe { list::del(&(*pagemap.as_ptr()).shrink_link) };
        self.count = self.count.saturating_sub(1);
    }

    /// Takes the pagemap out that has been unused longest, and has its cache forget it.
    fn take_first(&mut self) -> Option<NonNull<Pagemap>> {
        if !self.head.is_linked() {
            return None;
        }
        let link: *const CListHead = self.head.next();
        let offset = core::mem::offset_of!(Pagemap, shrink_link);
        // SAFETY: All entries of the list but its head are such fields of pagemaps.
        let pagemap = unsafe { NonNull::new(link.byte_sub(offset).cast_mut().cast())? };
        // SAFETY: By the type invariants it is what its cache has, which lives until it is closed;
        // and to close it takes the lock.
        unsafe {
            self.remove(pagemap);
            Cache::forget(pagemap, self);
        }
        Some(pagemap)
    }
}

impl Shrinker {
    /// A list for the caches of `drm`, which reclaim may empty until `dev` is unbound.
    /// C: `drm_pagemap_shrinker_create_devm()`.
    ///
    /// `dev` is what `drm` sits on. Fails with `ENOMEM`; or with `EINVAL` if it is another device.
    pub fn new_devm(dev: &Device<Bound>, drm: &DrmDevice) -> Result<Arc<Self>> {
        check_parent(dev, drm)?;
        let idle = IdleList::new()?;
        let this = Arc::pin_init(
            pin_init!(Self {
                idle <- new_spinlock!(idle, "gpusvm.idle_pagemaps"),
            }),
            GFP_KERNEL,
        )?;
        let name = CString::try_from_fmt(fmt!("gpusvm-pagemap:{}", dev.name()))?;
        let registration = Registration::new(&name, this.clone())?;
        devres::register(dev, registration, GFP_KERNEL)?;
        Ok(this)
    }
}

impl Shrink for Shrinker {
    fn count(&self) -> usize {
        self.idle.lock().count
    }

    fn scan(&self, want: usize) -> usize {
        for freed in 0..want {
            let mut idle = self.idle.lock();
            let Some(pagemap) = idle.take_first() else {
                return freed;
            };
            // Before the lock is let go: who closes the cache after that waits for this to be
            // destroyed, and finds it to wait for.
            // SAFETY: Nobody knows the pagemap any more. It has no hold, but its cache is closed
            // before the driver goes.
            unsafe { hold::destroy_later(pagemap) };
        }
        want
    }
}

/// Fails with `EINVAL` unless `drm` sits on `dev`.
pub(crate) fn check_parent(dev: &Device<Bound>, drm: &DrmDevice) -> Result {
    // CAST: `Device` is transparent over `struct device`.
    let dev: *const bindings::device = core::ptr::from_ref(dev).cast();
    if core::ptr::eq(dev, drm.dma_device()) {
        Ok(())
    } else {
        Err(EINVAL)
    }
}
