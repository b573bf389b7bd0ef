// SPDX-License-Identifier: GPL-2.0

//! A cache of one pagemap, which keeps the pagemap while it is unused.
//!
//! Creating a pagemap initializes a `struct page` for each page of the device's memory, which takes long. So the cache
//! keeps a pagemap that lost its last reference, without a hold on its device and module, until it is looked up again,
//! reclaim frees it, or the device is unbound.
//!
//! # States
//!
//! A pagemap that was put into a cache has one of these states while no thread holds the lock of the [`Shrinker`]:
//!
//! - *in use*: it has references. It is in the cache, unless the cache was closed.
//! - *idle*: it has no references. It is in the cache and in the shrinker's list.
//! - *dying*: it has no references, and is neither in the cache nor in the list.
//!
//! The last reference is dropped with the lock held, so there is no state in between. In particular a lookup never
//! waits for a pagemap that changes its state, and never finds a partly initialized one.
//!
//! The cache is closed when the device is unbound, and is empty from then on. A pagemap that is still in use then is
//! destroyed when its last reference is dropped, without the cache. This may be much later, and the hold of the pagemap
//! also keeps the memory of the cache until then.
//!
//! # Locking
//!
//! The *lookup lock*, a mutex, is held from a lookup that finds nothing until the pagemap that is created for it is in
//! the cache. It nests inside the locks of the caller only; a pagemap is created under it. The shrinker's lock nests
//! inside it, and protects the slot of the cache.
//!
//! C: `struct drm_pagemap_cache`.

use super::{
    drm_pagemap::{Pagemap, PagemapRef},
    hold::{self, DevHold},
    shrinker::{check_parent, IdleList, Shrinker}, //
};
use core::ptr::{self, NonNull};
use kernel::{
    device::{Bound, Device},
    devres,
    prelude::*,
    sync::{
        atomic::Relaxed,
        lock::{mutex::MutexBackend, Guard},
        new_mutex,
        Arc,
        LockedBy,
        Mutex, //
    },
};
use kernel_ext::{
    drm::device::{DeviceOnly, DrmDevice, DrmRef},
    sync::mutex, //
};

/// A cache of one pagemap of a device.
#[pin_data]
pub struct Cache {
    /// Dereferenced only while the cache is open; compared at any time.
    drm: NonNull<DrmDevice>,
    shrinker: Arc<Shrinker>,
    cached: LockedBy<Slot, IdleList>,
    #[pin]
    lookup: Mutex<()>,
}

/// The contents of a cache.
///
/// # Invariants
///
/// - `pagemap` is valid, either in use or idle, and its `cache` is this one.
/// - If `closed`, there is no `pagemap`. Otherwise the DRM device and the module of its driver are valid.
struct Slot {
    pagemap: Option<NonNull<Pagemap>>,
    closed: bool,
}

// SAFETY: Any thread may use a pagemap.
unsafe impl Send for Slot {}

// SAFETY: Any thread may use a DRM device and the other fields.
unsafe impl Send for Cache {}
// SAFETY: As above.
unsafe impl Sync for Cache {}

impl Cache {
    /// Creates an empty cache, which is closed when `dev` is unbound. C: `drm_pagemap_cache_create_devm()`.
    ///
    /// `dev` must be the parent of `drm`. Fails with `ENOMEM`, or with `EINVAL` if it is another device.
    pub fn new_devm(
        dev: &Device<Bound>,
        drm: &DrmDevice,
        shrinker: &Arc<Shrinker>,
    ) -> Result<Arc<Self>> {
        check_parent(dev, drm)?;
        let empty = LockedBy::new(
            &shrinker.idle,
            Slot {
                pagemap: None,
                closed: false,
            },
        );
        let this = Arc::pin_init(
            pin_init!(Self {
                drm: NonNull::from(drm),
                shrinker: shrinker.clone(),
                cached: empty,
                lookup <- new_mutex!((), "gpusvm.pagemap_lookup"),
            }),
            GFP_KERNEL,
        )?;
        let close = CloseOnUnbind {
            cache: this.clone(),
            // SAFETY: Devres drops it, in process context, before the driver's module is unloaded.
            _drm: unsafe { DeviceOnly::new(drm) },
        };
        devres::register(dev, close, GFP_KERNEL)?;
        Ok(this)
    }

