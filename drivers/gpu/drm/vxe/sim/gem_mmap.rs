// SPDX-License-Identifier: GPL-2.0

//! CPU mappings of GEM objects with pages of the driver's own.
//!
//! C headers: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings as ext,
    dma_memory::page_to_phys,
    gem::CpuPages, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    drm::gem::{
        shmem,
        IntoGEMObject, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

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
    /// Such objects cannot be exported: an importer would not find their memory.
    pub(crate) fn functions(of: &bindings::drm_gem_object_funcs) -> bindings::drm_gem_object_funcs {
        bindings::drm_gem_object_funcs {
            free: of.free,
            open: of.open,
            close: of.close,
            export: Some(export::<T>),
            mmap: Some(mmap),
            vm_ops: &Self::VM_OPS,
            ..pin_init::zeroed()
        }
    }
}

/// # Safety
///
/// To be called by DRM for an object with pages of a `T`.
unsafe extern "C" fn export<T: CpuPages>(
    obj: *mut bindings::drm_gem_object,
    _flags: c_int,
) -> *mut bindings::dma_buf {
    // SAFETY: By this function's requirements.
    let object: &shmem::Object<T> = unsafe { IntoGEMObject::from_raw(obj) };
    object.may_export().err().unwrap_or(EOPNOTSUPP).to_ptr()
}

/// # Safety
///
/// To be called by DRM for a VMA under construction.
unsafe extern "C" fn mmap(
    _obj: *mut bindings::drm_gem_object,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: By this function's requirements.
    unsafe { ext::gem_mmap_pfns(vma) }
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
    match object.page(index) {
        // SAFETY: The VMA is `VM_PFNMAP`, the address lies in it, and its page stays the object's
        // as long as that lives: longer than the VMA. CAST: A frame number fits into a word.
        Some(page) => unsafe {
            bindings::vmf_insert_pfn(vma, address, (page_to_phys(page) >> PAGE_SHIFT) as usize)
        },
        None => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}
