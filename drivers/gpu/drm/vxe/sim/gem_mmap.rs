// SPDX-License-Identifier: GPL-2.0

//! CPU mappings and dma-bufs of GEM objects with pages of the driver's own, and what CPU mappings of
//! shmem pages need beside.
//!
//! C headers: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings as ext,
    dma_memory::page_to_phys,
    gem::{
        self,
        CpuPages,
        Residency, //
    }, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    drm::gem::{
        shmem,
        BaseObject,
        IntoGEMObject, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use kernel_ext::sched;

/// The functions of objects with pages of a `T`.
pub(crate) struct OwnPagesFuncs<T>(PhantomData<T>);

impl<T: CpuPages> OwnPagesFuncs<T> {
    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(bindings::drm_gem_vm_open),
        close: Some(bindings::drm_gem_vm_close),
        fault: Some(fault::<T>),
        ..pin_init::zeroed()
    };

    /// Returns the functions for such objects, based on those of a shmem object of the same type.
    ///
    /// The pages of an object that is exported as a dma-buf are mapped for whoever attaches to it, as
    /// memory behind a PCI BAR is for peers.
    pub(crate) fn functions(of: &bindings::drm_gem_object_funcs) -> bindings::drm_gem_object_funcs {
        bindings::drm_gem_object_funcs {
            free: Some(gem::free::<T>),
            open: of.open,
            close: of.close,
            export: Some(export::<T>),
            pin: Some(pin::<T>),
            unpin: Some(unpin::<T>),
            get_sg_table: Some(get_sg_table::<T>),
            mmap: Some(mmap::<T>),
            vm_ops: &Self::VM_OPS,
            status: Some(status::<T>),
            rss: Some(rss::<T>),
            ..pin_init::zeroed()
        }
    }
}

/// # Safety
///
/// To be called by DRM for an object with pages of a `T`.
unsafe extern "C" fn export<T: CpuPages>(
    obj: *mut bindings::drm_gem_object,
    flags: c_int,
) -> *mut bindings::dma_buf {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    match object.begin_export() {
        // SAFETY: As above; the exporter has a reference.
        Ok(()) => unsafe { ext::drm_gem_prime_export(obj, flags) },
        Err(e) => e.to_ptr(),
    }
}

/// # Safety
///
/// To be called by DRM for an object with pages of a `T` whose dma-buf a device attaches to, with the
/// object's reservation lock held.
unsafe extern "C" fn pin<T: CpuPages>(obj: *mut bindings::drm_gem_object) -> c_int {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    T::pin(object).map_or_else(|e| e.to_errno(), |()| 0)
}

/// # Safety
///
/// To be called by DRM after a successful [`pin`].
unsafe extern "C" fn unpin<T: CpuPages>(obj: *mut bindings::drm_gem_object) {
    // SAFETY: By this function's requirements.
    T::unpin(unsafe { IntoGEMObject::from_raw(obj) });
}

/// Says whether the object has memory.
///
/// # Safety
///
/// To be called by DRM for an object with pages of a `T`.
unsafe extern "C" fn status<T: CpuPages>(
    obj: *mut bindings::drm_gem_object,
) -> bindings::drm_gem_object_status {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    match object.residency() {
        Residency::None => 0,
        Residency::Device | Residency::System => {
            bindings::drm_gem_object_status_DRM_GEM_OBJECT_RESIDENT
        }
    }
}

/// Returns how much memory of the device the object has.
///
/// # Safety
///
/// To be called by DRM for an object with pages of a `T`.
unsafe extern "C" fn rss<T: CpuPages>(obj: *mut bindings::drm_gem_object) -> usize {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    match object.residency() {
        Residency::Device => object.size(),
        Residency::System | Residency::None => 0,
    }
}

