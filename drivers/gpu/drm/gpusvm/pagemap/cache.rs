// SPDX-License-Identifier: GPL-2.0

//! A cache of one pagemap, so that one that is not used now need not be made anew.
//!
//! To make a pagemap is to make a `struct page` for each page of the device's memory. So one that
//! lost its last reference is kept, without a hold on its device and module, until it is wanted
//! again, memory gets short, or the device is unbound.
//!
//! # States
//!
//! Of a pagemap that was put into a cache, while the lock of the [`Shrinker`] is not held:
//!
//! - *in use*: there are references. The cache has it, or has been closed.
//! - *idle*: there are none. The cache has it, and it is in the shrinker's list.
//! - *dying*: there are none, and neither the cache nor the list know it.
//!
//! The last reference is given back with the lock held, so that there is nothing in between. In
//! particular a lookup never has to wait for a pagemap that is on its way from one to another, and
//! never finds one that is not wholly there.
//!
//! The cache closes when the device is unbound, and from then on has nothing; a pagemap that is
//! still in use is destroyed when its last reference goes, without the cache. That may be long
//! after: its hold keeps the cache's memory as well.
//!
//! # Locking
//!
//! The *lookup lock*, a mutex, is held from a lookup that finds nothing to the pagemap that is made
//! for it. It is outermost but for the locks of whoever looks up; a pagemap is made under it. Inside
//! of it is the shrinker's lock, which protects what the cache has.
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
    /// Only compared, but as long as the cache is open.
    drm: NonNull<DrmDevice>,
    shrinker: Arc<Shrinker>,
    kept: LockedBy<Slot, IdleList>,
    #[pin]
    lookup: Mutex<()>,
}

/// What a cache has.
///
/// # Invariants
///
/// `pagemap` is valid, and either in use or idle; its `cache` is this one. A closed cache has none. The DRM device of
/// one that is not closed is valid, as is the module of its driver.
struct Slot {
    pagemap: Option<NonNull<Pagemap>>,
    closed: bool,
}

// SAFETY: Pagemaps are for any thread.
unsafe impl Send for Slot {}

// SAFETY: DRM devices are for any thread, as is the rest.
unsafe impl Send for Cache {}
// SAFETY: As above.
unsafe impl Sync for Cache {}

