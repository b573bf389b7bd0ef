// SPDX-License-Identifier: GPL-2.0

//! The refcounted description of a device's memory.
//!
//! A driver, the provider, embeds a [`Pagemap`] in its own object for the memory. Users hold counted references
//! ([`PagemapRef`]): device pages hold one through their zone-device data, mappings of device pages hold one, and so do
//! VMs that place memory there. While there are references, a [`hold`] keeps the DRM device and the driver's module, so
//! the operations can be called. The device may be unbound meanwhile; then the operations fail.
//!
//! # States
//!
//! - *In use*: the pagemap has references and a hold.
//! - *Idle*: it has no references and no hold, and is in a [`cache`](super::cache) until it is used again. Only a
//!   pagemap that was put into a cache has this state.
//! - *Dying*: it has no references. A work item calls the driver's `destroy`, and then releases the hold.
//!
//! # Locking
//!
//! References may be taken and dropped in any context but interrupts. Dropping the last one only schedules work; for a
//! pagemap in a cache it takes the lock of the [`Shrinker`](super::shrinker::Shrinker), a spinlock.
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
    mm::{live_mm, mmap_lock::MmapReadGuard}, //
};

pub use kernel_ext::bindings::drm_pagemap_ops as Ops;

/// A counted reference to a [`Pagemap`]. C: a `struct drm_pagemap *` from `drm_pagemap_get()`.
pub type PagemapRef = ARef<Pagemap>;

/// The description of a device's memory; it has the layout of `struct drm_pagemap`.
///
/// # Invariants
///
/// - `ops` points to operations that live as long as the driver's module.
/// - `drm` is valid as long as the object: `dev_hold` keeps it while there are references, and the driver after that.
/// - `dev_hold` is set while there are references. Only the thread with exclusive access to the object changes it: the
///   one that creates it, drops the last reference, or takes it into use again.
/// - `cache` is null or the cache that the pagemap was put into, and never changes again. The hold keeps the cache
///   while there are references. The cache of an idle pagemap is open, and therefore valid.
/// - `shrink_link` is the entry in the list of idle pagemaps, under the lock of that list, or in the list of dying
///   ones.
/// - A shared reference to the object implies a counted reference.
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

// SAFETY: Any thread may use and destroy a pagemap.
unsafe impl Send for Pagemap {}
// SAFETY: The fields are immutable, or change as the type invariants say.
unsafe impl Sync for Pagemap {}

impl Pagemap {
    /// Initializes a pagemap with one reference, which keeps `device` and the module of its driver. C:
    /// `drm_pagemap_init()`.
    ///
    /// Fails with `ENODEV` if the module is being unloaded, or with `ENOMEM`; nothing is held then.
    ///
    /// # Safety
    ///
    /// - The caller owns the first reference, and must convert it to a [`PagemapRef`] by [`from_raw`](ARef::from_raw).
    ///   The object must not move until the driver's `destroy` is called. If there is no such operation, the object
    ///   must be in a `KBox` of its own, which the core drops instead.
    /// - `dev_pagemap` must be valid as long as the object.
    /// - `ops` must be operations whose functions may be called with this object as their `struct drm_pagemap`. They
    ///   must live as long as the driver's module.
    pub unsafe fn new(
        device: &DrmDevice,
        dev_pagemap: *mut bindings::dev_pagemap,
        ops: *const Ops,
    ) -> impl PinInit<Self, Error> + use<'_> {
        // INVARIANT: The caller owns the only reference to the new object, which has a hold.
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