/// Returns a table of all pages, which is not mapped for a device yet.
///
/// # Safety
///
/// To be called by DRM for an object with pages of a `T` that is pinned.
unsafe extern "C" fn get_sg_table<T: CpuPages>(
    obj: *mut bindings::drm_gem_object,
) -> *mut bindings::sg_table {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    let list = || -> Result<KVVec<*mut bindings::page>> {
        let count = object.size() / PAGE_SIZE;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for index in 0..count {
            // The importer, and who waits for the object's reservation lock, wait meanwhile.
            sched::check_killed()?;
            sched::cond_resched();
            let page = T::with_page(object, index, |page| page.as_ptr());
            pages.push(page.ok_or(EINVAL)?, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(pages)
    };
    match list() {
        Ok(mut pages) => {
            // CAST: There are fewer than 2^32 pages.
            let count = pages.len() as c_uint;
            // SAFETY: The object and its device are valid, and the pages are the object's.
            unsafe { ext::drm_prime_pages_to_sg((*obj).dev, pages.as_mut_ptr(), count) }
        }
        Err(e) => e.to_ptr(),
    }
}

/// # Safety
///
/// To be called by DRM for an object with pages of a `T`, and a VMA under construction.
unsafe extern "C" fn mmap<T: CpuPages>(
    obj: *mut bindings::drm_gem_object,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    match object.may_map() {
        // SAFETY: By this function's requirements.
        Ok(()) => unsafe { ext::gem_mmap_pfns(vma) },
        Err(e) => e.to_errno(),
    }
}

/// # Safety
///
/// To be called by the core MM for a VMA that maps an object with pages of a `T`.
unsafe extern "C" fn fault<T: CpuPages>(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements. DRM stored the object in the VMA; the object's mmap
    // offset does not change while it is mapped.
    let (vma, address, index, object) = unsafe {
        let vmf = &(*vmf).__bindgen_anon_1;
        let object: *mut bindings::drm_gem_object = (*vmf.vma).vm_private_data.cast();
        let index = vmf
            .pgoff
            .wrapping_sub((*object).vma_node.vm_node.start as usize);
        (vmf.vma, vmf.address, index, object)
    };
    // SAFETY: The VMA has a reference to the object.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(object) };
    let inserted = T::with_page(object, index, |page| {
        let pfn = page_to_phys(page) >> PAGE_SHIFT;
        // SAFETY: The VMA is `VM_PFNMAP`, and the address lies in it. Its page is the object's, which
        // removes the CPU's mappings before it gives the page up. CAST: A frame number fits into a
        // word.
        unsafe { bindings::vmf_insert_pfn(vma, address, pfn as usize) }
    });
    inserted.unwrap_or(bindings::vm_fault_reason_VM_FAULT_SIGBUS)
}

/// The functions of CPU mappings of shmem pages: DRM's, but for objects that must not be mapped.
pub(crate) struct ShmemVmOps<T>(PhantomData<T>);

impl<T: CpuPages> ShmemVmOps<T> {
    /// Returns the functions.
    pub(crate) fn functions() -> bindings::vm_operations_struct {
        // SAFETY: DRM's functions are constant.
        let drm = unsafe { &bindings::drm_gem_shmem_vm_ops };
        bindings::vm_operations_struct {
            fault: Some(Self::fault),
            huge_fault: drm.huge_fault.and(Some(Self::huge_fault)),
            ..*drm
        }
    }

    /// Returns whether the object that the VMA maps may be mapped.
    ///
    /// # Safety
    ///
    /// `vmf` must be a fault in a VMA that maps an object with pages of a `T`.
    unsafe fn may_map(vmf: *mut bindings::vm_fault) -> bool {
        // SAFETY: By this function's requirements. DRM stored the object, which the VMA has a
        // reference to.
        let object: &shmem::Object<T> = unsafe {
            let vma = (*vmf).__bindgen_anon_1.vma;
            IntoGEMObject::from_raw((*vma).vm_private_data.cast())
        };
        object.may_map().is_ok()
    }

    /// # Safety
    ///
    /// To be called by the core MM for a VMA that maps an object with shmem pages.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: DRM's functions are constant.
        let fault = unsafe { bindings::drm_gem_shmem_vm_ops.fault };
        match fault {
            // SAFETY: By this function's requirements.
            Some(fault) if unsafe { Self::may_map(vmf) } => unsafe { fault(vmf) },
            _ => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// # Safety
    ///
    /// As for [`Self::fault`].
    unsafe extern "C" fn huge_fault(
        vmf: *mut bindings::vm_fault,
        order: c_uint,
    ) -> bindings::vm_fault_t {
        // SAFETY: DRM's functions are constant.
        let fault = unsafe { bindings::drm_gem_shmem_vm_ops.huge_fault };
        match fault {
            // SAFETY: By this function's requirements.
            Some(fault) if unsafe { Self::may_map(vmf) } => unsafe { fault(vmf, order) },
            _ => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
