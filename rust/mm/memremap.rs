// SPDX-License-Identifier: GPL-2.0

//! PFNs and pages for a device's own memory.
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

use core::{cell::UnsafeCell, ffi::c_void, ops::Range, ptr::NonNull};
use kernel::{
    bindings,
    error::from_err_ptr,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*, //
};

pub use bindings::dev_pagemap_ops as Ops;

/// Device-private memory: a `struct dev_pagemap` and its range of physical addresses.
///
/// Dropping it waits until all of its pages are free. Sleeps.
///
/// # Invariants
///
/// The pagemap is mapped by `memremap_pages()`, and does not move.
pub struct DevPagemap(KBox<UnsafeCell<bindings::dev_pagemap>>);

// SAFETY: It may be used and unmapped from any thread.
unsafe impl Send for DevPagemap {}
// SAFETY: The fields that are read through a shared reference do not change.
unsafe impl Sync for DevPagemap {}

impl DevPagemap {
    /// Creates PFNs and pages for `size` bytes, at unused physical addresses. Without an `owner`
    /// the pagemap is its own owner.
    ///
    /// Sleeps. Fails with `ENOMEM`, with `ERANGE` if there is no free range of addresses, and with
    /// `EINVAL` if the size is not a multiple of the page size.
    ///
    /// # Safety
    ///
    /// `ops` must have all operations that device-private memory requires.
    pub unsafe fn new(
        size: usize,
        owner: Option<NonNull<c_void>>,
        ops: &'static Ops,
    ) -> Result<Self> {
        if size == 0 || size % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }
        let boxed = KBox::new(
            UnsafeCell::new(bindings::dev_pagemap::default()),
            GFP_KERNEL,
        )?;
        let raw = boxed.get();
        // SAFETY: `iomem_resource` is a static of the kernel; the name is static, too.
        let region = from_err_ptr(unsafe {
            bindings::request_free_mem_region(
                &raw mut bindings::iomem_resource,
                size,
                c"gpusvm".as_char_ptr(),
            )
        })?;
        // SAFETY: `region` was just requested; no other code has a pointer to the pagemap yet.
        let mapped = unsafe {
            (*raw).type_ = bindings::memory_type_MEMORY_DEVICE_PRIVATE;
            (*raw).ops = ops;
            (*raw).owner = owner.map_or(raw.cast(), NonNull::as_ptr);
            (*raw).nr_range = 1;
            *(*raw).__bindgen_anon_1.range.as_mut() = bindings::range {
                start: (*region).start,
                end: (*region).end,
            };
            from_err_ptr(bindings::memremap_pages(raw, bindings::NUMA_NO_NODE))
        };
        if let Err(e) = mapped {
            // SAFETY: The region was requested above.
            unsafe { release(raw) };
            return Err(e);
        }
        // INVARIANT: `memremap_pages()` succeeded, and the box does not move the pagemap.
        Ok(Self(boxed))
    }

    /// Returns the C object, which does not move.
    pub fn as_raw(&self) -> *mut bindings::dev_pagemap {
        self.0.get()
    }

    /// Returns the PFNs, at least as many as were requested.
    pub fn frames(&self) -> Range<usize> {
        // SAFETY: The range is written when the pagemap is created only.
        let range = unsafe { range(self.as_raw()) };
        // CAST: Physical addresses and `usize` both have 64 bits where device-private memory
        // exists.
        (range.start as usize) >> PAGE_SHIFT..(range.end as usize + 1) >> PAGE_SHIFT
    }
}

/// Returns the range of physical addresses.
///
/// # Safety
///
/// The pagemap must be valid, and its range initialized.
unsafe fn range(raw: *mut bindings::dev_pagemap) -> bindings::range {
    // SAFETY: By this function's requirements.
    unsafe { *(*raw).__bindgen_anon_1.range.as_ref() }
}

/// Releases the region of the pagemap's range.
///
/// # Safety
///
/// The pagemap must be valid, and its range a region that was requested.
unsafe fn release(raw: *mut bindings::dev_pagemap) {
    // SAFETY: By this function's requirements.
    unsafe {
        let range = range(raw);
        bindings::__release_region(
            &raw mut bindings::iomem_resource,
            range.start,
            range.end - range.start + 1,
        );
    }
}

impl Drop for DevPagemap {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::memunmap_pages(self.as_raw());
            release(self.as_raw());
        }
    }
}