    /// Returns the C object.
    pub fn as_raw(&self) -> *mut ext::drm_pagemap {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// Creates a reference from a pointer to a C object.
    ///
    /// # Safety
    ///
    /// `ptr` must be an initialized pagemap with at least one counted reference during `'a`.
    pub unsafe fn from_raw<'a>(ptr: *mut ext::drm_pagemap) -> &'a Self {
        // SAFETY: By this function's requirements; `Pagemap` has the layout of `struct drm_pagemap`.
        unsafe { &*ptr.cast() }
    }

    /// Returns a counted reference if the pagemap has at least one already. C: `drm_pagemap_get_unless_zero()`.
    ///
    /// # Safety
    ///
    /// `this` must be an initialized pagemap that is not freed during the call.
    pub unsafe fn get_unless_zero(this: NonNull<Self>) -> Option<PagemapRef> {
        // SAFETY: The caller guarantees that the object, and so its count, is valid.
        let counted = unsafe {
            ext::refcount_inc_not_zero((&raw const (*this.as_ptr()).refcount).cast_mut().cast())
        };
        // SAFETY: The incremented count is that of the new reference.
        counted.then(|| unsafe { ARef::from_raw(this) })
    }

    /// Returns the device that owns the memory.
    pub fn drm(&self) -> &DrmDevice {
        // SAFETY: There is a counted reference, and so a hold on the device.
        unsafe { DrmDevice::from_raw(self.drm) }
    }

    /// Returns the `struct dev_pagemap` of the pages.
    pub fn dev_pagemap(&self) -> *mut bindings::dev_pagemap {
        self.pagemap
    }

    /// Returns the owner of the pages: its devices may map them without a migration. None only if a C driver set none.
    pub fn owner(&self) -> Option<OwnerId> {
        // SAFETY: It is the owner of device-private pages of this core.
        NonNull::new(self.owner_ptr()).map(|owner| unsafe { OwnerId::from_raw(owner) })
    }

    /// Returns the `owner` of the pages, which is set before the pages are created. Compared only, never dereferenced.
    pub(crate) fn owner_ptr(&self) -> *mut c_void {
        // SAFETY: The `struct dev_pagemap` lives as long as the object.
        unsafe { (*self.pagemap).owner }
    }

    /// Returns the driver's operations.
    pub fn ops(&self) -> &Ops {
        // SAFETY: There is a counted reference, and so a hold on the driver's module.
        unsafe { &*self.ops }
    }

    /// Maps `1 << order` pages from `page` on for a device, which may be the owner of the memory, until
    /// [`unmap_for`](Self::unmap_for). Must not sleep for long, nor allocate memory with reclaim. C: `device_map` of
    /// `struct drm_pagemap_ops`.
    ///
    /// Fails with `EOPNOTSUPP` if the driver has no such operation, and with `EFAULT` if the device cannot reach the
    /// pages.
    ///
    /// # Safety
    ///
    /// `dev` must be a valid device. The pages must be contiguous, belong to this memory, and be in use until they are
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
        // The driver unmaps the segment by these fields.
        if segment.is_system() || segment.order() != order || segment.dir() != dir {
            kernel::pr_warn_once!(
                "a driver's device_map returned another kind of mapping than requested\n"
            );
            // SAFETY: The driver has just mapped it.
            unsafe { self.unmap_for(dev, &segment) };
            return Err(EFAULT);
        }
        Ok(segment)
    }

    /// Undoes [`map_for`](Self::map_for), under the same conditions. C: `device_unmap`.
    ///
    /// # Safety
    ///
    /// `map_for()` must have returned the segment for this device. Must be called once for each.
    #[cold]
    pub(crate) unsafe fn unmap_for(&self, dev: *mut bindings::device, segment: &Segment) {
        if let Some(unmap) = self.ops().device_unmap {
            // SAFETY: By this function's requirements; `Segment` has the layout of `struct drm_pagemap_addr`.
            unsafe { unmap(self.as_raw(), dev, ptr::from_ref(segment).cast()) };
        }
    }

