// SPDX-License-Identifier: GPL-2.0

//! How a Rust provider learns that no folio is left in one of its blocks.
//!
//! The folios of a block hold one reference to it together. The kernel may free the last folio in any context but
//! interrupts, in particular in reclaim. So [`release`] only moves the block to the list of its pagemap's
//! [`Detaching`] and queues work. The worker calls [`Provider::detached`](super::provider::Provider::detached) and
//! drops the folios' reference. Provider code thus runs in process context only, while the pagemap holds its module,
//! and a flush of one provider does not wait for others.
//!
//! This code is not generic: the worker runs it after the provider's code has returned, when the provider's module may
//! be unloaded.

use super::{
    devmem::{self, Devmem},
    drm_pagemap::PagemapRef, //
};
use core::{
    cell::UnsafeCell,
    ptr::{self, NonNull}, //
};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        global_lock,
        Arc,
        Completion, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::{
    bindings as ext,
    list::llist::{
        Linked,
        LockFreeList, //
    },
    workqueue::{
        self,
        OwnedQueue, //
    }, //
};

/// The first part of a [`Block`](super::provider::Block), which does not depend on the type of the provider.
///
/// # Invariants
///
/// - The object is the first part of a reference-counted block, to which `detached` applies.
/// - `pagemap` is the pagemap that `devmem` names, and so holds the provider's module.
#[repr(C)]
#[pin_data]
pub(crate) struct Detachable {
    #[pin]
    devmem: Devmem,
    /// The next block in the list of `detaching`.
    next: UnsafeCell<*mut Detachable>,
    detaching: Arc<Detaching>,
    pagemap: PagemapRef,
    detached: Detached,
    /// Completed when the provider knows that no folio is left.
    #[pin]
    told: Completion,
}

/// Tells the provider that a block has no folio left, and drops the folios' reference to the block.
///
/// # Safety
///
/// The block must be one that this function was made for. The caller must own the reference, and hold the pagemap.
pub(crate) type Detached = unsafe fn(NonNull<Detachable>);

// SAFETY: `next` is used by the list only.
unsafe impl Linked for Detachable {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is made.
        unsafe { UnsafeCell::raw_get(&raw const (*this.as_ptr()).next) }
    }
}

// SAFETY: `next` is used by one thread at a time; the other fields may be used from any thread.
unsafe impl Send for Detachable {}
// SAFETY: As above.
unsafe impl Sync for Detachable {}

impl Detachable {
    /// Initializes the first part of a block for `size` bytes of addresses. `detaching` is the pagemap's.
    ///
    /// # Safety
    ///
    /// The object must become the first part of a block in an `Arc`, to which `detached` applies. `ops` must be
    /// operations for it that live as long as the provider's module, with [`release`] as `devmem_release`.
    pub(crate) unsafe fn new(
        pagemap: PagemapRef,
        detaching: Arc<Detaching>,
        ops: *const devmem::Ops,
        detached: Detached,
        size: usize,
    ) -> impl PinInit<Self> {
        let raw = NonNull::from(&*pagemap);
        // INVARIANT: By this function's requirements.
        pin_init!(Self {
            // SAFETY: `pagemap` is held as long as the object exists; the operations are by this function's
            // requirements.
            devmem <- unsafe { Devmem::new(raw, ops, size) },
            next: UnsafeCell::new(ptr::null_mut()),
            detaching,
            pagemap,
            detached,
            told <- Completion::new(),
        })
    }

    /// Marks the block as one whose provider knows that no folio is left. Called once, by `detached`.
    pub(crate) fn set_told(&self) {
        self.told.complete_all();
    }

    /// Waits until the provider knows that no folio is left, and the folios' reference is dropped. `devmem` must be
    /// detached. Sleeps. Must not be called from [`Provider::detached`](super::provider::Provider::detached).
    pub(crate) fn wait_until_told(&self) {
        // The thread that detached `devmem` may not have queued the block yet: a flush would not wait for it.
        self.told.wait_for_completion();
        // The worker is about to drop the reference.
        self.detaching.flush();
    }

    /// Returns the C part of the block.
    pub(crate) fn devmem(&self) -> &Devmem {
        &self.devmem
    }
}

/// The blocks of a pagemap that have no folio left, and whose provider does not know yet.
#[pin_data]
pub(crate) struct Detaching {
    list: LockFreeList<Detachable>,
    #[pin]
    work: Work<Detaching>,
    queue: Arc<OwnedQueue>,
}

impl_has_work! {
    impl HasWork<Self> for Detaching { self.work }
}

impl Detaching {
    /// Creates an empty list. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        // The queue exists as long as the module is loaded.
        let queue = QUEUE.lock().clone().ok_or(ENODEV)?;
        Arc::pin_init(
            pin_init!(Self {
                list: LockFreeList::new(),
                work <- new_work!("gpusvm.detached"),
                queue,
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until the provider knows of all blocks that have been released so far, and the folios' references to them
    /// are dropped. Sleeps. Must not be called from [`Provider::detached`](super::provider::Provider::detached).
    fn flush(self: &Arc<Self>) {
        workqueue::flush(self);
    }
}

impl WorkItem for Detaching {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        for block in this.list.take_all() {
            // SAFETY: The folios' reference keeps the block. The clone of the pagemap reference holds the provider's
            // module until its code has returned.
            unsafe {
                let (pagemap, detached) = {
                    let block = block.as_ref();
                    (block.pagemap.clone(), block.detached)
                };
                detached(block);
                drop(pagemap);
            }
        }
    }
}

/// `devmem_release` of all Rust providers. Any context but interrupts.
///
/// # Safety
///
/// The core must call this once for a `devmem` that is the first part of a [`Detachable`], with the folios' reference,
/// and hold its pagemap meanwhile.
pub(crate) unsafe extern "C" fn release(devmem: *mut ext::drm_pagemap_devmem) {
    if let Some(block) = NonNull::new(devmem.cast::<Detachable>()) {
        // SAFETY: The folios' reference keeps the block.
        let detaching = unsafe { block.as_ref() }.detaching.clone();
        // SAFETY: The list takes over the folios' reference; the block is in no list.
        unsafe { detaching.list.push(block) };
        let queue = detaching.queue.clone();
        // Work that is queued already has not begun to take the list.
        let _ = queue.enqueue(detaching);
    }
}

global_lock! {
    // SAFETY: `init()` runs before any pagemap exists.
    unsafe(uninit) static QUEUE: Mutex<Option<Arc<OwnedQueue>>> = None;
}

/// Waits until all providers know of all blocks that have been released so far. Sleeps. Must not be called from
/// [`Provider::detached`](super::provider::Provider::detached).
pub(super) fn flush() {
    let queue = QUEUE.lock().clone();
    if let Some(queue) = queue {
        queue.flush();
    }
}

/// Creates the queue. Fails with `ENOMEM`.
///
/// # Safety
///
/// Must be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe { QUEUE.init() };
    let queue = OwnedQueue::new_unbound(c"gpusvm-detached")?;
    *QUEUE.lock() = Some(Arc::new(queue, GFP_KERNEL)?);
    Ok(())
}

/// Waits for the work, and destroys the queue. Called once, when the module is unloaded: no pagemap exists any more.
pub(crate) fn exit() {
    flush();
    let queue = QUEUE.lock().take();
    drop(queue);
}
