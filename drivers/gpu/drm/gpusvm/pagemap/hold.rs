// SPDX-License-Identifier: GPL-2.0

//! Holds: references to the DRM device and the driver's module of a pagemap.
//!
//! A user may drop the last reference to a pagemap in any context: where a page is freed, in another device's driver,
//! in reclaim. But destroying a pagemap and releasing a device calls functions of the provider that sleep, and must
//! return before its module is unloaded. So work items do both. All memory that they need is allocated with the
//! pagemap, so they cannot fail.
//!
//! There are two work items, as the release of a device may run code that waits for pagemaps to be destroyed:
//!
//! 1. The first destroys pagemaps, each while its hold keeps the module.
//! 2. The second releases holds.
//!
//! Both work items belong to this module, which the provider's module depends on. When the second one releases the last
//! hold, the provider's module may be unloaded and then this one: `exit()` waits for the work item.
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

/// A reference to the DRM device of a pagemap and to its driver's module.
///
/// Dropped in process context only, see [`DrmRef`].
pub(crate) struct DevHold {
    /// The next entry in [`HOLDS`].
    next: *mut DevHold,
    /// The cache of the pagemap, which holds the device, too. Only the caller that puts the pagemap into the cache
    /// writes this, once.
    pub(super) cache: Option<Arc<Cache>>,
    // Dropped after the cache, as the module's code must stay until the end.
    _drm: DrmRef,
}

// SAFETY: `next` is used by the list only, which any thread may access.
unsafe impl Send for DevHold {}
// SAFETY: As above.
unsafe impl Sync for DevHold {}

// SAFETY: `next` is used by the list only.
unsafe impl Linked for DevHold {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is made.
        unsafe { &raw mut (*this.as_ptr()).next }
    }
}

impl DevHold {
    /// Creates a hold. Fails with `ENODEV` if the driver's module is being unloaded, or with `ENOMEM`; nothing is held
    /// then. May sleep.
    pub(crate) fn new(drm: &DrmDevice, cache: Option<Arc<Cache>>) -> Result<KBox<Self>> {
        let hold = Self {
            next: ptr::null_mut(),
            cache,
            _drm: DrmRef::new(drm)?,
        };
        Ok(KBox::new(hold, GFP_KERNEL)?)
    }
}

/// The pagemaps to destroy.
static DYING: LockFreeList<Pagemap> = LockFreeList::new();
// SAFETY: `init()` runs before any pagemap exists.
static DESTROY: StaticWork = unsafe { StaticWork::new(destroy_all) };

/// The holds to release.
static HOLDS: LockFreeList<DevHold> = LockFreeList::new();
// SAFETY: As above.
static RELEASE: StaticWork = unsafe { StaticWork::new(release_all) };

fn destroy_all() {
    for pagemap in DYING.take_all() {
        // SAFETY: `destroy_later()` got the only pointer to the pagemap. The hold keeps the driver's module; without a
        // hold, the driver waits for this work before its module is unloaded.
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
        // SAFETY: `release_later()` took the pointer from a box.
        drop(unsafe { KBox::from_raw(hold.as_ptr()) });
    }
}

/// Queues a pagemap to be destroyed, and its hold to be released after that. Any context.
///
/// # Safety
///
/// `pagemap` must have no references, and no other pointer to it may be used. It must have its hold, or the driver must
/// call [`flush_destroyed`] before its module is unloaded.
pub(crate) unsafe fn destroy_later(pagemap: NonNull<Pagemap>) {
    // SAFETY: The pagemap is in no list. From now on only the list uses it.
    unsafe { DYING.push(pagemap) };
    DESTROY.schedule();
}

/// Queues a hold to be released. Any context.
pub(crate) fn release_later(hold: KBox<DevHold>) {
    // SAFETY: A box is never null. From now on only the list uses the hold.
    unsafe { HOLDS.push(NonNull::new_unchecked(KBox::into_raw(hold))) };
    RELEASE.schedule();
}

/// Waits until all pagemaps are destroyed that were queued before this call. Sleeps. Must not be called from a driver's
/// `destroy`.
pub fn flush_destroyed() {
    DESTROY.flush();
}

/// Waits until all pagemaps are destroyed that were queued before this call, and their holds released. Sleeps. Must not
/// be called from the release of a DRM device.
pub fn flush() {
    DESTROY.flush();
    RELEASE.flush();
}

/// Initializes the work items.
///
/// # Safety
///
/// Must be called once, when the module is loaded.
pub(crate) unsafe fn init() {
    // SAFETY: No pagemap exists yet.
    unsafe {
        DESTROY.init(c"gpusvm.destroy", static_lock_class!());
        RELEASE.init(c"gpusvm.release", static_lock_class!());
    }
}

/// Waits for the work items. Called once, when the module is unloaded: no other module can call this one any more.
pub(crate) fn exit() {
    flush();
    if !DYING.is_empty() || !HOLDS.is_empty() {
        pr_warn!("a pagemap or its hold is left at the exit of the module\n");
    }
}
