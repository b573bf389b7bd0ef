// SPDX-License-Identifier: GPL-2.0

//! GEM objects of a driver: lookup by handle, export, CPU mappings, and a list of objects that does
//! not keep them alive.
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
    /// its pages does so when no call of `f` runs, and then calls
    /// [`unmap_cpu`](GemKind::unmap_cpu) before it frees them.
    fn with_page<R>(&self, index: usize, f: impl FnOnce(&Page) -> R) -> Option<R>;

    /// Returns an error if the object must not be mapped by the CPU.
    fn may_map(&self) -> Result;

    /// Returns an error if the object must not be exported as a dma-buf.
    fn may_export(&self) -> Result;

    /// Called before the object is exported as a dma-buf. Returns an error if it must not be. An
    /// exported object does not give up its pages any more.
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
    /// Has only objects whose functions are `shmem` or `own`.
    list: Pin<KBox<GemList>>,
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
            list: GemList::new()?,
            _objects: PhantomData,
        })
    }

    /// Adds `object` to the list, behind all others. Does nothing for an object that is in the list,
    /// or that [`create`](Self::create) did not make.
    pub fn list(&self, object: &shmem::Object<T>, room: Room) {
        let is_own_kind = T::kind(object.dev()).is_some_and(|kind| core::ptr::eq(kind, self));
        // SAFETY: The object is valid.
        if !is_own_kind || !self.has(unsafe { (*object.as_raw()).funcs }) {
            return;
        }
        if let Some(raw) = NonNull::new(object.as_raw()) {
            drop(self.list.remove(raw));
            // SAFETY: The caller has a reference. `free()` frees objects with these functions; it
            // removes them from the list of their device's kind, which is this one.
            unsafe { self.list.insert(raw, room) };
        }
    }

    /// Removes `object` from the list, if it is there, and returns the memory of its place.
    pub fn unlist(&self, object: &shmem::Object<T>) -> Option<Room> {
        self.list.remove(NonNull::new(object.as_raw())?)
    }

    /// Returns the number of the last object that was added to the list.
    pub fn last_listed(&self) -> u64 {
        self.list.last()
    }

    /// Returns the first object of the list with a number from `number` on, and its number. Skips
    /// objects that are being freed.
    pub fn first_listed(&self, number: u64) -> Option<(u64, ARef<shmem::Object<T>>)> {
        let (number, raw) = self.list.first_from(number)?;
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

/// Frees an object as DRM does, after it has left the list.
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
    drop(kind.unlist(object));
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
