// SPDX-License-Identifier: GPL-2.0

//! GEM objects of a driver: lookup by handle, export, CPU mappings, and lists of objects that do not
//! keep them alive.
//!
//! DRM creates objects for a driver that are not `kernel::drm`'s: the frame buffers of
//! `DRM_IOCTL_MODE_CREATE_DUMB`, and imports. Their handles are in the same files, so a handle
//! alone does not tell that its object has the driver's type.
//!
//! What is imported from other devices becomes an object of the driver without pages, see
//! [`gem_import`].
//!
//! C header: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

use crate::{
    bindings as ext,
    gem_import::{
        self,
        DmaBuf, //
    },
    gem_list::{
        GemList,
        Room, //
    },
    gem_mmap::{
        OwnPagesFuncs,
        ShmemVmOps, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    drm::{
        self,
        driver::AllocImpl,
        gem::{
            shmem,
            BaseObject,
            DriverObject,
            IntoGEMObject, //
        }, //
    },
    error::to_result,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    }, //
};

/// An object whose pages may be the driver's own.
pub trait CpuPages: DriverObject {
    /// Calls `f` with the page at `index` for a CPU mapping, if there is one. An object that gives up
    /// or moves its pages does so when no call of `f` runs, and then calls
    /// [`unmap_cpu`](GemKind::unmap_cpu) before it frees them. The caller may hold the mmap lock or
    /// the object's reservation lock. Sleeps.
    fn with_page<R>(
        object: &shmem::Object<Self>,
        index: usize,
        f: impl FnOnce(&Page) -> R,
    ) -> Option<R>;

    /// Keeps the pages of an object with pages of the driver's own until [`unpin`](Self::unpin): an
    /// importer of its dma-buf has their addresses. The caller holds the reservation lock.
    fn pin(object: &shmem::Object<Self>) -> Result;

    /// Ends a [`pin`](Self::pin).
    fn unpin(object: &shmem::Object<Self>);

    /// Returns the memory that an object with pages of the driver's own has. Must not sleep.
    fn residency(&self) -> Residency;

    /// Returns an error if the object must not be mapped by the CPU.
    fn may_map(&self) -> Result;

    /// Returns an error if the object must not be exported as a dma-buf.
    fn may_export(&self) -> Result;

    /// Called before the object is exported as a dma-buf. Returns an error if it must not be. An
    /// exported object does not give up its contents any more.
    fn begin_export(&self) -> Result;

    /// Returns the arguments of an object that imports `source`, a dma-buf of another device.
    fn import(source: DmaBuf) -> Self::Args;

    /// Allocates all pages of `object`, a shmem one, before shmem itself would: killable, and
    /// counted by the driver. Its error is returned to the caller of `mmap()` or of the export. The
    /// caller may hold the mmap lock.
    fn populate(object: &shmem::Object<Self>) -> Result;

    /// Returns the kind of such objects from the device's data, which has it before objects are
    /// created.
    fn kind(data: &<Self::Driver as drm::Driver>::Data) -> Option<&GemKind<shmem::Object<Self>>>;
}

/// Identifies the objects of type `O` among all objects in a file.
///
/// # Invariants
///
/// An object that has `shmem` or `own` as its functions is an `O`: only this type uses these
/// tables, and only for such objects.
pub struct GemKind<O> {
    /// For objects with shmem pages.
    shmem: KBox<bindings::drm_gem_object_funcs>,
    /// For objects with pages of the driver's own.
    own: KBox<bindings::drm_gem_object_funcs>,
    /// The functions of CPU mappings of objects with shmem pages, to which `shmem` points.
    _vm_ops: KBox<bindings::vm_operations_struct>,
    /// DRM's function that frees an object.
    free: unsafe extern "C" fn(*mut bindings::drm_gem_object),
    /// The lists, by [`Listing`]. Have only objects whose functions are `shmem` or `own`.
    lists: [Pin<KBox<GemList>>; 2],
    _objects: PhantomData<fn() -> O>,
}

