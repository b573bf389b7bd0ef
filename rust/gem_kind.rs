// SPDX-License-Identifier: GPL-2.0

//! Handles of GEM objects, of which only a driver's own are to be found.
//!
//! DRM makes objects for a driver that are none of `kernel::drm`'s: the frame buffers of
//! `DRM_IOCTL_MODE_CREATE_DUMB`, and imports. They get handles of the same files, so that a handle
//! alone does not say that its object has the driver's type.
//!
//! C header: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    drm::{
        self,
        driver::AllocImpl,
        gem::IntoGEMObject, //
    },
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    }, //
};

/// What all objects of type `O` have in common, and no other objects.
///
/// # Invariants
///
/// `funcs` are the functions of objects of type `O`. The type keeps them to itself, so that an object
/// that has them is an `O`.
pub struct GemKind<O> {
    funcs: *const bindings::drm_gem_object_funcs,
    _objects: PhantomData<fn() -> O>,
}

// SAFETY: The functions are constant.
unsafe impl<O> Send for GemKind<O> {}
// SAFETY: The functions are constant.
unsafe impl<O> Sync for GemKind<O> {}

impl<O: IntoGEMObject> GemKind<O> {
    /// The kind of `object`.
    pub fn of(object: &O) -> Self {
        // INVARIANT: `object` is an `O`.
        Self {
            // SAFETY: The object is valid, and its functions never change.
            funcs: unsafe { (*object.as_raw()).funcs },
            _objects: PhantomData,
        }
    }

    /// The object that `handle` names in `file`.
    ///
    /// Fails with `ENOENT` if there is none, or if it is of another kind.
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
        if unsafe { (*object).funcs } != self.funcs {
            // SAFETY: This is that reference.
            unsafe { bindings::drm_gem_object_put(object) };
            return Err(ENOENT);
        }
        // SAFETY: By the type invariant the object is an `O`, and the reference keeps it.
        let object = unsafe { O::from_raw(object) };
        // SAFETY: The reference is handed over.
        Ok(unsafe { ARef::from_raw(NonNull::from(object)) })
    }
}
