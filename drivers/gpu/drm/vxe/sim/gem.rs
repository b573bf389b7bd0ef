// SPDX-License-Identifier: GPL-2.0

//! Handles of GEM objects, of which only a driver's own are to be found; and which of these may be
//! exported.
//!
//! DRM makes objects for a driver that are none of `kernel::drm`'s: the frame buffers of
//! `DRM_IOCTL_MODE_CREATE_DUMB`, and imports. They get handles of the same files, so that a handle
//! alone does not say that its object has the driver's type.
//!
//! What other devices export gets a handle as well, and is not mapped for the device, which cannot use it.
//!
//! C header: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

use crate::{
    bindings as ext,
    gem_mmap::Mapping, //
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
    /// The page with this number, for the CPU to map; none if there is no such page. It stays the
    /// object's as long as that lives.
    fn page(&self, index: usize) -> Option<&Page>;

    /// Whether the object may be exported as a dma-buf: its error if not. One with pages of the driver's
    /// own is not in any case.
    fn may_export(&self) -> Result;

    /// Has all pages of `object`, which is one of shmem's, allocated, before shmem itself would: for a caller
    /// who can be killed, and as the driver counts them. Its error is what the caller of `mmap()` gets, or
    /// who exports the object. The caller holds the mmap lock, maybe.
    fn populate(object: &shmem::Object<Self>) -> Result;

    /// The kind of such objects, in the data of their device: from when objects are made.
    fn kind(data: &<Self::Driver as drm::Driver>::Data) -> Option<&GemKind<shmem::Object<Self>>>;
}

/// What all objects of type `O` that a file may have handles of have in common, and no other objects.
///
/// # Invariants
///
/// An object that has `shmem` or `own` as its functions is an `O`: they are known here only, and given
/// to such objects only.
pub struct GemKind<O> {
    /// For objects whose pages are those of shmem.
    shmem: KBox<bindings::drm_gem_object_funcs>,
    /// For objects whose pages are the driver's own.
    own: KBox<bindings::drm_gem_object_funcs>,
    _objects: PhantomData<fn() -> O>,
}

/// Whose the pages of an object are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those of shmem.
    Shmem,
    /// The driver's own: the CPU maps them by [`CpuPages::page`], and the object never gets pages of
    /// shmem.
    Own,
}

// SAFETY: The functions are constant.
unsafe impl<O> Send for GemKind<O> {}
// SAFETY: The functions are constant.
unsafe impl<O> Sync for GemKind<O> {}

/// Has the page of `object` with this number allocated, in whose memory cgroup the caller is, unless there
/// is one; returns the number of the first page after the folio that it belongs to.
///
/// The page is not kept where it is. Fails with `EINVAL` beyond the end of the object, and `ENOMEM`. Sleeps.
pub fn populate<T: DriverObject>(object: &shmem::Object<T>, index: usize) -> Result<usize> {
    if index >= object.size() / PAGE_SIZE {
        return Err(EINVAL);
    }
    // SAFETY: The object is of shmem, whose file it has as long as it lives.
    let next = unsafe { ext::gem_populate(object.as_raw(), index) };
    to_result(next.min(0) as c_int)?;
    // CAST: It is not negative. However that folio lies, there is progress.
    Ok((next as usize).max(index + 1))
}

impl<T: CpuPages> GemKind<shmem::Object<T>> {
    /// The kind of `object`, which is made for this, and of which nobody gets a handle. What its device
    /// imports is not mapped from now on. Fails with `EBUSY` for a device that is registered already, and
    /// `ENOMEM`.
    pub fn of(object: &shmem::Object<T>) -> Result<Self> {
        // SAFETY: The object is valid, and its functions are constant.
        let (funcs, drm) = unsafe { (&*(*object.as_raw()).funcs, (*object.as_raw()).dev) };
        let import = bindings::drm_gem_shmem_prime_import_no_map;
        // SAFETY: The device is valid, and the function one for a device that makes objects of shmem.
        to_result(unsafe { ext::drm_import_by(drm, Some(import)) })?;
        // INVARIANT: Nobody has them yet.
        Ok(Self {
            shmem: KBox::new(Export::<T>::functions(funcs), GFP_KERNEL)?,
            own: KBox::new(Mapping::<T>::functions(funcs), GFP_KERNEL)?,
            _objects: PhantomData,
        })
    }

    /// Makes an object of `size` bytes. Fails with `ENOMEM`, and with `ENODEV` before the device has its
    /// kind.
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
        // SAFETY: Nobody else knows the object yet. Its functions are borrowed from the data of its
        // device, which outlives the object.
        unsafe { (*object.as_raw()).funcs = funcs };
        Ok(object)
    }
}

/// What DRM calls to export an object of shmem's pages, and to map it: both get all of its pages in one go,
/// which nobody could end or count.
struct Export<T>(PhantomData<T>);

impl<T: CpuPages> Export<T> {
    /// The functions of such an object, made of those that DRM gives it.
    fn functions(of: &bindings::drm_gem_object_funcs) -> bindings::drm_gem_object_funcs {
        bindings::drm_gem_object_funcs {
            export: Some(Self::export),
            mmap: Some(Self::mmap),
            ..*of
        }
    }

    /// # Safety
    ///
    /// To be called by DRM for an object that has pages of shmem.
    unsafe extern "C" fn export(
        obj: *mut bindings::drm_gem_object,
        flags: c_int,
    ) -> *mut bindings::dma_buf {
        // SAFETY: By this function's requirements.
        let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
        match object.may_export().and_then(|()| T::populate(object)) {
            // SAFETY: As above; who exports it has a reference.
            Ok(()) => unsafe { ext::drm_gem_prime_export(obj, flags) },
            Err(e) => e.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// To be called by DRM for an object that has pages of shmem, and a VMA that is being made.
    unsafe extern "C" fn mmap(
        obj: *mut bindings::drm_gem_object,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: By this function's requirements.
        let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
        match T::populate(object) {
            // SAFETY: As above. The object is the first field of shmem's, as the kernel crate has it, too.
            Ok(()) => unsafe { bindings::drm_gem_shmem_mmap(obj.cast(), vma) },
            Err(e) => e.to_errno(),
        }
    }
}

const _: () = assert!(core::mem::offset_of!(bindings::drm_gem_shmem_object, base) == 0);

impl<O: IntoGEMObject> GemKind<O> {
    /// The object that `handle` names in `file`.
    ///
    /// Fails with `ENOENT` if there is none, or if it is of another kind, and with `EOPNOTSUPP` if it
    /// was imported from another device.
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
        let (funcs, imported) = unsafe { ((*object).funcs, !(*object).import_attach.is_null()) };
        if !core::ptr::eq(funcs, &*self.shmem) && !core::ptr::eq(funcs, &*self.own) {
            // SAFETY: This is that reference.
            unsafe { bindings::drm_gem_object_put(object) };
            return Err(if imported { EOPNOTSUPP } else { ENOENT });
        }
        // SAFETY: By the type invariant the object is an `O`, and the reference keeps it.
        let object = unsafe { O::from_raw(object) };
        // SAFETY: The reference is handed over.
        Ok(unsafe { ARef::from_raw(NonNull::from(object)) })
    }
}