/// The kind of pages of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of shmem.
    Shmem,
    /// The driver's own: the CPU maps them by [`CpuPages::with_page`], and the object never gets
    /// shmem pages.
    Own,
}

/// A list of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Objects whose contents may be purged.
    Purgeable,
    /// Objects that may be evicted.
    Evictable,
}

/// The memory that an object has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Residency {
    /// None.
    None,
    /// Memory of the device.
    Device,
    /// System memory.
    System,
}

impl Residency {
    /// Returns the residency with this number.
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Device,
            2 => Self::System,
            _ => Self::None,
        }
    }
}

// SAFETY: The functions are constant.
unsafe impl<O> Send for GemKind<O> {}
// SAFETY: The functions are constant.
unsafe impl<O> Sync for GemKind<O> {}

/// Allocates the page at `index` of `object`, unless there is one, charged to the caller's memory
/// cgroup. Returns the index of the first page after its folio.
///
/// The page is not pinned. Fails with `EINVAL` beyond the end of the object, and `ENOMEM`. Sleeps.
pub fn populate<T: DriverObject>(object: &shmem::Object<T>, index: usize) -> Result<usize> {
    if index >= object.size() / PAGE_SIZE {
        return Err(EINVAL);
    }
    // SAFETY: The object is a shmem one, which has its file as long as it lives.
    let next = unsafe { ext::gem_populate(object.as_raw(), index) };
    to_result(next.min(0) as c_int)?;
    // CAST: Not negative. `max()` guarantees progress, whatever the folio's position is.
    Ok((next as usize).max(index + 1))
}

/// Calls `f` with the device of `object` while that is registered, and so bound; returns none if it is
/// not. `f` must not sleep without bound: `drm_dev_unplug()` waits for it.
pub fn while_registered<T: DriverObject, R>(
    object: &shmem::Object<T>,
    f: impl FnOnce(&drm::Device<T::Driver, drm::Registered>) -> R,
) -> Option<R> {
    // SAFETY: The object is valid, and so is its device.
    let raw = unsafe { (*object.as_raw()).dev };
    // SAFETY: As above. DRM sets the flag when it registers a device with userspace.
    if !unsafe { (*raw).registered } {
        return None;
    }
    // SAFETY: The device is valid, of the driver of the object, and was registered.
    let dev: &drm::Device<T::Driver, drm::Ioctl> = unsafe { drm::Device::from_raw(raw) };
    let guard = dev.registration_guard()?;
    Some(f(&guard))
}

impl<T: CpuPages> GemKind<shmem::Object<T>> {
    /// Creates the kind from `object`, which is created for this purpose and never gets a handle.
    /// From now on the device's imports are of this kind. Fails with `EBUSY` for a device that is
    /// registered already, and `ENOMEM`.
    pub fn of(object: &shmem::Object<T>) -> Result<Self> {
        // SAFETY: The object is valid, and its functions are constant.
        let (funcs, drm) = unsafe { (&*(*object.as_raw()).funcs, (*object.as_raw()).dev) };
        // SAFETY: The device is valid, and the function is one for devices with such objects.
        to_result(unsafe { ext::drm_import_by(drm, Some(gem_import::import::<T>)) })?;
        let vm_ops = KBox::new(ShmemVmOps::<T>::functions(), GFP_KERNEL)?;
        let mut shmem = ShmemPagesFuncs::<T>::functions(funcs);
        shmem.vm_ops = &*vm_ops;
        // INVARIANT: No object has these tables yet.
        Ok(Self {
            shmem: KBox::new(shmem, GFP_KERNEL)?,
            own: KBox::new(OwnPagesFuncs::<T>::functions(funcs), GFP_KERNEL)?,
            _vm_ops: vm_ops,
            free: funcs.free.ok_or(EINVAL)?,
            lists: [GemList::new()?, GemList::new()?],
            _objects: PhantomData,
        })
    }

