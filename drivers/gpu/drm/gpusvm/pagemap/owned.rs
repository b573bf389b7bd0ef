// SPDX-License-Identifier: GPL-2.0

//! Allocations of Rust providers, as far as they do not depend on the provider's types.
//!
//! An allocation is counted: its folios have one reference together, and whoever holds a
//! [`Handle`](super::provider::Handle) has one. When the last folio is freed, wherever that is, the
//! allocation is handed to a work item, which tells the provider and gives the folios' reference up.
//! So the provider's code runs in process context only, and while the pagemap keeps its module.

use super::{
    devmem::Allocation,
    page_map::{PageMap, PageMapRef},
};
use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{prelude::*, static_lock_class, sync::Refcount};
use kernel_ext::{
    bindings as ext,
    list::llist::{
        Linked,
        LockFreeList, //
    },
    workqueue::StaticWork, //
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
    /// The place in [`DETACHED`].
    next: UnsafeCell<*mut Owned>,
    pagemap: PageMapRef,
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
    /// The first part of an allocation for `size` bytes of addresses, with one reference.
    ///
    /// # Safety
    ///
    /// The result must be the first part of an object that `vtable` is for, and `ops` be operations
    /// for it whose `devmem_release` is [`release`], that live as long as the provider's module.
    pub(crate) unsafe fn new(
        pagemap: PageMapRef,
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
            pagemap,
            vtable,
        })
    }

    /// The memory that it is part of.
    pub(crate) fn pagemap(&self) -> &PageMap {
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

/// Allocations that no folio uses any more, and whose provider was not told yet.
static DETACHED: LockFreeList<Owned> = LockFreeList::new();
// SAFETY: `init()` is called before any other function can be.
static FINISH: StaticWork = unsafe { StaticWork::new(finish_all) };

fn finish_all() {
    for owned in DETACHED.take_all() {
        // SAFETY: The reference was the folios'.
        let owned = unsafe { OwnedRef::from_raw(owned) };
        // SAFETY: The table is for the object.
        unsafe { (owned.0.as_ref().vtable.detached)(owned.0) };
    }
}

/// The `devmem_release` of all Rust providers.
///
/// # Safety
///
/// To be called once, by the core, with an allocation that is the first part of an [`Owned`].
pub(crate) unsafe extern "C" fn release(allocation: *mut ext::drm_pagemap_devmem) {
    if let Some(owned) = NonNull::new(allocation.cast::<Owned>()) {
        // SAFETY: The folios' reference is handed over; the object is in no list.
        unsafe { DETACHED.push(owned) };
        FINISH.schedule();
    }
}

/// Waits until the providers were told of all allocations that were detached when this was called,
/// and these references given up. Sleeps; not to be called by a provider that is being told.
pub(super) fn flush() {
    FINISH.flush();
}

/// Makes the work item ready.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() {
    // SAFETY: Nobody can have an allocation before.
    unsafe { FINISH.init(c"gpusvm.detached", static_lock_class!()) };
}
