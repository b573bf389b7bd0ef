// SPDX-License-Identifier: GPL-2.0

//! A device's memory, as those see it that have pages there.
//!
//! A [`Pagemap`] is part of a larger object of its driver, the provider. Its users hold counted
//! references ([`PagemapRef`]): device pages through their zone-device data, mappings of such pages,
//! VMs whose memory is to be placed there. While there are any, a [`hold`] keeps the DRM
//! device and the driver's module, so that the operations can be called; the device may be unbound
//! meanwhile, and the operations then fail.
//!
//! # States
//!
//! - *In use*: there are references, and a hold.
//! - *Idle*: there are none, and no hold: the pagemap waits in a [`cache`](super::cache) for somebody
//!   to use it again. Only one that was put into a cache may be so.
//! - *Dying*: there are none. A work item calls the driver's `destroy`, and then gives up the hold.
//!
//! # Locking
//!
//! References may be taken and given back in any context but interrupts. Giving back the last only
//! schedules work; it takes the lock of the [`Shrinker`](super::shrinker::Shrinker), a spinlock.
//!
//! C: `struct drm_pagemap`.

use super::{
    cache::Cache,
    hold::{self, DevHold},
    owner::OwnerId, //
};
use crate::segment::Segment;
use core::{
    cell::UnsafeCell,
    ffi::c_void,
    ops::Range,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings,
    error::to_result,
    interop::list::CListHead,
    mm::Mm,
    prelude::*,
    sync::{
        aref::{ARef, AlwaysRefCounted},
        atomic::{Acquire, Atomic, Relaxed},
        Arc,
        Refcount, //
    },
};
use kernel_ext::{
    bindings as ext,
    dma::Direction,
    drm::device::DrmDevice,
    list::llist::Linked,
    mm::live_mm, //
};

pub use kernel_ext::bindings::drm_pagemap_ops as Ops;

/// A counted reference to a [`Pagemap`]. C: a `struct drm_pagemap *` from `drm_pagemap_get()`.
pub type PagemapRef = ARef<Pagemap>;

/// A device's memory; it has the layout of `struct drm_pagemap`.
///
/// # Invariants
///
/// - `ops` points to operations that live as long as the driver's module.
/// - `drm` is valid while the provider is: `dev_hold` keeps it while there are references, and the
///   driver after that.
/// - `dev_hold` is there while there are references, and changed only by who has the only right to
///   the object: who makes it, who gave back the last reference, who takes it into use again.
/// - `cache` is null or the cache that the pagemap was put into, for good. The hold keeps it while
///   there are references; of an idle pagemap it is not closed, which keeps it as well.
/// - `shrink_link` is the place in the list of the idle, under the lock of that list, or among those
///   that are dying.
/// - A shared reference to the object means that there is a counted reference.
#[repr(C)]
#[pin_data]
pub struct Pagemap {
    pub(crate) ops: *const Ops,
    pub(crate) refcount: Refcount,
    pub(crate) drm: *mut bindings::drm_device,
    pub(crate) pagemap: *mut bindings::dev_pagemap,
    pub(crate) dev_hold: UnsafeCell<Option<KBox<DevHold>>>,
    pub(crate) cache: Atomic<*const Cache>,
    #[pin]
    pub(crate) shrink_link: CListHead,
}

// SAFETY: A pagemap may be used and destroyed from any thread.
unsafe impl Send for Pagemap {}
// SAFETY: Its fields are immutable, or changed as the type invariants say.
unsafe impl Sync for Pagemap {}