    fn list_of(&self, listing: Listing) -> &GemList {
        let [purgeable, evictable] = &self.lists;
        match listing {
            Listing::Purgeable => purgeable,
            Listing::Evictable => evictable,
        }
    }

    /// Adds `object` to a list with `number`, which no other object there has. Does nothing for an
    /// object that [`create`](Self::create) did not make. An object that is in the list gets the
    /// number.
    pub fn list(&self, listing: Listing, object: &shmem::Object<T>, number: u64, room: Room) {
        let is_own_kind = T::kind(object.dev()).is_some_and(|kind| core::ptr::eq(kind, self));
        // SAFETY: The object is valid.
        if !is_own_kind || !self.has(unsafe { (*object.as_raw()).funcs }) {
            return;
        }
        if let Some(raw) = NonNull::new(object.as_raw()) {
            let list = self.list_of(listing);
            drop(list.remove(raw));
            // SAFETY: The caller has a reference. `free()` frees objects with these functions; it
            // removes them from the lists of their device's kind, which this one is.
            unsafe { list.insert(raw, number, room) };
        }
    }

    /// Gives `object` another number, which no other object has, if it is in the list.
    pub fn renumber(&self, listing: Listing, object: &shmem::Object<T>, number: u64) {
        if let Some(raw) = NonNull::new(object.as_raw()) {
            self.list_of(listing).renumber(raw, number);
        }
    }

    /// Removes `object` from the list, if it is there, and returns the memory of its place.
    pub fn unlist(&self, listing: Listing, object: &shmem::Object<T>) -> Option<Room> {
        self.list_of(listing).remove(NonNull::new(object.as_raw())?)
    }

    /// Returns the first object of the list with a number from `number` on, and its number. Skips
    /// objects that are being freed.
    pub fn first_listed(
        &self,
        listing: Listing,
        number: u64,
    ) -> Option<(u64, ARef<shmem::Object<T>>)> {
        let (number, raw) = self.list_of(listing).first_from(number)?;
        // SAFETY: By the type invariants the object is of this type.
        let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(raw.as_ptr()) };
        // SAFETY: Passes on the reference that the list took.
        let object = unsafe { ARef::from_raw(NonNull::from(object)) };
        Some((number, object))
    }

    /// Removes the CPU's mappings of all pages of `object`. Faults map them again, if the object
    /// lets them. Sleeps.
    pub fn unmap_cpu(object: &shmem::Object<T>) {
        // SAFETY: The object is valid, and belongs to a device that was registered, or has no
        // mappings.
        unsafe { ext::gem_unmap_cpu(object.as_raw()) };
    }

    /// Creates an object of `size` bytes. Fails with `ENOMEM`, and with `ENODEV` before the device
    /// has its kind.
    pub fn create(
        dev: &drm::Device<T::Driver>,
        size: usize,
        args: T::Args,
        pages: Pages,
    ) -> Result<ARef<shmem::Object<T>>> {
        let kind = T::kind(dev).ok_or(ENODEV)?;
        let funcs = match pages {
            Pages::Shmem => &*kind.shmem,
            Pages::Own => &*kind.own,
        };
        let object = shmem::Object::<T>::new(dev, size, shmem::ObjectConfig::default(), args)?;
        // SAFETY: Only this function knows the object yet. Its functions are in the data of its
        // device, which outlives the object.
        unsafe { (*object.as_raw()).funcs = funcs };
        Ok(object)
    }
}

/// The functions to export and mmap an object with shmem pages. DRM's own functions get all of its
/// pages in one go, which is neither killable nor counted.
struct ShmemPagesFuncs<T>(PhantomData<T>);

impl<T: CpuPages> ShmemPagesFuncs<T> {
    /// Returns the functions for such objects, based on those that DRM gives to them.
    fn functions(of: &bindings::drm_gem_object_funcs) -> bindings::drm_gem_object_funcs {
        bindings::drm_gem_object_funcs {
            free: Some(free::<T>),
            export: Some(Self::export),
            mmap: Some(Self::mmap),
            ..*of
        }
    }

