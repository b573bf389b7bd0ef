// SPDX-License-Identifier: GPL-2.0

//! Blocks of device memory, as C code sees them.
//!
//! The provider embeds a [`Devmem`] in its own object for the block. The folios of one migration use the block. When
//! the last of them is freed, the block is *detached*: the core calls `devmem_release` of its operations, once.
//!
//! A C driver stores the `mm` of a process in its `Devmem`, without a reference. The process may exit before the pages
//! are freed, and `fork()` may have shared the pages with other processes. So the core never uses `mm`.
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

/// A block of device memory; it has the layout of `struct drm_pagemap_devmem`.
///
/// # Invariants
///
/// - `ops` points to operations that are valid while the pagemap has references. Only `devmem_release` may be missing.
/// - `dev` is the device that copies, and `dpagemap` is the pagemap of the memory. Both are valid as long as the block.
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
    /// The end of the timeslice, in jiffies.
    pub(crate) timeslice_expiration: Atomic<u64>,
    pub(crate) pre_migrate_fence: UnsafeCell<*mut dma_fence>,
}

// SAFETY: Any thread may use and release a block.
unsafe impl Send for Devmem {}
// SAFETY: The fields are immutable or atomic, or only the migration that fills the block uses them.
unsafe impl Sync for Devmem {}

impl Devmem {
    /// Initializes a block for `size` bytes of the address space of a process. C: `drm_pagemap_devmem_init()`.
    ///
    /// # Safety
    ///
    /// The arguments must satisfy the type invariants. The caller must hold a reference to `dpagemap` until a
    /// [`Zdd`](super::zdd::Zdd) owns the block; from then on that `Zdd` holds one.
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

    pub(crate) fn ops(&self) -> &Ops {
        // SAFETY: By the type invariants.
        unsafe { &*self.ops }
    }

    /// Returns the device that copies to and from the memory.
    pub(crate) fn dma_device(&self) -> *mut device {
        self.dev
    }

    /// Returns the number of bytes of address space that the block was allocated for.
    pub(crate) fn span_size(&self) -> usize {
        self.size
    }

    /// Starts a timeslice: for that many jiffies, CPU faults do not migrate the pages to system memory.
    pub(crate) fn begin_timeslice(&self, jiffies: usize) {
        self.timeslice_expiration.store(
            (jiffies::now() as u64).saturating_add(jiffies as u64),
            Relaxed,
        );
    }

    /// Returns the rest of the timeslice, in jiffies.
    pub(crate) fn timeslice_left(&self) -> usize {
        let end = self.timeslice_expiration.load(Relaxed);
        // CAST: The rest is at most the `usize` that `begin_timeslice()` added.
        end.saturating_sub(jiffies::now() as u64) as usize
    }

    /// Returns whether the last folio in the block has been freed.
    pub(crate) fn is_detached(&self) -> bool {
        // SAFETY: `new()`, or the C driver, has initialized the completion.
        unsafe { kernel::bindings::completion_done(self.detached.get()) }
    }

    /// Returns the fence that copies to the block must wait for; null if there is none.
    ///
    /// # Safety
    ///
    /// Only the migration that fills the block may call this.
    pub(crate) unsafe fn fence(&self) -> *mut dma_fence {
        // SAFETY: Only the caller, the migration that fills the block, accesses the pointer.
        unsafe { *self.pre_migrate_fence.get() }
    }

    /// Drops the reference to the fence.
    ///
    /// # Safety
    ///
    /// As for [`fence`](Self::fence).
    pub(crate) unsafe fn put_fence(&self) {
        // SAFETY: Only the caller accesses the pointer. The block owns the reference; `dma_fence_put()` accepts null.
        unsafe { ext::dma_fence_put(self.pre_migrate_fence.get().replace(ptr::null_mut())) }
    }

    /// Marks the block as detached, and calls `devmem_release`.
    ///
    /// # Safety
    ///
    /// The caller must own the folios' reference, and hold a reference to the pagemap. No folio may be left in the
    /// block. Must be called once.
    pub(crate) unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The folios' reference keeps the block until `devmem_release` takes it over.
        unsafe {
            let release = (*(*this.as_ptr()).ops).devmem_release;
            kernel::bindings::complete_all((*this.as_ptr()).detached.get());
            if let Some(release) = release {
                release(this.as_ptr().cast());
            }
        }
    }
}