    /// Looks the pagemap up, and puts an idle one to use. If there is none, the result holds the lookup lock until one
    /// is put in.
    ///
    /// Fails with `EINTR` if a signal arrives while waiting, with `ENODEV` if the device is unbound or being unbound or
    /// its driver's module is being unloaded, or with `ENOMEM`; an idle pagemap stays idle then. May sleep.
    ///
    /// C: `drm_pagemap_cache_lock_lookup()` and `drm_pagemap_get_from_cache()`.
    pub fn lookup(self: &Arc<Self>) -> Result<Lookup<'_>> {
        let lock = mutex::lock_interruptible(&self.lookup)?;
        Ok(match self.find()? {
            Some(pagemap) => Lookup::Pagemap(pagemap),
            None => Lookup::Vacant(Vacant {
                cache: self,
                _lock: lock,
            }),
        })
    }

    /// Looks the pagemap up. If there is none, puts in the one that `make` returns.
    ///
    /// `make` is called with the lookup lock held, so that no two pagemaps are created at once. Fails as
    /// [`lookup`](Self::lookup), [`Vacant::fill`] and `make` do.
    pub fn get_or_create(
        self: &Arc<Self>,
        make: impl FnOnce() -> Result<PagemapRef>,
    ) -> Result<PagemapRef> {
        match self.lookup()? {
            Lookup::Pagemap(pagemap) => Ok(pagemap),
            Lookup::Vacant(vacant) => {
                let pagemap = make()?;
                vacant.fill(&pagemap)?;
                Ok(pagemap)
            }
        }
    }

    /// Returns the pagemap if it is in use. Never sleeps. C: `drm_pagemap_get_from_cache_if_active()`.
    pub fn get_if_active(&self) -> Option<PagemapRef> {
        let mut idle = self.shrinker.idle.lock();
        let pagemap = self.cached.access_mut(&mut idle).pagemap?;
        // SAFETY: By the type invariants of `Slot` the pagemap is valid while the lock is held.
        unsafe { Pagemap::get_unless_zero(pagemap) }
    }

    /// Implements [`lookup`](Self::lookup). The caller holds the lookup lock.
    fn find(self: &Arc<Self>) -> Result<Option<PagemapRef>> {
        let drm = self.drm()?;
        if drm.enter().is_none() {
            return Err(ENODEV);
        }
        // Creating a hold may sleep. So the loop creates one without the lock if it is needed, and looks again.
        let mut hold = None;
        loop {
            let mut idle = self.shrinker.idle.lock();
            let slot = self.cached.access_mut(&mut idle);
            if slot.closed {
                return Err(ENODEV);
            }
            let Some(pagemap) = slot.pagemap else {
                return Ok(None);
            };
            // SAFETY: By the type invariants of `Slot` the pagemap is valid while the lock is held.
            let active = unsafe { Pagemap::get_unless_zero(pagemap) };
            if active.is_some() {
                return Ok(active);
            }
            if let Some(hold) = hold.take() {
                // SAFETY: The pagemap has no references, so it is idle and in the list. It is removed from the list
                // before another thread can see the new reference.
                return Ok(Some(unsafe {
                    idle.remove(pagemap);
                    Pagemap::reinit(pagemap, hold)
                }));
            }
            drop(idle);
            hold = Some(DevHold::new(&drm, Some(self.clone()))?);
        }
    }

    /// Returns the DRM device. Fails with `ENODEV` if the cache is closed or the driver's module is being unloaded.
    fn drm(&self) -> Result<DrmRef> {
        let mut idle = self.shrinker.idle.lock();
        if self.cached.access_mut(&mut idle).closed {
            return Err(ENODEV);
        }
        // SAFETY: By the type invariants of `Slot`: the cache is open, and closing it takes the lock that is held.
        DrmRef::new(unsafe { self.drm.as_ref() })
    }

    /// Drops a reference to a pagemap that was put into a cache. Any context.
    ///
    /// # Safety
    ///
    /// The caller must own the reference; `cache` must be the cache of `pagemap`.
    pub(super) unsafe fn put(cache: &Cache, pagemap: NonNull<Pagemap>) {
        let mut idle = cache.shrinker.idle.lock();
        // SAFETY: The caller's reference keeps the pagemap.
        if !unsafe { pagemap.as_ref() }.refcount.dec_and_test() {
            // A lookup got a reference meanwhile. The thread that drops the last one takes the lock after this thread
            // has released it. The cache lives until then.
            return;
        }
        if cache.cached.access_mut(&mut idle).pagemap != Some(pagemap) {
            // The cache was closed. No other pointer to the pagemap is used.
            drop(idle);
            // SAFETY: As just said; the pagemap has its hold.
            unsafe { hold::destroy_later(pagemap) };
            return;
        }
        // SAFETY: The pagemap has no references, and it is in the slot of the cache, where other threads find it only
        // with the lock that is held.
        let hold = unsafe {
            let hold = Pagemap::take_hold(pagemap);
            idle.add(pagemap);
            hold
        };
        // The hold keeps the cache, and so the lock, until it is released.
        drop(idle);
        if let Some(hold) = hold {
            hold::release_later(hold);
        }
    }

    /// Removes an idle pagemap from its cache.
    ///
    /// # Safety
    ///
    /// `pagemap` must just have been removed from `idle`.
    pub(super) unsafe fn forget(pagemap: NonNull<Pagemap>, idle: &mut IdleList) {
        // SAFETY: An idle pagemap was put into a cache. The cache lives until it is closed, which takes the lock that
        // is held.
        if let Some(cache) = unsafe { pagemap.as_ref().cache.load(Relaxed).as_ref() } {
            cache.cached.access_mut(idle).pagemap = None;
        }
    }

    /// Closes the cache, and destroys its pagemap if it is idle. Sleeps.
    fn close(&self) {
        let mut idle = self.shrinker.idle.lock();
        let slot = self.cached.access_mut(&mut idle);
        slot.closed = true;
        let unused = slot.pagemap.take().filter(|pagemap| {
            // SAFETY: The pagemap was in the slot, and is valid while the lock is held.
            unsafe { pagemap.as_ref() }
                .refcount
                .as_atomic()
                .load(Relaxed)
                == 0
        });
        if let Some(pagemap) = unused {
            // SAFETY: Without references the pagemap is idle, and in the list.
            unsafe { idle.remove(pagemap) };
        }
        drop(idle);
        if let Some(pagemap) = unused {
            // SAFETY: No other pointer to the pagemap is used. The device is being unbound, so the driver's module is
            // still loaded. This is process context.
            unsafe { Pagemap::destroy(pagemap) };
        }
        // The pagemaps that the shrinker has removed have no hold that keeps the module: wait for them.
        hold::flush_destroyed();
    }
}