    /// # Safety
    ///
    /// To be called by DRM for an object with shmem pages.
    unsafe extern "C" fn export(
        obj: *mut bindings::drm_gem_object,
        flags: c_int,
    ) -> *mut bindings::dma_buf {
        // SAFETY: By this function's requirements.
        let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
        let begun = object
            .may_export()
            .and_then(|()| T::populate(object))
            .and_then(|()| object.begin_export());
        match begun {
            // SAFETY: As above; the exporter has a reference.
            Ok(()) => unsafe { ext::drm_gem_prime_export(obj, flags) },
            Err(e) => e.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// To be called by DRM for an object with shmem pages, and a VMA under construction.
    unsafe extern "C" fn mmap(
        obj: *mut bindings::drm_gem_object,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
        match object.may_map().and_then(|()| T::populate(object)) {
            // SAFETY: As above. The object is the first field of the shmem object, as the kernel
            // crate relies on, too.
            Ok(()) => unsafe { bindings::drm_gem_shmem_mmap(obj.cast(), vma) },
            Err(e) => e.to_errno(),
        }
    }
}

const _: () = assert!(core::mem::offset_of!(bindings::drm_gem_shmem_object, base) == 0);

/// Frees an object as DRM does, after it has left the lists.
///
/// # Safety
///
/// To be called by DRM for an object with pages of a `T` that nobody refers to.
pub(crate) unsafe extern "C" fn free<T: CpuPages>(obj: *mut bindings::drm_gem_object) {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    // The device has its kind: the object's functions, of which this is one, are the kind's.
    let Some(kind) = T::kind(object.dev()) else {
        return;
    };
    let free = kind.free;
    drop(kind.unlist(Listing::Purgeable, object));
    drop(kind.unlist(Listing::Evictable, object));
    // SAFETY: By this function's requirements.
    unsafe { free(obj) };
}

impl<O> GemKind<O> {
    /// Returns whether `funcs` are those of objects of this kind.
    fn has(&self, funcs: *const bindings::drm_gem_object_funcs) -> bool {
        core::ptr::eq(funcs, &*self.shmem) || core::ptr::eq(funcs, &*self.own)
    }

    /// Returns the functions of the objects with such pages.
    pub(crate) fn functions(&self, pages: Pages) -> *const bindings::drm_gem_object_funcs {
        match pages {
            Pages::Shmem => &*self.shmem,
            Pages::Own => &*self.own,
        }
    }
}

impl<O: IntoGEMObject> GemKind<O> {
    /// Looks up the object with `handle` in `file`.
    ///
    /// Fails with `ENOENT` without such a handle, and for an object of another kind.
    pub fn lookup<F>(&self, file: &drm::File<F>, handle: u32) -> Result<ARef<O>>
    where
        O: AllocImpl + AlwaysRefCounted,
        F: drm::file::DriverFile<Driver = O::Driver>,
    {
        // CAST: `drm::File` is transparent over `struct drm_file`.
        let file: *mut bindings::drm_file = core::ptr::from_ref(file).cast_mut().cast();
        // SAFETY: The file is open.
        let object = unsafe { bindings::drm_gem_object_lookup(file, handle) };
        if object.is_null() {
            return Err(ENOENT);
        }
        // SAFETY: The lookup took a reference.
        let funcs = unsafe { (*object).funcs };
        if !self.has(funcs) {
            // SAFETY: Drops the reference of the lookup.
            unsafe { bindings::drm_gem_object_put(object) };
            return Err(ENOENT);
        }
        // SAFETY: By the type invariant the object is an `O`, and the reference keeps it.
        let object = unsafe { O::from_raw(object) };
        // SAFETY: Passes on the reference of the lookup.
        Ok(unsafe { ARef::from_raw(NonNull::from(object)) })
    }
}
