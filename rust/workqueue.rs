// SPDX-License-Identifier: GPL-2.0

//! Workqueues that a driver owns, and work items that can be flushed.
//!
//! The kernel crate supports the system workqueues only, and no waiting. Work that runs code of a
//! module must have finished before the module is unloaded: the module must drain its own queue, or
//! flush the item.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    alloc::{AllocError, Flags},
    bindings,
    prelude::*,
    sync::Arc,
    sync::LockClassKey,
    types::Opaque,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Queue,
        RawWorkItem,
        Work,
        WorkItem, //
    }, //
};

/// The most work items of one queue that may run, or sleep while running, at once.
pub const MAX_ACTIVE: i32 = bindings::wq_consts_WQ_MAX_ACTIVE as i32;

/// A workqueue of a driver, `struct workqueue_struct`.
///
/// Dropping it waits for all of its work, so it must not be dropped by work that runs on it. It does not wait for delayed
/// work whose time has not come. Therefore this gives no [`Queue`], and [`enqueue_delayed`] is for items that keep their
/// queue.
///
/// # Invariants
///
/// The pointer is a workqueue allocated by `alloc_workqueue()`, and this is its only owner.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread may use and destroy a workqueue.
unsafe impl Send for OwnedQueue {}
// SAFETY: The workqueue functions synchronise by themselves.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a queue whose work runs on any CPU, up to [`MAX_ACTIVE`] items at a time.
    ///
    /// An item that sleeps counts as active; the kernel adds worker threads as needed. Fails with
    /// `ENOMEM`.
    pub fn new_unbound(name: &CStr) -> Result<Self> {
        Self::new_limited(name, MAX_ACTIVE)
    }

    /// Creates a queue whose work runs on any CPU, up to `max_active` items, at most
    /// [`MAX_ACTIVE`], at a time; further items wait in order. Fails with `ENOMEM`.
    pub fn new_limited(name: &CStr, max_active: i32) -> Result<Self> {
        // SAFETY: The format takes one C string, which is `name`; it is copied.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                max_active.clamp(1, MAX_ACTIVE),
                name.as_char_ptr(),
            )
        };
        // INVARIANT: The queue was just allocated, and no other code has its pointer.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    fn queue(&self) -> &Queue {
        // SAFETY: By the type invariants it is a workqueue, which lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Enqueues a work item, as [`Queue::enqueue`] does.
    pub fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        self.queue().enqueue(work)
    }

    /// Runs `f` on the queue, as [`Queue::try_spawn`] does.
    pub fn try_spawn<F: FnOnce() + Send + 'static>(
        &self,
        flags: Flags,
        f: F,
    ) -> Result<(), AllocError> {
        self.queue().try_spawn(flags, f)
    }

    /// Waits until the queue is empty, including work that its own work enqueues. Sleeps.
    ///
    /// No other code may enqueue meanwhile: the kernel refuses such work with a warning.
    pub fn drain(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) }
    }

    /// Waits for the work that is on the queue now. Sleeps.
    pub fn flush(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

/// An object that owns a queue, or a reference to the owner of one.
pub trait HasQueue {
    /// Returns the queue, which exists as long as the object.
    fn queue(&self) -> &OwnedQueue;
}

/// Enqueues a delayed work item on its own queue, in `delay` jiffies. Returns false if it is enqueued already. May be
/// called in any context.
pub fn enqueue_delayed<T, const ID: u64>(item: &Arc<T>, delay: usize) -> bool
where
    T: HasQueue + HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>> + Send + Sync + 'static,
{
    // The timer owns a reference to the item until it has put it on the queue, and the item keeps the queue.
    let queue = item.queue().queue();
    queue.enqueue_delayed::<_, ID>(item.clone(), delay).is_ok()
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; without a reference no code can enqueue any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Cancels a delayed work item that has not begun to run, and drops the reference that was enqueued
/// with it. Returns whether it was pending. Does not wait for an item that runs.
pub fn cancel_delayed<T, const ID: u64>(item: &Arc<T>) -> bool
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    let ptr: *const T = &raw const **item;
    // SAFETY: The item is valid, and `HasDelayedWork` guarantees that its work is part of a
    // `delayed_work`.
    let was_pending = unsafe {
        let work = Work::raw_get(T::raw_get_work(ptr.cast_mut()));
        bindings::cancel_delayed_work(kernel::container_of!(work, bindings::delayed_work, work))
    };
    if was_pending {
        // SAFETY: The item was enqueued as an `Arc`, the only pointer type that `T` accepts. The
        // work owned that reference until it ran, which it will not do any more.
        drop(unsafe { Arc::from_raw(ptr) });
    }
    was_pending
}

/// Waits for a work item that is enqueued or runs, until it has finished and dropped the reference
/// that was enqueued with it. Sleeps; the item itself must not call it.
pub fn flush<T, const ID: u64>(item: &Arc<T>)
where
    T: HasWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    let ptr: *const T = &raw const **item;
    // SAFETY: The item is valid, and its work was initialized with it.
    unsafe {
        let work = T::raw_get_work(ptr.cast_mut());
        bindings::flush_work(Work::raw_get(work));
    }
}

