// SPDX-License-Identifier: GPL-2.0

//! Work that its owner can wait for: a work queue that a driver owns, and a work item of a module.
//!
//! The kernel crate reaches the system queues only, and waits for nothing: work that runs a
//! module's code must be on a queue that the module empties before it goes, or be an item that it
//! flushes.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::Arc,
    sync::LockClassKey,
    types::Opaque,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// The most work items of one queue that may run, or sleep while running, at once.
pub const MAX_ACTIVE: i32 = bindings::wq_consts_WQ_MAX_ACTIVE as i32;

/// A work queue of one's own, `struct workqueue_struct`.
///
/// Dropping it waits for all of its work, so it must not be dropped from work that runs on it.
///
/// # Invariants
///
/// The pointer is a work queue made by `alloc_workqueue()`, and this is its only owner.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue may be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: The work queue functions synchronise by themselves.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue whose work runs on any CPU, up to [`MAX_ACTIVE`] items at a time.
    ///
    /// Each item that sleeps occupies one of these; the kernel adds worker threads as needed.
    /// Fails with `ENOMEM`.
    pub fn new_unbound(name: &CStr) -> Result<Self> {
        Self::new_limited(name, MAX_ACTIVE)
    }

    /// Makes a queue whose work runs on any CPU, up to `max_active` items at a time: the others wait for
    /// these, in order. Not more than [`MAX_ACTIVE`] count. Fails with `ENOMEM`.
    pub fn new_limited(name: &CStr, max_active: i32) -> Result<Self> {
        // SAFETY: The format takes one C string, which `name` is; it is copied.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                max_active.clamp(1, MAX_ACTIVE),
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Just made, and handed to nobody else.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    /// Waits until the queue is empty, work that its own work enqueues included.
    ///
    /// Nothing else may enqueue meanwhile: such work is refused with a warning. Sleeps.
    pub fn drain(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) }
    }

    /// Waits for the work that is on the queue now. Sleeps.
    pub fn flush(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant it is a work queue, which lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; nobody can enqueue any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Takes a delayed work item back, if it has not begun to run, and drops the reference that was enqueued with
/// it. Returns whether it was pending. Waits for nothing; work that runs goes on.
pub fn cancel_delayed<T, const ID: u64>(item: &Arc<T>) -> bool
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    let ptr: *const T = &raw const **item;
    // SAFETY: The item is valid, and its work that of a `delayed_work`, by what `HasDelayedWork` promises.
    let was_pending = unsafe {
        let work = Work::raw_get(T::raw_get_work(ptr.cast_mut()));
        bindings::cancel_delayed_work(kernel::container_of!(work, bindings::delayed_work, work))
    };
    if was_pending {
        // SAFETY: It was enqueued as an `Arc`, which is the only kind of pointer that its work takes, and
        // which belongs to the work until it runs: it does not any more.
        drop(unsafe { Arc::from_raw(ptr) });
    }
    was_pending
}

/// Waits until a work item has run, if it is enqueued or runs, and the reference that was enqueued with it is
/// given up. Sleeps; must not be called by what it runs.
pub fn flush<T, const ID: u64>(item: &Arc<T>)
where
    T: HasWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    let ptr: *const T = &raw const **item;
    // SAFETY: The item is valid, and its work was made ready when it was made.
    unsafe {
        let work = T::raw_get_work(ptr.cast_mut());
        bindings::flush_work(Work::raw_get(work));
    }
}

/// A work item that is a static of a module, and runs a function of it.
///
/// However often it is scheduled before it runs, it runs once; it never runs twice at a time.
#[repr(C)]
pub struct StaticWork {
    // The first field, see `run()`.
    work: Opaque<bindings::work_struct>,
    f: fn(),
}

// SAFETY: The work queue functions synchronise by themselves, and a function may be called by
// any thread.
unsafe impl Sync for StaticWork {}

impl StaticWork {
    /// A work item that runs `f`, which may sleep.
    ///
    /// # Safety
    ///
    /// [`init`](Self::init) must be called before any other function.
    pub const unsafe fn new(f: fn()) -> Self {
        Self {
            work: Opaque::zeroed(),
            f,
        }
    }

    /// Makes the item ready.
    ///
    /// # Safety
    ///
    /// To be called once, before any other function.
    pub unsafe fn init(&'static self, name: &'static CStr, key: Pin<&'static LockClassKey>) {
        // SAFETY: Nobody uses the item yet, which never moves; `name` and `key` live as long.
        unsafe {
            bindings::init_work_with_key(
                self.work.get(),
                Some(Self::run),
                false,
                name.as_char_ptr(),
                key.as_ptr(),
            )
        }
    }

    /// Has the item run, soon, on whichever CPU. May be called in any context.
    ///
    /// What was written before is seen by the run that follows.
    pub fn schedule(&'static self) {
        // SAFETY: The system's queue exists, always, and the item was made ready, as `new()` requires.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as kernel::ffi::c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Waits until the item has run, if it is scheduled or runs. Sleeps; must not be called by what
    /// it runs.
    pub fn flush(&'static self) {
        // SAFETY: The item was made ready.
        unsafe { bindings::flush_work(self.work.get()) };
    }

    /// What the work queue calls.
    ///
    /// # Safety
    ///
    /// `work` must be that of a `StaticWork`.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        const { assert!(core::mem::offset_of!(StaticWork, work) == 0) };
        // SAFETY: It is the first field, which `Opaque` wraps transparently, of a static.
        let this: &'static Self = unsafe { &*work.cast() };
        (this.f)();
    }
}