impl Cache {
    /// An empty cache, which is closed when `dev` is unbound.
    /// C: `drm_pagemap_cache_create_devm()`.
    ///
    /// `dev` is what `drm` sits on. Fails with `ENOMEM`; or with `EINVAL` if it is another device.
    pub fn new_devm(
        dev: &Device<Bound>,
        drm: &DrmDevice,
        shrinker: &Arc<Shrinker>,
    ) -> Result<Arc<Self>> {
        check_parent(dev, drm)?;
        let nothing = LockedBy::new(
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
                kept: nothing,
                lookup <- new_mutex!((), "gpusvm.pagemap_lookup"),
            }),
            GFP_KERNEL,
        )?;
        let closer = Closer {
            cache: this.clone(),
            // SAFETY: It is dropped by devres, in process context, before the driver's module goes.
            _drm: unsafe { DeviceOnly::new(drm) },
        };
        devres::register(dev, closer, GFP_KERNEL)?;
        Ok(this)
    }

    /// Looks for the pagemap; one that nobody uses is made ready for use. The lookup lock is
    /// held on if there is none, until one has been put in.
    ///
    /// Fails with `EINTR` if a signal comes first, with `ENODEV` if the device is or is being
    /// unbound or its driver unloaded, or with `ENOMEM`; an unused pagemap stays where it is then.
    /// May sleep.
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

    /// Looks for the pagemap, and puts in what `make` makes if there is none.
    ///
    /// `make` is called with the lookup lock held, so that no two pagemaps are made at once. Fails
    /// as [`lookup`](Self::lookup), [`Vacant::fill`] and `make` do.
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

    /// The pagemap, if it is in use. Never sleeps.
    /// C: `drm_pagemap_get_from_cache_if_active()`.
    pub fn get_if_active(&self) -> Option<PagemapRef> {
        let mut idle = self.shrinker.idle.lock();
        let pagemap = self.kept.access_mut(&mut idle).pagemap?;
        // SAFETY: What the cache has is valid, by the type invariants of `Slot`.
        unsafe { Pagemap::get_unless_zero(pagemap) }
    }

    /// What [`lookup`](Self::lookup) does with the lookup lock held.
    fn find(self: &Arc<Self>) -> Result<Option<PagemapRef>> {
        let drm = self.drm()?;
        if drm.enter().is_none() {
            return Err(ENODEV);
        }
        // To make a hold may sleep. It is made when there is need of one, without the lock, and
        // then all is looked at again.
        let mut hold = None;
        loop {
            let mut idle = self.shrinker.idle.lock();
            let slot = self.kept.access_mut(&mut idle);
            if slot.closed {
                return Err(ENODEV);
            }
            let Some(pagemap) = slot.pagemap else {
                return Ok(None);
            };
            // SAFETY: What the cache has is valid, by the type invariants of `Slot`.
            let active = unsafe { Pagemap::get_unless_zero(pagemap) };
            if active.is_some() {
                return Ok(active);
            }
            if let Some(hold) = hold.take() {
                // SAFETY: The pagemap has no references, so that it is idle, and in the list. It
                // comes out of it here, before anybody learns of its reference.
                return Ok(Some(unsafe {
                    idle.remove(pagemap);
                    Pagemap::reinit(pagemap, hold)
                }));
            }
            drop(idle);
            hold = Some(DevHold::new(&drm, Some(self.clone()))?);
        }
    }

    /// The DRM device. Fails with `ENODEV` if the cache is closed, or the driver's module on its way out.
    fn drm(&self) -> Result<DrmRef> {
        let mut idle = self.shrinker.idle.lock();
        if self.kept.access_mut(&mut idle).closed {
            return Err(ENODEV);
        }
        // SAFETY: By the type invariants of `Slot`; who closes the cache takes the lock.
        DrmRef::new(unsafe { self.drm.as_ref() })
    }

    /// Gives back a reference to a pagemap that was put into a cache. Any context.
    ///
    /// # Safety
    ///
    /// The caller must have a reference, which it gives up; `cache` must be the cache of `pagemap`.
    pub(super) unsafe fn put(cache: &Cache, pagemap: NonNull<Pagemap>) {
        let mut idle = cache.shrinker.idle.lock();
        // SAFETY: The caller's reference keeps the pagemap.
        if !unsafe { pagemap.as_ref() }.refcount.dec_and_test() {
            // A lookup was faster. Whoever gives back the last reference takes the lock after this
            // one lets it go, and the cache lives until then.
            return;
        }
        if cache.kept.access_mut(&mut idle).pagemap != Some(pagemap) {
            // The cache was closed. Nobody but this function knows the pagemap.
            drop(idle);
            // SAFETY: As just said; the hold is there.
            unsafe { hold::destroy_later(pagemap) };
            return;
        }
        // SAFETY: The pagemap has no references, and nobody else can work on it while the lock is
        // held. It is what the cache has.
        let hold = unsafe {
            let hold = Pagemap::take_hold(pagemap);
            idle.add(pagemap);
            hold
        };
        // The hold keeps the cache, and so the lock, until it is let go.
        drop(idle);
        if let Some(hold) = hold {
            hold::release_later(hold);
        }
    }

    /// Has the cache of an idle pagemap forget it.
    ///
    /// # Safety
    ///
    /// `pagemap` must have been in `idle` just now.
    pub(super) unsafe fn forget(pagemap: NonNull<Pagemap>, idle: &mut IdleList) {
        // SAFETY: An idle pagemap was put into a cache. It lives until it is closed, which takes
        // the lock that is held.
        if let Some(cache) = unsafe { pagemap.as_ref().cache.load(Relaxed).as_ref() } {
            cache.kept.access_mut(idle).pagemap = None;
        }
    }

    /// Closes the cache, and destroys its pagemap if nobody uses it. Sleeps.
    fn close(&self) {
        let mut idle = self.shrinker.idle.lock();
        let slot = self.kept.access_mut(&mut idle);
        slot.closed = true;
        let unused = slot.pagemap.take().filter(|pagemap| {
            // SAFETY: What the cache had is valid while the lock is held.
            unsafe { pagemap.as_ref() }
                .refcount
                .as_atomic()
                .load(Relaxed)
                == 0
        });
        if let Some(pagemap) = unused {
            // SAFETY: Without references it is idle, and in the list.
            unsafe { idle.remove(pagemap) };
        }
        drop(idle);
        if let Some(pagemap) = unused {
            // SAFETY: Nobody knows the pagemap any more. The driver is being unbound, so that its
            // module is there. This is process context.
            unsafe { Pagemap::destroy(pagemap) };
        }
        // What the shrinker took out has nothing else that keeps the module.
        hold::flush_destroyed();
    }
}

/// Closes a cache when it is dropped, that is when the device is unbound. It keeps the DRM device until then.
struct Closer {
    cache: Arc<Cache>,
    _drm: DeviceOnly,
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.cache.close();
    }
}

/// What a lookup found.
pub enum Lookup<'a> {
    /// The pagemap, in use now.
    Pagemap(PagemapRef),
    /// None, and the right to put one in.
    Vacant(Vacant<'a>),
}

/// A cache that has no pagemap, with its lookup lock held: only this can put one in.
#[must_use = "the lookup lock is released when this is dropped"]
pub struct Vacant<'a> {
    cache: &'a Arc<Cache>,
    _lock: Guard<'a, (), MutexBackend>,
}

impl Vacant<'_> {
    /// Puts a pagemap of this device in. C: `drm_pagemap_cache_set_pagemap()`.
    ///
    /// Fails with `ENODEV` if the cache was closed meanwhile, and with `EINVAL` if the pagemap is
    /// another device's or in a cache already: it is as before then.
    pub fn fill(self, pagemap: &PagemapRef) -> Result {
        let cache = self.cache;
        if !ptr::eq(pagemap.drm(), cache.drm.as_ptr()) {
            return Err(EINVAL);
        }
        let mut idle = cache.shrinker.idle.lock();
        let slot = cache.kept.access_mut(&mut idle);
        if slot.closed {
            return Err(ENODEV);
        }
        pagemap.enter_cache(cache)?;
        // INVARIANT: The pagemap is in use. There was none before: only who has the lookup lock
        // can have put one in since the lookup.
        slot.pagemap = Some(NonNull::from(&**pagemap));
        Ok(())
    }
}