impl Pagemap {
    /// A pagemap with one reference, which keeps `device` and the module of its driver.
    /// C: `drm_pagemap_init()`.
    ///
    /// Fails with `ENODEV` if the module is on its way out, or with `ENOMEM`; nothing is held then.
    ///
    /// # Safety
    ///
    /// - The first reference is the caller's, and has to be given back by the [`PagemapRef`] that
    ///   [`from_raw`](ARef::from_raw) makes of it. Until the driver's `destroy` is called, the
    ///   object must stay where it is; without that operation it must be in a `KBox` of its own,
    ///   which is dropped in its place.
    /// - `dev_pagemap` must stay valid as long.
    /// - `ops` must be operations whose functions may be called with this object as their
    ///   `struct drm_pagemap`, and live as long as the driver's module.
    pub unsafe fn new(
        device: &DrmDevice,
        dev_pagemap: *mut bindings::dev_pagemap,
        ops: *const Ops,
    ) -> impl PinInit<Self, Error> + use<'_> {
        // INVARIANT: The new object's only reference is the caller's, and there is a hold.
        try_pin_init!(Self {
            ops,
            refcount: Refcount::new(1),
            drm: device.as_raw(),
            pagemap: dev_pagemap,
            dev_hold: UnsafeCell::new(Some(DevHold::new(device, None)?)),
            cache: Atomic::new(ptr::null()),
            shrink_link <- CListHead::new(),
        })
    }

    /// The C object.
    pub fn as_raw(&self) -> *mut ext::drm_pagemap {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// A reference to a C object.
    ///
    /// # Safety
    ///
    /// `ptr` must be an initialized pagemap with at least one counted reference during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut ext::drm_pagemap) -> &'a Self {
        // SAFETY: By this function's requirements; the layout is the same.
        unsafe { &*ptr.cast() }
    }

    /// A counted reference to what may be without one; none if it is.
    /// C: `drm_pagemap_get_unless_zero()`.
    ///
    /// # Safety
    ///
    /// `this` must be an initialized pagemap that is not freed during the call.
    pub unsafe fn get_unless_zero(this: NonNull<Self>) -> Option<PagemapRef> {
        // SAFETY: The count is valid as long as the object.
        let counted = unsafe {
            ext::refcount_inc_not_zero((&raw const (*this.as_ptr()).refcount).cast_mut().cast())
        };
        // SAFETY: If it was counted, the reference is handed over.
        counted.then(|| unsafe { ARef::from_raw(this) })
    }

    /// The device whose memory it is.
    pub fn drm(&self) -> &DrmDevice {
        // SAFETY: There is a counted reference, and so a hold on the device.
        unsafe { DrmDevice::from_raw(self.drm) }
    }

    /// The pages of the memory, `struct dev_pagemap`.
    pub fn dev_pagemap(&self) -> *mut bindings::dev_pagemap {
        self.pagemap
    }

    /// Who may be mapped these pages without migrating them; none only if a driver in C says so.
    pub fn owner(&self) -> Option<OwnerId> {
        // SAFETY: It is the owner of these pages.
        NonNull::new(self.owner_ptr()).map(|owner| unsafe { OwnerId::from_raw(owner) })
    }

    /// The `owner` of the pages, which is written before there are any. Compared only, never dereferenced.
    pub(crate) fn owner_ptr(&self) -> *mut c_void {
        // SAFETY: The pages' description lives as long as the object.
        unsafe { (*self.pagemap).owner }
    }

    /// The driver's operations.
    pub fn ops(&self) -> &Ops {
        // SAFETY: There is a counted reference, and so a hold on the driver's module.
        unsafe { &*self.ops }
    }

    /// Maps `1 << order` pages from `page` on for a device, the memory's own or another, until
    /// [`unmap_for`](Self::unmap_for). Must not sleep for long, nor allocate memory with reclaim. C:
    /// `device_map` of `struct drm_pagemap_ops`.
    ///
    /// Fails with `EOPNOTSUPP` if the driver maps nothing, `EFAULT` if that device cannot reach the pages.
    ///
    /// # Safety
    ///
    /// `dev` must be a device, and the pages be contiguous, of this memory and in use, until they are
    /// unmapped.
    #[cold]
    pub(crate) unsafe fn map_for(
        &self,
        dev: *mut bindings::device,
        page: NonNull<bindings::page>,
        order: u32,
        dir: Direction,
    ) -> Result<Segment> {
        let map = self.ops().device_map.ok_or(EOPNOTSUPP)?;
        // SAFETY: By this function's requirements.
        let raw = unsafe { map(self.as_raw(), dev, page.as_ptr(), order, dir.c()) };
        let segment = Segment::from_raw(raw);
        if segment.is_failed() {
            return Err(EFAULT);
        }
        // It is unmapped by what it says.
        if segment.is_system() || segment.order() != order || segment.dir() != dir {
            kernel::pr_warn_once!("a pagemap maps its memory as what it is not\n");
            // SAFETY: It was mapped just now.
            unsafe { self.unmap_for(dev, &segment) };
            return Err(EFAULT);
        }
        Ok(segment)
    }

    /// Undoes [`map_for`](Self::map_for), under the same conditions. C: `device_unmap`.
    ///
    /// # Safety
    ///
    /// The segment must be what was mapped for this device, and be unmapped once.
    #[cold]
    pub(crate) unsafe fn unmap_for(&self, dev: *mut bindings::device, segment: &Segment) {
        if let Some(unmap) = self.ops().device_unmap {
            // SAFETY: By this function's requirements; the layout is the same.
            unsafe { unmap(self.as_raw(), dev, ptr::from_ref(segment).cast()) };
        }
    }

    /// Moves what is in `span` of a process to the device, as far as its driver can, and has it stay
    /// there for `timeslice_ms` milliseconds even if the CPU touches it.
    /// C: `drm_pagemap_populate_mm()`.
    ///
    /// For memory of whatever driver; of its own type, a driver rather uses what
    /// [`DeviceMemory::populate`](super::provider::DeviceMemory::populate) tells. Sleeps; takes the mmap lock.
    /// Fails with `EFAULT` if the process is gone, `ENODEV` if the device is, and as the driver says.
    pub fn populate(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result {
        let populate = self.ops().populate_mm.ok_or(ENODEV)?;
        let mm = live_mm::get(mm, 0)?;
        let _mmap = mm.mmap_read_lock();
        // SAFETY: The operation is called as C does it: the process has users and its mmap lock is
        // held for reading; there is a counted reference to the pagemap.
        to_result(unsafe {
            populate(
                self.as_raw(),
                span.start,
                span.end,
                mm.as_raw(),
                timeslice_ms as usize,
            )
        })
    }

    /// Notes that the pagemap is in `cache` from now on, whose lock the caller holds. Fails with
    /// `EINVAL` if it is in one already.
    pub(super) fn enter_cache(&self, cache: &Arc<Cache>) -> Result {
        self.cache
            .cmpxchg(ptr::null(), Arc::as_ptr(cache), Relaxed)
            .map_err(|_| EINVAL)?;
        // SAFETY: There is a counted reference, the caller's, so that nobody takes the hold out;
        // and only who wrote the pointer writes to it.
        if let Some(hold) = unsafe { &mut *self.dev_hold.get() } {
            hold.cache = Some(cache.clone());
        }
        Ok(())
    }

    /// Takes a pagemap into use again, and returns its first reference. C: `drm_pagemap_reinit()`.
    ///
    /// # Safety
    ///
    /// `this` must be a pagemap without references that nobody else works on, and in no list. The
    /// hold must be one on its device, and on its cache if it has one.
    pub(super) unsafe fn reinit(this: NonNull<Self>, hold: KBox<DevHold>) -> PagemapRef {
        // SAFETY: Nobody else looks at the hold, by this function's requirements. The new count is
        // that of the reference that is returned.
        unsafe {
            *(*this.as_ptr()).dev_hold.get() = Some(hold);
            (*this.as_ptr()).refcount.set(1);
            ARef::from_raw(this)
        }
    }

    /// Takes the hold out.
    ///
    /// # Safety
    ///
    /// `this` must be a pagemap without references that nobody else works on.
    pub(crate) unsafe fn take_hold(this: NonNull<Self>) -> Option<KBox<DevHold>> {
        // SAFETY: Nobody else looks at the hold, by this function's requirements.
        unsafe { (*(*this.as_ptr()).dev_hold.get()).take() }
    }

    /// Has the driver free a pagemap.
    ///
    /// # Safety
    ///
    /// `this` must be a pagemap without references that nobody knows any more. The driver's module
    /// must be kept meanwhile. Process context.
    pub(crate) unsafe fn destroy(this: NonNull<Self>) {
        // SAFETY: The operations live as long as the driver's module.
        let destroy = unsafe { (*(*this.as_ptr()).ops).destroy };
        match destroy {
            // SAFETY: As `Pagemap::new()` says, the object is the driver's again. This is neither
            // atomic context nor reclaim.
            Some(destroy) => unsafe { destroy(this.as_ptr().cast(), false) },
            // SAFETY: Without the operation it is in a box, as `Pagemap::new()` says.
            None => drop(unsafe { KBox::from_raw(this.as_ptr()) }),
        }
    }
}