    /// Migrates the pages in `span` of a process to the device, as far as its driver can. For `timeslice_ms`
    /// milliseconds, CPU faults do not migrate them back. C: `drm_pagemap_populate_mm()`.
    ///
    /// This is for the memory of any driver. For its own memory, a driver uses
    /// [`DeviceMemory::populate`](super::provider::DeviceMemory::populate), which returns what was migrated. Sleeps;
    /// takes the mmap lock. Fails with `EFAULT` if the process has exited, with `EINTR` if the thread is being killed, with
    /// `ENODEV` if the device is unbound, and as the driver does.
    pub fn populate(&self, mm: &Mm, span: Range<usize>, timeslice_ms: u32) -> Result {
        let populate = self.ops().populate_mm.ok_or(ENODEV)?;
        let mm = live_mm::get(mm, 0)?;
        let _mmap = MmapReadGuard::lock_killable(&mm)?;
        // SAFETY: As the operation requires, the mm has users and its mmap lock is held for reading. The caller has a
        // counted reference to the pagemap.
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

    /// Records that the pagemap is in `cache`, whose lock the caller holds. Fails with `EINVAL` if it is in a cache
    /// already.
    pub(super) fn enter_cache(&self, cache: &Arc<Cache>) -> Result {
        self.cache
            .cmpxchg(ptr::null(), Arc::as_ptr(cache), Relaxed)
            .map_err(|_| EINVAL)?;
        // SAFETY: The caller has a counted reference, so no thread takes the hold out. Only the thread that set `cache`
        // writes to the hold.
        if let Some(hold) = unsafe { &mut *self.dev_hold.get() } {
            hold.cache = Some(cache.clone());
        }
        Ok(())
    }

    /// Takes a pagemap into use again, and returns its first reference. C: `drm_pagemap_reinit()`.
    ///
    /// # Safety
    ///
    /// `this` must be a pagemap without references to which the caller has exclusive access, and be in no list. `hold`
    /// must be on its device, and on its cache if it has one.
    pub(super) unsafe fn reinit(this: NonNull<Self>, hold: KBox<DevHold>) -> PagemapRef {
        // SAFETY: The caller has exclusive access. The new count is that of the returned reference.
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
    /// `this` must be a pagemap without references to which the caller has exclusive access.
    pub(crate) unsafe fn take_hold(this: NonNull<Self>) -> Option<KBox<DevHold>> {
        // SAFETY: The caller has exclusive access.
        unsafe { (*(*this.as_ptr()).dev_hold.get()).take() }
    }

    /// Calls the driver's `destroy`, or frees the object if there is none.
    ///
    /// # Safety
    ///
    /// `this` must be a pagemap without references, and no other pointer to it may be used. The driver's module must
    /// stay loaded during the call. Process context.
    pub(crate) unsafe fn destroy(this: NonNull<Self>) {
        // SAFETY: The driver's module, and so its operations, stay loaded.
        let destroy = unsafe { (*(*this.as_ptr()).ops).destroy };
        match destroy {
            // SAFETY: As `Pagemap::new()` says, the object is the driver's again. This is neither atomic context nor
            // reclaim.
            Some(destroy) => unsafe { destroy(this.as_ptr().cast(), false) },
            // SAFETY: As `Pagemap::new()` says, an object without the operation is in a box of its own.
            None => drop(unsafe { KBox::from_raw(this.as_ptr()) }),
        }
    }
}

// SAFETY: The reference count keeps the object.
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
        // The caller has the only reference. The thread that put the pagemap into a cache had another one: to see that
        // one dropped is to see `cache`.
        refcount.as_atomic().load(Acquire);
        // SAFETY: The hold keeps the cache while there are references.
        match unsafe { cache.load(Relaxed).as_ref() } {
            // SAFETY: The caller's reference is handed over.
            Some(cache) => unsafe { Cache::put(cache, this) },
            None => {
                if refcount.dec_and_test() {
                    // SAFETY: That was the last reference, and the hold is still set.
                    unsafe { hold::destroy_later(this) };
                }
            }
        }
    }
}

// SAFETY: The list of dying pagemaps is linked by the first pointer of `shrink_link`, which has no other use then.
unsafe impl Linked for Pagemap {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is created.
        unsafe { (&raw mut (*this.as_ptr()).shrink_link).cast() }
    }
}
