// SPDX-License-Identifier: GPL-2.0

//! GEM objects that a driver imports from other devices, as dma-bufs.
//!
//! An import is an object of the driver without pages. Its memory is mapped for the importing device
//! when the driver needs it, until the device is unbound.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use crate::{
    bindings as ext,
    gem::{
        CpuPages,
        GemKind,
        Pages, //
    }, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    device::{
        self,
        Bound, //
    },
    devres::Devres,
    dma::DmaAddress,
    drm::{
        self,
        gem::{
            shmem,
            IntoGEMObject, //
        }, //
    },
    error::from_err_ptr,
    page::PAGE_SIZE,
    prelude::*,
    scatterlist::SGTable,
    sync::aref::ARef, //
};

/// A reference to a dma-buf.
///
/// # Invariants
///
/// The pointer is a dma-buf, and this has a reference to it.
pub struct DmaBuf(NonNull<bindings::dma_buf>);

// SAFETY: Any thread may use a dma-buf.
unsafe impl Send for DmaBuf {}
// SAFETY: As above; dma-bufs have their own locks.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// Takes a reference to `raw`.
    ///
    /// # Safety
    ///
    /// `raw` must be a dma-buf that the caller has a reference to.
    unsafe fn get(raw: NonNull<bindings::dma_buf>) -> Self {
        // SAFETY: By this function's requirements.
        unsafe { ext::dma_buf_get_ref(raw.as_ptr()) };
        // INVARIANT: Just took a reference.
        Self(raw)
    }

    /// Attaches it to `dev`, and takes another reference to it. Not inlined into drivers, which do
    /// not import the namespace of its symbols. Fails as the exporter does.
    ///
    /// # Safety
    ///
    /// `dev` must be valid as long as the result exists.
    #[inline(never)]
    unsafe fn attach(&self, dev: *mut bindings::device) -> Result<Attached> {
        // SAFETY: By the type invariant, and this function's requirements.
        let attach = from_err_ptr(unsafe { bindings::dma_buf_attach(self.0.as_ptr(), dev) })?;
        // INVARIANT: Just attached.
        Ok(Attached {
            attach: NonNull::new(attach).ok_or(EINVAL)?,
            // SAFETY: By the type invariant.
            dma_buf: unsafe { Self::get(self.0) },
        })
    }

    /// Maps the memory for reads and writes of `dev`, until the result is dropped or `dev` is
    /// unbound. Fails as the exporter does, for example with `EOPNOTSUPP` for memory that `dev`
    /// cannot reach. Sleeps.
    pub fn map(&self, dev: &device::Device<Bound>) -> Result<DmaBufMapping> {
        let raw = core::ptr::from_ref(dev);
        // SAFETY: The device is bound, and the attachment is dropped before it is unbound.
        // CAST: `Device` is a transparent wrapper of `Opaque<struct device>`, which allows mutation.
        let attached = unsafe { self.attach(raw.cast::<bindings::device>().cast_mut()) }?;
        // SAFETY: The attachment is valid, and the caller does not hold the reservation lock.
        let sgt = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment_unlocked(attached.attach.as_ptr(), BIDIRECTIONAL)
        })?;
        // INVARIANT: Just mapped, and the attachment is only detached when this is dropped.
        let mapped = Mapped {
            sgt: NonNull::new(sgt).ok_or(EINVAL)?,
            attached,
        };
        Ok(DmaBufMapping(Devres::new(dev, mapped)?))
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::dma_buf_put(self.0.as_ptr()) };
    }
}

const BIDIRECTIONAL: bindings::dma_data_direction = bindings::dma_data_direction::DMA_BIDIRECTIONAL;

/// A dma-buf that is attached to a device.
///
/// # Invariants
///
/// `attach` is an attachment of `dma_buf`.
struct Attached {
    attach: NonNull<bindings::dma_buf_attachment>,
    dma_buf: DmaBuf,
}

