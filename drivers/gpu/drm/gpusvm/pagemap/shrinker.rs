// SPDX-License-Identifier: GPL-2.0

//! Unused pagemaps, which reclaim may free.
//!
//! A device has one list of unused pagemaps for all its caches, and one lock for the list and the caches. So a pagemap
//! leaves the list and its cache in one step, and the shrinker accesses no cache after it has released the lock.
//!
//! # Locking
//!
//! The lock is a spinlock, and a leaf except for the locks of work queues. It is taken in reclaim.
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
    interop::list::CListHead,
    prelude::*,
    str::CString,
    sync::{new_spinlock, Arc, SpinLock},
};
use kernel_ext::{
    drm::device::DrmDevice,
    list,
    mm::shrinker::{
        register_devm,
        Shrink, //
    }, //
};

/// The unused pagemaps of one device.
#[pin_data]
pub struct Shrinker {
    #[pin]
    pub(crate) idle: SpinLock<IdleList>,
}

/// A list of idle pagemaps.
///
/// # Invariants
///
/// Each pagemap in the list has no references and is in its cache, which is open. `count` is their number.
pub(crate) struct IdleList {
    // In a box, so that the guard of the lock can give out `&mut IdleList` although the head is pinned.
    head: Pin<KBox<CListHead>>,
    count: usize,
}

impl IdleList {
    /// Creates an empty list. Fails with `ENOMEM`.
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
    /// The pagemap must have no references, be in no list, and be in its cache, which must be open.
    pub(crate) unsafe fn add(&mut self, pagemap: NonNull<Pagemap>) {
        // SAFETY: The pagemap is in no list, and valid until it is removed. `&mut self` means that the lock is held.
        unsafe { list::add_before(&self.head, &(*pagemap.as_ptr()).shrink_link) };
        self.count += 1;
    }

    /// Removes a pagemap.
    ///
    /// # Safety
    ///
    /// The pagemap must be in the list.
    pub(crate) unsafe fn remove(&mut self, pagemap: NonNull<Pagemap>) {
        // SAFETY: A pagemap in the list is valid. `&mut self` means that the lock is held.
        unsafe { list::del(&(*pagemap.as_ptr()).shrink_link) };
        self.count = self.count.saturating_sub(1);
    }

    /// Removes the pagemap that has been unused longest, also from its cache.
    fn take_first(&mut self) -> Option<NonNull<Pagemap>> {
        if !self.head.is_linked() {
            return None;
        }
        let link: *const CListHead = self.head.next();
        let offset = core::mem::offset_of!(Pagemap, shrink_link);
        // SAFETY: All entries of the list but its head are the `shrink_link` of a pagemap.
        let pagemap = unsafe { NonNull::new(link.byte_sub(offset).cast_mut().cast())? };
        // SAFETY: By the type invariants the pagemap is in its cache, which is open, and closing the cache takes the
        // lock that is held.
        unsafe {
            self.remove(pagemap);
            Cache::forget(pagemap, self);
        }
        Some(pagemap)
    }
}

impl Shrinker {
    /// Creates a list for the caches of `drm`, which reclaim may empty until `dev` is unbound. C:
    /// `drm_pagemap_shrinker_create_devm()`.
    ///
    /// `dev` must be the parent of `drm`. Fails with `ENOMEM`, or with `EINVAL` if it is another device.
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
        register_devm(dev, &name, this.clone())?;
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
            // The lock is still held: a thread that closes the cache after this waits for the pagemaps to be destroyed,
            // and must find this one queued.
            // SAFETY: The pagemap is in no cache any more, so no other pointer to it is used. It has no hold, but the
            // driver closes the cache before its module is unloaded.
            unsafe { hold::destroy_later(pagemap) };
        }
        want
    }
}

/// Fails with `EINVAL` unless `dev` is the parent of `drm`.
pub(crate) fn check_parent(dev: &Device<Bound>, drm: &DrmDevice) -> Result {
    // CAST: `Device` is transparent over `struct device`.
    let dev: *const bindings::device = core::ptr::from_ref(dev).cast();
    if core::ptr::eq(dev, drm.dma_device()) {
        Ok(())
    } else {
        Err(EINVAL)
    }
}
