// SPDX-License-Identifier: GPL-2.0

//! What keeps a provider's DRM device and module, and how they are let go.
//!
//! The last reference to a pagemap may be given back anywhere: where a page is freed, by another
//! device's driver, in reclaim. The end of the pagemap and of its device, however, is code of the
//! provider's that sleeps, and that has to return before its module goes. So the pagemap and its
//! hold are handed to work items, which have all they need already and so cannot fail.
//!
//! There are two, as giving up a device may run code that waits for pagemaps to be destroyed:
//!
//! 1. pagemaps are destroyed, each while its hold keeps the module;
//! 2. holds are given up.
//!
//! Both are this module's code, which the provider's module depends on. It may be unloaded as soon
//! as the last provider is, which is from within the second work item: `exit()` waits for it.
//!
//! C: `struct drm_pagemap_dev_hold`.

use super::{cache::Cache, drm_pagemap::Pagemap};
use core::ptr::{self, NonNull};
use kernel::{
    prelude::*,
    static_lock_class,
    sync::Arc, //
};
use kernel_ext::{
    drm::device::{DrmDevice, DrmRef},
    list::llist::{
        Linked,
        LockFreeList, //
    },
    workqueue::StaticWork, //
};

/// A hold on the DRM device of a pagemap and on its driver's module.
///
/// Dropped in process context only, see [`DrmRef`].
pub(crate) struct DevHold {
    /// The place in [`HOLDS`].
    next: *mut DevHold,
    /// The cache that the pagemap was put into, which holds the device, too. Written once, by who
    /// puts the pagemap in.
    pub(super) cache: Option<Arc<Cache>>,
    // After the cache, as the module must go last.
    _drm: DrmRef,
}

// SAFETY: The pointer is the list's, which is for any thread.
unsafe impl Send for DevHold {}
// SAFETY: As above.
unsafe impl Sync for DevHold {}

// SAFETY: `next` is for this only.
unsafe impl Linked for DevHold {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is made.
        unsafe { &raw mut (*this.as_ptr()).next }
    }
}

impl DevHold {
    /// Fails with `ENODEV` if the driver's module is on its way out, or with `ENOMEM`; nothing is
    /// held then. May sleep.
    pub(crate) fn new(drm: &DrmDevice, cache: Option<Arc<Cache>>) -> Result<KBox<Self>> {
        let hold = Self {
            next: ptr::null_mut(),
            cache,
            _drm: DrmRef::new(drm)?,
        };
        Ok(KBox::new(hold, GFP_KERNEL)?)
    }
}

/// Pagemaps to destroy.
static DYING: LockFreeList<Pagemap> = LockFreeList::new();
// SAFETY: `init()` is called before anybody can have a pagemap.
static DESTROY: StaticWork = unsafe { StaticWork::new(destroy_all) };

/// Holds to give up.
static HOLDS: LockFreeList<DevHold> = LockFreeList::new();
// SAFETY: As above.
static RELEASE: StaticWork = unsafe { StaticWork::new(release_all) };

fn destroy_all() {
    for pagemap in DYING.take_all() {
        // SAFETY: Who handed the pagemap over knows it no more. Its module is kept by the hold, or
        // by the driver, which waits for this before it goes.
        let hold = unsafe {
            let hold = Pagemap::take_hold(pagemap);
            Pagemap::destroy(pagemap);
            hold
        };
        if let Some(hold) = hold {
            release_later(hold);
        }
    }
}

fn release_all() {
    for hold in HOLDS.take_all() {
        // SAFETY: `release_later()` took it out of its box.
        drop(unsafe { KBox::from_raw(hold.as_ptr()) });
    }
}

/// Has a pagemap destroyed, and its hold given up after that. Any context.
///
/// # Safety
///
/// `pagemap` must have no references, and nobody else know it. Its hold must be there; or the driver
/// call [`flush_destroyed`] before its module can go.
pub(crate) unsafe fn destroy_later(pagemap: NonNull<Pagemap>) {
    // SAFETY: The pagemap is in no list, and the list's alone from now on.
    unsafe { DYING.push(pagemap) };
    DESTROY.schedule();
}

/// Has a hold given up. Any context.
pub(crate) fn release_later(hold: KBox<DevHold>) {
    // SAFETY: A box is never null; the hold is the list's from now on.
    unsafe { HOLDS.push(NonNull::new_unchecked(KBox::into_raw(hold))) };
    RELEASE.schedule();
}

/// Waits until the pagemaps are destroyed that were dying when this was called. Sleeps; not to be
/// called by a driver's `destroy`.
pub fn flush_destroyed() {
    DESTROY.flush();
}

/// Waits until the pagemaps are destroyed that were dying when this was called, and until what they
/// held is given up. Sleeps; not to be called by the end of a device.
pub fn flush() {
    DESTROY.flush();
    RELEASE.flush();
}

/// Makes the work items ready.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() {
    // SAFETY: Nobody can have a pagemap before.
    unsafe {
        DESTROY.init(c"gpusvm.destroy", static_lock_class!());
        RELEASE.init(c"gpusvm.release", static_lock_class!());
    }
}

/// Waits for the work items. To be called once, when the module is unloaded: no module can call
/// this one any more.
pub(crate) fn exit() {
    flush();
    if !DYING.is_empty() || !HOLDS.is_empty() {
        pr_warn!("a provider's pagemap is left\n");
    }
}