/// Closes a cache when it is dropped, which devres does when the device is unbound. Keeps the DRM device until then.
struct CloseOnUnbind {
    cache: Arc<Cache>,
    _drm: DeviceOnly,
}

impl Drop for CloseOnUnbind {
    fn drop(&mut self) {
        self.cache.close();
    }
}

/// The result of a lookup.
pub enum Lookup<'a> {
    /// A reference to the pagemap.
    Pagemap(PagemapRef),
    /// There is none. The caller may put one in.
    Vacant(Vacant<'a>),
}

/// An empty cache with its lookup lock held: only the owner of this can put a pagemap in.
#[must_use = "the lookup lock is released when this is dropped"]
pub struct Vacant<'a> {
    cache: &'a Arc<Cache>,
    _lock: Guard<'a, (), MutexBackend>,
}

impl Vacant<'_> {
    /// Puts a pagemap of this device in. C: `drm_pagemap_cache_set_pagemap()`.
    ///
    /// Fails with `ENODEV` if the cache was closed meanwhile, and with `EINVAL` if the pagemap belongs to another
    /// device or is in a cache already. The pagemap does not change then.
    pub fn fill(self, pagemap: &PagemapRef) -> Result {
        let cache = self.cache;
        if !ptr::eq(pagemap.drm(), cache.drm.as_ptr()) {
            return Err(EINVAL);
        }
        let mut idle = cache.shrinker.idle.lock();
        let slot = cache.cached.access_mut(&mut idle);
        if slot.closed {
            return Err(ENODEV);
        }
        pagemap.enter_cache(cache)?;
        // INVARIANT: The pagemap is in use. The slot was empty: only the holder of the lookup lock can have filled it
        // since the lookup.
        slot.pagemap = Some(NonNull::from(&**pagemap));
        Ok(())
    }
}