// SAFETY: The reference count is what keeps the object.
unsafe impl AlwaysRefCounted for Pagemap {
    fn inc_ref(&self) {
        self.refcount.inc();
    }

    unsafe fn dec_ref(this: NonNull<Self>) {
        // SAFETY: The caller's reference keeps the object.
        let (refcount, cache) = unsafe { (&this.as_ref().refcount, &this.as_ref().cache) };
        // CAST: `Refcount` is transparent over `refcount_t`.
        let raw: *mut bindings::refcount_t = ptr::from_ref(refcount).cast_mut().cast();
        // SAFETY: The count is valid.
        if unsafe { bindings::refcount_dec_not_one(raw) } {
            return;
        }
        // There is only the caller's reference. If the pagemap was put into a cache, whoever did it
        // had another one then: seeing that one gone is seeing the cache.
        refcount.as_atomic().load(Acquire);
        // SAFETY: The hold keeps the cache while there are references.
        match unsafe { cache.load(Relaxed).as_ref() } {
            // SAFETY: The caller's reference is handed on.
            Some(cache) => unsafe { Cache::put(cache, this) },
            None => {
                if refcount.dec_and_test() {
                    // SAFETY: That was the last reference, and the hold is still there.
                    unsafe { hold::destroy_later(this) };
                }
            }
        }
    }
}

// SAFETY: The next object is kept in the first pointer of the link, which is used for nothing else
// when a pagemap is dying.
unsafe impl Linked for Pagemap {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is made.
        unsafe { (&raw mut (*this.as_ptr()).shrink_link).cast() }
    }
}