impl Attached {
    /// Returns the attachment, which the caller detaches and then drops the reference of.
    fn into_raw(self) -> *mut bindings::dma_buf_attachment {
        ManuallyDrop::new(self).attach.as_ptr()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; nothing is mapped by it any more.
        unsafe { bindings::dma_buf_detach(self.dma_buf.0.as_ptr(), self.attach.as_ptr()) };
    }
}

/// A dma-buf whose memory is mapped for a device.
///
/// # Invariants
///
/// `sgt` is a mapping by `attached`.
struct Mapped {
    sgt: NonNull<bindings::sg_table>,
    attached: Attached,
}

// SAFETY: Any thread may use or remove the mapping.
unsafe impl Send for Mapped {}
// SAFETY: A shared reference only reads the table, which does not change.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The caller does not hold the reservation lock.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attached.attach.as_ptr(),
                self.sgt.as_ptr(),
                BIDIRECTIONAL,
            )
        };
    }
}

/// The memory of a dma-buf, mapped for a device while that is bound.
pub struct DmaBufMapping(Devres<Mapped>);

impl DmaBufMapping {
    /// Calls `f` with the DMA address and length of each contiguous part, in order, until that fails.
    /// Fails with `EINVAL` for another device than that of the mapping, and as `f` does.
    pub fn for_each(
        &self,
        dev: &device::Device<Bound>,
        mut f: impl FnMut(DmaAddress, u64) -> Result,
    ) -> Result {
        let mapped = self.0.access(dev)?;
        // SAFETY: By the type invariant the table is valid and mapped as long as `mapped` is.
        let table: &SGTable = unsafe { SGTable::from_raw(mapped.sgt.as_ptr()) };
        for entry in table.iter() {
            f(entry.dma_address(), entry.dma_len())?;
        }
        Ok(())
    }
}

/// Imports a dma-buf: an own object's is the object, that of another device becomes an object
/// without pages.
///
/// # Safety
///
/// To be called by DRM to import a dma-buf into a device of the driver of `T`.
pub(crate) unsafe extern "C" fn import<T: CpuPages>(
    drm: *mut bindings::drm_device,
    dma_buf: *mut bindings::dma_buf,
) -> *mut bindings::drm_gem_object {
    // SAFETY: By this function's requirements.
    match unsafe { try_import::<T>(drm, dma_buf) } {
        Ok(object) => object,
        Err(e) => e.to_ptr(),
    }
}

/// # Safety
///
/// As for [`import`].
unsafe fn try_import<T: CpuPages>(
    drm: *mut bindings::drm_device,
    dma_buf: *mut bindings::dma_buf,
) -> Result<*mut bindings::drm_gem_object> {
    // SAFETY: By this function's requirements. What this device exported has an object of it, which
    // the dma-buf refers to.
    unsafe {
        if bindings::drm_gem_is_prime_exported_dma_buf(drm, dma_buf) {
            let object: *mut bindings::drm_gem_object = (*dma_buf).priv_.cast();
            bindings::drm_gem_object_get(object);
            return Ok(object);
        }
    }
    // SAFETY: By this function's requirements: it is a device of this driver.
    let dev: &drm::Device<T::Driver> = unsafe { drm::Device::from_raw(drm) };
    let raw = NonNull::new(dma_buf).ok_or(EINVAL)?;
    // SAFETY: The caller has a reference, and the size of a dma-buf does not change.
    let (size, source) = unsafe { ((*dma_buf).size, DmaBuf::get(raw)) };
    if size == 0 || size % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    // SAFETY: By this function's requirements; an attached object is freed before its device.
    let attached = unsafe { source.attach((*drm).dev) }?;
    let object = GemKind::create(dev, size, T::import(source), Pages::Own)?;
    let object: NonNull<shmem::Object<T>> = ARef::into_raw(object);
    // SAFETY: Nobody else knows the object yet, whose reference passes to the caller. DRM finds the
    // dma-buf of an import by the attachment; it detaches it, and drops its reference, when it frees
    // the object.
    unsafe {
        let object = object.as_ref().as_raw();
        (*object).import_attach = attached.into_raw();
        (*object).resv = (*dma_buf).resv;
        Ok(object)
    }
}
