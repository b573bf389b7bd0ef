// SPDX-License-Identifier: GPL-2.0

//! Allocations of Rust providers, as far as they do not depend on the provider's types.
//!
//! An allocation is counted: its folios have one reference together, and whoever holds a
//! [`Handle`](super::provider::Handle) has one. When the last folio is freed, wherever that is, the
//! allocation is handed to a work item of its pagemap's ([`Detaching`]), which tells the provider and gives
//! the folios' reference up. So the provider's code runs in process context only, and while the pagemap keeps
//! its module; and who waits for one provider waits for no other.

use super::{
    devmem::Allocation,
    drm_pagemap::{Pagemap, PagemapRef},
};
use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        global_lock,
        Arc,
        Refcount, //
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

/// What is done to an allocation whose type only the provider knows.
pub(crate) struct Vtable {
    /// No folio is left.
    ///
    /// # Safety
    ///
    /// The allocation must be one that was made with this table, and referred to.
    pub(crate) detached: unsafe fn(NonNull<Owned>),
    /// Frees it.
    ///
    /// # Safety
    ///
    /// The allocation must be one that was made with this table, and nobody know it any more.
    pub(crate) free: unsafe fn(NonNull<Owned>),
}

/// The first part of an allocation of a Rust provider.
///
/// # Invariants
///
/// It is the first part of an object that `vtable` is for. `pagemap` keeps what `allocation` refers
/// to, and the provider's module.
#[repr(C)]
#[pin_data]
pub(crate) struct Owned {
    #[pin]
    allocation: Allocation,
    refcount: Refcount,
    /// The place in the list of [`Detaching`].
    next: UnsafeCell<*mut Owned>,
    detaching: Arc<Detaching>,
    pagemap: PagemapRef,
    vtable: &'static Vtable,
}

// SAFETY: `next` is for this only.
unsafe impl Linked for Owned {
    fn next(this: NonNull<Self>) -> *mut *mut Self {
        // SAFETY: The object is valid; no reference is made.
        unsafe { UnsafeCell::raw_get(&raw const (*this.as_ptr()).next) }
    }
}

/// A counted reference to an allocation of a Rust provider. Dropped in process context only.
pub(crate) struct OwnedRef(NonNull<Owned>);

// SAFETY: An allocation, and what the provider has in it, may be used and freed by any thread.
unsafe impl Send for OwnedRef {}
// SAFETY: As above.
unsafe impl Sync for OwnedRef {}

impl Owned {
    /// The first part of an allocation for `size` bytes of addresses, with one reference. `detaching` is its
    /// pagemap's.
    ///
    /// # Safety
    ///
    /// The result must be the first part of an object that `vtable` is for, and `ops` be operations
    /// for it whose `devmem_release` is [`release`], that live as long as the provider's module.
    pub(crate) unsafe fn new(
        pagemap: PagemapRef,
        detaching: Arc<Detaching>,
        ops: *const super::devmem::Ops,
        vtable: &'static Vtable,
        size: usize,
    ) -> impl PinInit<Self> {
        let raw = NonNull::from(&*pagemap);
        // INVARIANT: By this function's requirements; the pagemap is kept from here on.
        pin_init!(Self {
            // SAFETY: As above.
            allocation <- unsafe { Allocation::new(raw, ops, size) },
            refcount: Refcount::new(1),
            next: UnsafeCell::new(core::ptr::null_mut()),
            detaching,
            pagemap,
            vtable,
        })
    }

    /// The memory that it is part of.
    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }
}

impl OwnedRef {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// The reference must be the caller's.
    pub(crate) unsafe fn from_raw(owned: NonNull<Owned>) -> Self {
        Self(owned)
    }

    /// The object.
    pub(crate) fn as_raw(&self) -> NonNull<Owned> {
        self.0
    }

    /// The allocation.
    pub(crate) fn allocation(&self) -> &Allocation {
        // SAFETY: The reference keeps it.
        unsafe { &(*self.0.as_ptr()).allocation }
    }

    /// Hands a reference over to the folios of the allocation.
    pub(crate) fn into_allocation(self) -> NonNull<Allocation> {
        let allocation = NonNull::from(self.allocation());
        core::mem::forget(self);
        allocation
    }
}

impl Clone for OwnedRef {
    fn clone(&self) -> Self {
        // SAFETY: The reference keeps it.
        unsafe { &(*self.0.as_ptr()).refcount }.inc();
        Self(self.0)
    }
}

impl Drop for OwnedRef {
    fn drop(&mut self) {
        // SAFETY: The reference keeps it.
        let this = unsafe { self.0.as_ref() };
        // What frees it is the provider's code, which has to return before its module goes.
        let _pagemap = this.pagemap.clone();
        let free = this.vtable.free;
        if this.refcount.dec_and_test() {
            // SAFETY: That was the last reference.
            unsafe { free(self.0) };
        }
    }
}

/// The allocations of a pagemap that no folio uses any more, and whose provider was not told yet.
#[pin_data]
pub(crate) struct Detaching {
    list: LockFreeList<Owned>,
    #[pin]
    work: Work<Detaching>,
    queue: Arc<OwnedQueue>,
}

impl_has_work! {
    impl HasWork<Self> for Detaching { self.work }
}

impl Detaching {
    /// None yet. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        // The queue is there as long as the module is.
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

    /// Waits until the provider was told of all allocations of the pagemap that were detached when this was
    /// called, and these references given up. Sleeps; not to be called by the provider when it is being told.
    pub(crate) fn flush(self: &Arc<Self>) {
        workqueue::flush(self);
    }
}

impl WorkItem for Detaching {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        for owned in this.list.take_all() {
            // SAFETY: The reference was the folios'.
            let owned = unsafe { OwnedRef::from_raw(owned) };
            // SAFETY: The table is for the object.
            unsafe { (owned.0.as_ref().vtable.detached)(owned.0) };
        }
    }
}

/// The `devmem_release` of all Rust providers.
///
/// # Safety
///
/// To be called once, by the core, with an allocation that is the first part of an [`Owned`], and whose pagemap
/// the caller keeps.
pub(crate) unsafe extern "C" fn release(allocation: *mut ext::drm_pagemap_devmem) {
    if let Some(owned) = NonNull::new(allocation.cast::<Owned>()) {
        // SAFETY: The folios' reference keeps it.
        let detaching = unsafe { owned.as_ref() }.detaching.clone();
        // SAFETY: The folios' reference is handed over; the object is in no list.
        unsafe { detaching.list.push(owned) };
        let queue = detaching.queue.clone();
        // If it is enqueued already, it has not begun.
        let _ = queue.enqueue(detaching);
    }
}

global_lock! {
    // SAFETY: `init()` is called before there can be a pagemap. The work of the queue tells providers.
    unsafe(uninit) static QUEUE: Mutex<Option<Arc<OwnedQueue>>> = None;
}

/// Waits until all providers were told of all allocations that were detached when this was called, and these
/// references given up. Sleeps; not to be called by a provider that is being told.
pub(super) fn flush() {
    let queue = QUEUE.lock().clone();
    if let Some(queue) = queue {
        queue.flush();
    }
}

/// Makes the queue ready. Fails with `ENOMEM`.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe { QUEUE.init() };
    let queue = OwnedQueue::new_unbound(c"gpusvm-detached")?;
    *QUEUE.lock() = Some(Arc::new(queue, GFP_KERNEL)?);
    Ok(())
}

/// Waits for the work of the queue. To be called once, when the module is unloaded, and the last pagemap is gone.
pub(crate) fn exit() {
    flush();
    let queue = QUEUE.lock().take();
    drop(queue);
}
