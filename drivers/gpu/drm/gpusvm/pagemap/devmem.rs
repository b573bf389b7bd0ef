// SPDX-License-Identifier: GPL-2.0

//! Allocations of device memory, as the core sees them.
//!
//! An [`Devmem`] is part of a larger object of its provider. It is used by the folios of one
//! migration, and *detached* when none of them is left: then its operations' `devmem_release` is
//! called, once.
//!
//! The allocation of a C driver names a process. It is not held, and may be gone long before the
//! pages are, which may have moved to other processes by `fork()`. So nothing here looks at it.
//!
//! C: `struct drm_pagemap_devmem`.

use super::drm_pagemap::Pagemap;
use core::{
    cell::UnsafeCell,
    ptr::{self, NonNull},
};
use kernel::{
    bindings::{completion, device, dma_fence, mm_struct},
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    types::Opaque, //
};
use kernel_ext::{
    bindings as ext,
    time::jiffies, //
};

pub use kernel_ext::bindings::drm_pagemap_devmem_ops as Ops;

/// An allocation of device memory; it has the layout of `struct drm_pagemap_devmem`.
///
/// # Invariants
///
/// `ops` points to operations, all but `devmem_release` there, that live as long as the pagemap is
/// referred to. `dev` is the device that copies, and `dpagemap` the pagemap of the memory, both valid
/// as long as the allocation.
#[repr(C)]
#[pin_data]
pub struct Devmem {
    pub(crate) dev: *mut device,
    pub(crate) mm: *mut mm_struct,
    #[pin]
    pub(crate) detached: Opaque<completion>,
    pub(crate) ops: *const Ops,
    pub(crate) dpagemap: NonNull<Pagemap>,
    pub(crate) size: usize,
    /// In jiffies.
    pub(crate) timeslice_expiration: Atomic<u64>,
    pub(crate) pre_migrate_fence: UnsafeCell<*mut dma_fence>,
}

// SAFETY: An allocation may be used and released from any thread.
unsafe impl Send for Devmem {}
// SAFETY: Its fields are immutable, atomic, or the migration's that fills it.
unsafe impl Sync for Devmem {}

impl Devmem {
    /// An allocation for `size` bytes of a process's addresses, in use. C:
    /// `drm_pagemap_devmem_init()`.
    ///
    /// # Safety
    ///
    /// The arguments must be as the type invariants say; `dpagemap` must be kept by the caller until
    /// the allocation is in use, and by nobody after.
    pub(crate) unsafe fn new(
        dpagemap: NonNull<Pagemap>,
        ops: *const Ops,
        size: usize,
    ) -> impl PinInit<Self> {
        // SAFETY: The caller keeps the pagemap.
        let dev = unsafe { dpagemap.as_ref() }.drm().dma_device();
        // INVARIANT: By this function's requirements.
        pin_init!(Self {
            dev,
            mm: ptr::null_mut(),
            detached <- Opaque::ffi_init(|slot| {
                // SAFETY: The slot is memory for a completion, which is pinned.
                unsafe { ext::init_completion(slot) }
            }),
            ops,
            dpagemap,
            size,
            timeslice_expiration: Atomic::new(0),
            pre_migrate_fence: UnsafeCell::new(ptr::null_mut()),
        })
    }

    /// The operations.
    pub(crate) fn ops(&self) -> &Ops {
        // SAFETY: By the type invariants.
        unsafe { &*self.ops }
    }

    /// The device that copies to and from the memory.
    pub(crate) fn dma_device(&self) -> *mut device {
        self.dev
    }

    /// The span of addresses, in bytes, that the allocation was made for.
    pub(crate) fn span_size(&self) -> usize {
        self.size
    }

    /// Has the pages stay in device memory for so many jiffies at least, as far as faults of CPUs
    /// go.
    pub(crate) fn begin_timeslice(&self, jiffies: usize) {
        self.timeslice_expiration.store(
            (jiffies::now() as u64).saturating_add(jiffies as u64),
            Relaxed,
        );
    }

    /// What is left of that time, in jiffies.
    pub(crate) fn timeslice_left(&self) -> usize {
        let end = self.timeslice_expiration.load(Relaxed);
        // CAST: At most what was given, as a number of the same size.
        end.saturating_sub(jiffies::now() as u64) as usize
    }

    /// Whether no page is left in use, for good.
    pub(crate) fn is_detached(&self) -> bool {
        // SAFETY: The completion was initialized.
        unsafe { kernel::bindings::completion_done(self.detached.get()) }
    }

    /// What has to be waited for before anything is copied; null for nothing.
    ///
    /// # Safety
    ///
    /// Only the migration that fills the allocation may call this.
    pub(crate) unsafe fn fence(&self) -> *mut dma_fence {
        // SAFETY: By this function's requirements nobody changes it.
        unsafe { *self.pre_migrate_fence.get() }
    }

    /// Gives the fence up.
    ///
    /// # Safety
    ///
    /// As for [`fence`](Self::fence).
    pub(crate) unsafe fn put_fence(&self) {
        // SAFETY: By this function's requirements; the reference is the allocation's, and null is
        // allowed.
        unsafe { ext::dma_fence_put(self.pre_migrate_fence.get().replace(ptr::null_mut())) }
    }

    /// Ends the use of an allocation.
    ///
    /// # Safety
    ///
    /// The reference must be the caller's, no page be in use, and this be done once. The pagemap
    /// must be kept meanwhile.
    pub(crate) unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The reference keeps the allocation until `devmem_release`.
        unsafe {
            let release = (*(*this.as_ptr()).ops).devmem_release;
            kernel::bindings::complete_all((*this.as_ptr()).detached.get());
            if let Some(release) = release {
                release(this.as_ptr().cast());
            }
        }
    }
}
