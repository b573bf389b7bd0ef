// SPDX-License-Identifier: GPL-2.0

//! Frames and pages for a device's own memory.
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

/// Device-private memory, `struct dev_pagemap` and the span of physical addresses that it has.
///
/// Dropping it waits until all of its pages are free. Sleeps.
///
/// # Invariants
///
/// The pagemap is mapped by `memremap_pages()`, and does not move.
pub struct DevPagemap(KBox<UnsafeCell<bindings::dev_pagemap>>);

// SAFETY: It may be used and unmapped from any thread.
unsafe impl Send for DevPagemap {}
// SAFETY: What is read through a shared reference does not change.
unsafe impl Sync for DevPagemap {}

impl DevPagemap {
    /// Makes frames and pages for `size` bytes, at addresses where nothing is. Without an `owner` it
    /// is its own.
    ///
    /// Sleeps. Fails with `ENOMEM`, `ERANGE` when there are no such addresses, `EINVAL` for a size
    /// that is not a multiple of the page size.
    ///
    /// # Safety
    ///
    /// `ops` must have all operations of device-private memory.
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
        // SAFETY: The root of all physical addresses is there for ever; the name is static.
        let region = from_err_ptr(unsafe {
            bindings::request_free_mem_region(
                &raw mut bindings::iomem_resource,
                size,
                c"gpusvm".as_char_ptr(),
            )
        })?;
        // SAFETY: The region was just made; the pagemap is not known to anyone yet.
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
        // INVARIANT: It is mapped.
        Ok(Self(boxed))
    }

    /// The C object, which stays where it is.
    pub fn as_raw(&self) -> *mut bindings::dev_pagemap {
        self.0.get()
    }

    /// The frames, at least as many as were asked for.
    pub fn frames(&self) -> Range<usize> {
        // SAFETY: The range is written when the pagemap is made, and never after.
        let range = unsafe { range(self.as_raw()) };
        // CAST: Physical addresses and `usize` are both 64 bits where there is such memory.
        (range.start as usize) >> PAGE_SHIFT..(range.end as usize + 1) >> PAGE_SHIFT
    }
}

/// # Safety
///
/// The pagemap must be valid and its range be written.
unsafe fn range(raw: *mut bindings::dev_pagemap) -> bindings::range {
    // SAFETY: By this function's requirements.
    unsafe { *(*raw).__bindgen_anon_1.range.as_ref() }
}

/// # Safety
///
/// The range must be a region that was requested.
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
