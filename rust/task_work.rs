// SPDX-License-Identifier: GPL-2.0

//! Callbacks that a thread of a process runs on its way to user mode.
//!
//! The callback is kernel code in the context of that thread: with its cgroups and its limits.
//!
//! C header: [`include/linux/task_work.h`](srctree/include/linux/task_work.h)

use crate::{
    bindings as ext,
    module::ModuleRef, //
};
use core::mem::{self, offset_of};
use kernel::{
    bindings,
    impl_has_work,
    new_work,
    prelude::*,
    task::Task,
    types::Opaque,
    workqueue::{Work, WorkItem}, //
};

/// How the thread is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The thread runs the callback when it next returns to user mode. A thread in user mode is interrupted; a
    /// sleeping thread is not woken. `TWA_RESUME`.
    Resume,
    /// As for a signal: an interruptible sleep ends, and the system call is restarted or returns `EINTR`.
    /// `TWA_SIGNAL`.
    Signal,
}

/// A callback for a thread.
///
/// # Safety
///
/// [`finish`](Self::finish) must do what its documentation says, or leak `work`. When it is called, `work` is in the
/// list of the thread's task work, and the thread has not yet left the module's code.
pub unsafe trait TaskWorkItem: Send + Sync + Sized + 'static {
    /// Runs the callback. Called once, by the thread, which may be exiting. May sleep.
    fn run(&self);

    /// Passes `work` to [`TaskWork::run`](WorkItem::run) in a worker, by
    /// [`Queue::enqueue`](kernel::workqueue::Queue::enqueue) for example, on a queue that the module flushes before it
    /// is unloaded. Does not drop `work` itself. Called after [`run`](Self::run).
    fn finish(work: Pin<KBox<TaskWork<Self>>>);
}

/// An item that is [sent](Self::send) to a thread. There is no bound on when the thread runs it. Until the thread has
/// left the module's code, the item holds a reference to the module.
#[pin_data]
pub struct TaskWork<E: TaskWorkItem> {
    #[pin]
    head: Opaque<bindings::callback_head>,
    /// Completed when the thread has returned from `func`, and so from the module's code.
    #[pin]
    returned: Opaque<ext::rcu_synchronize>,
    #[pin]
    end: Work<TaskWork<E>>,
    item: E,
    /// Dropped last.
    _module: ModuleRef,
}

impl_has_work! {
    impl{E: TaskWorkItem} HasWork<Self> for TaskWork<E> { self.end }
}

// SAFETY: `item` is `Send`. The sending thread, the thread that runs the item and the worker use the other fields one
// after the other.
unsafe impl<E: TaskWorkItem> Send for TaskWork<E> {}

impl<E: TaskWorkItem> TaskWork<E> {
    /// Allocates an item whose code is in `module`. Fails with `ENOMEM`.
    pub fn new(item: E, module: ModuleRef) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                head <- Opaque::ffi_init(|slot: *mut bindings::callback_head| {
                    // SAFETY: The place is valid.
                    unsafe { (*slot).func = Some(Self::run) }
                }),
                returned <- Opaque::ffi_init(|slot: *mut ext::rcu_synchronize| {
                    // SAFETY: The place is valid, and the object is pinned.
                    unsafe {
                        (*slot).head.func = Some(ext::wakeme_after_rcu);
                        ext::init_completion(&raw mut (*slot).completion);
                    }
                }),
                end <- new_work!("task_work::TaskWork"),
                item,
                _module: module,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Sends the item to `task`. May be called in any context. Fails with `ESRCH`, and drops the item, if the thread is
    /// exiting.
    pub fn send(self: Pin<KBox<Self>>, task: &Task, notify: Notify) -> Result {
        let notify = match notify {
            Notify::Resume => bindings::task_work_notify_mode_TWA_RESUME,
            Notify::Signal => bindings::task_work_notify_mode_TWA_SIGNAL,
        };
        // SAFETY: The item is not moved out of its box.
        let this = KBox::into_raw(unsafe { Pin::into_inner_unchecked(self) });
        // SAFETY: The task is valid. The head is initialized, and the box is not freed before `run()` takes it back.
        let added = unsafe {
            let head = Opaque::cast_into(&raw const (*this).head);
            bindings::task_work_add(task.as_ptr(), head, notify)
        };
        if added != 0 {
            // SAFETY: `this` came from a box, and `task_work_add()` did not add it.
            drop(unsafe { Pin::new_unchecked(KBox::from_raw(this)) });
            return Err(ESRCH);
        }
        Ok(())
    }

    /// The function that the thread calls.
    ///
    /// # Safety
    ///
    /// `head` must be that of an item that was sent. May be called once for each item.
    unsafe extern "C" fn run(head: *mut bindings::callback_head) {
        // SAFETY: The caller guarantees that `head` is in a `TaskWork`, which `send()` took out of a pinned box.
        let this = unsafe {
            let this = head.byte_sub(offset_of!(Self, head)).cast::<Self>();
            Pin::new_unchecked(KBox::from_raw(this))
        };
        this.item.run();
        // This thread runs the module's code, which must stay loaded until the thread has returned from here. The
        // next task work of the thread, `wakeme_after_rcu()`, is code of the kernel.
        // SAFETY: The second head is initialized. `WorkItem::run()` frees it only after it has waited for the
        // completion that `wakeme_after_rcu()` completes.
        let added = unsafe {
            let returned = Opaque::cast_into(&raw const this.returned);
            bindings::task_work_add(
                Task::current_raw(),
                &raw mut (*returned).head,
                bindings::task_work_notify_mode_TWA_RESUME,
            )
        };
        if added == 0 {
            E::finish(this);
        } else {
            // `task_work_add()` does not fail in a thread that runs task work. If it did, the return of this thread
            // from the module's code could not be detected: leak the item, and with it the reference to the module.
            mem::forget(this);
        }
    }
}

impl<E: TaskWorkItem> WorkItem for TaskWork<E> {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        // A thread that is stopped or throttled by its cgroup may return much later. `TASK_IDLE` keeps the sleep of
        // this worker out of the load average and of the hung-task detector; no signal ends it.
        // SAFETY: The completion is initialized; the thread completes it after its return from `TaskWork::run()`.
        unsafe {
            let returned = Opaque::cast_into(&raw const this.returned);
            bindings::wait_for_completion_state(
                &raw mut (*returned).completion,
                bindings::TASK_IDLE,
            );
        }
        drop(this);
    }
}