/// An object that is a work item whose only work is to be dropped, see [`DeferredArc`].
pub trait DeferredDrop:
    HasWork<Self> + WorkItem<Pointer = Arc<Self>> + Send + Sync + Sized + 'static
{
    /// Returns the queue on which the object is dropped. It must not be dropped with the object:
    /// its owner must wait for the object and [flush](OwnedQueue::flush) the queue first.
    fn drop_queue(&self) -> &Arc<OwnedQueue>;
}

/// A counted reference, like an [`Arc`], to an object that work on a queue of its own drops.
///
/// The references may be dropped where the object may not: by work that the drop of the object
/// waits for. The object's [`WorkItem::run`] gets the only reference.
pub struct DeferredArc<T: DeferredDrop>(ManuallyDrop<Arc<T>>);

impl<T: DeferredDrop> From<Arc<T>> for DeferredArc<T> {
    fn from(object: Arc<T>) -> Self {
        Self(ManuallyDrop::new(object))
    }
}

impl<T: DeferredDrop> Clone for DeferredArc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: DeferredDrop> Deref for DeferredArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeferredDrop> Drop for DeferredArc<T> {
    fn drop(&mut self) {
        // SAFETY: Nobody uses the field after this.
        let object = unsafe { ManuallyDrop::take(&mut self.0) };
        let queue = object.drop_queue().clone();
        if let Some(last) = Arc::into_unique_or_drop(object) {
            // It is not enqueued yet: then the queue would have another reference.
            let _ = queue.enqueue::<Arc<T>, 0>(Arc::from(last));
        }
    }
}

/// A work item in a static of a module, which runs a function of the module.
///
/// If it is scheduled several times before it runs, it runs once; it never runs on two CPUs at
/// once.
#[repr(C)]
pub struct StaticWork {
    // The first field: `run()` relies on that.
    work: Opaque<bindings::work_struct>,
    f: fn(),
}

// SAFETY: The workqueue functions synchronise by themselves, and any thread may call a function.
unsafe impl Sync for StaticWork {}

impl StaticWork {
    /// Returns a work item that runs `f`, which may sleep.
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

    /// Initializes the item.
    ///
    /// # Safety
    ///
    /// Must be called once, before any other function.
    pub unsafe fn init(&'static self, name: &'static CStr, key: Pin<&'static LockClassKey>) {
        // SAFETY: No other code uses the item yet. It is a static and never moves; `name` and `key`
        // are static, too.
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

    /// Schedules the item on any CPU. May be called in any context.
    ///
    /// The run that follows sees all writes that the caller made before.
    pub fn schedule(&'static self) {
        // SAFETY: The system's workqueue always exists, and the item was initialized, as `new()`
        // requires.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as kernel::ffi::c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Waits until the item has finished, if it is scheduled or runs. Sleeps; the item's function
    /// must not call it.
    pub fn flush(&'static self) {
        // SAFETY: The item was initialized.
        unsafe { bindings::flush_work(self.work.get()) };
    }

    /// The work function.
    ///
    /// # Safety
    ///
    /// `work` must be that of a [`StaticWork`].
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        const { assert!(core::mem::offset_of!(StaticWork, work) == 0) };
        // SAFETY: The work is the first field of a `StaticWork`, which `Opaque` wraps transparently
        // and which is a static.
        let this: &'static Self = unsafe { &*work.cast() };
        (this.f)();
    }
}
