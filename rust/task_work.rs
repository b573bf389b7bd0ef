// SPDX-License-Identifier: GPL-2.0

//! Work that a thread of a process does on its way to user mode.
//!
//! What runs is the kernel's code, in the thread's own context: in its cgroups, with its limits.
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

/// How a thread is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The thread does it when it returns to user mode next, which it is made to do if it is there. Its
    /// sleep is not disturbed. `TWA_RESUME`.
    Resume,
    /// As if it had a signal: an interruptible sleep ends, and with it the system call, which is restarted
    /// or not, as its kind is. `TWA_SIGNAL`.
    Signal,
}

/// What a thread is to do.
pub trait TaskWorkItem: Send + Sync + Sized + 'static {
    /// Does it. Called once, by the thread, which may be exiting. May sleep.
    fn run(&self);

    /// Has `work` dropped by work on a queue that the module waits for before it goes, by
    /// [`Queue::enqueue`](kernel::workqueue::Queue::enqueue). Called after [`run`](Self::run).
    fn finish(work: Pin<KBox<TaskWork<Self>>>);
}

/// An item, to be [sent](Self::send) to a thread. It may take as long as that thread likes, and keeps the
/// module all the while.
#[pin_data]
pub struct TaskWork<E: TaskWorkItem> {
    #[pin]
    head: Opaque<bindings::callback_head>,
    /// The thread has come back from the item, and runs the module's code no more.
    #[pin]
    returned: Opaque<ext::rcu_synchronize>,
    #[pin]
    end: Work<TaskWork<E>>,
    item: E,
    /// Given up last.
    _module: ModuleRef,
}

impl_has_work! {
    impl{E: TaskWorkItem} HasWork<Self> for TaskWork<E> { self.end }
}

// SAFETY: The parts that are no item are touched by one thread after the other.
unsafe impl<E: TaskWorkItem> Send for TaskWork<E> {}

impl<E: TaskWorkItem> TaskWork<E> {
    /// An item whose code is that of `module`. Fails with `ENOMEM`.
    pub fn new(item: E, module: ModuleRef) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                head <- Opaque::ffi_init(|slot: *mut bindings::callback_head| {
                    // SAFETY: The place is valid.
                    unsafe { (*slot).func = Some(Self::run) }
                }),
                returned <- Opaque::ffi_init(|slot: *mut ext::rcu_synchronize| {
                    // SAFETY: The place is valid, and the object does not move.
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

    /// Has `task` do it. Any context. Fails with `ESRCH` if the thread is exiting, and drops it then.
    pub fn send(self: Pin<KBox<Self>>, task: &Task, notify: Notify) -> Result {
        let notify = match notify {
            Notify::Resume => bindings::task_work_notify_mode_TWA_RESUME,
            Notify::Signal => bindings::task_work_notify_mode_TWA_SIGNAL,
        };
        // SAFETY: It is not moved out of its box.
        let this = KBox::into_raw(unsafe { Pin::into_inner_unchecked(self) });
        // SAFETY: The task is valid. The head is initialized, and stays where it is until it is called,
        // which gets the box back.
        let added = unsafe {
            let head = Opaque::cast_into(&raw const (*this).head);
            bindings::task_work_add(task.as_ptr(), head, notify)
        };
        if added != 0 {
            // SAFETY: It came from a box, and nobody was told of it.
            drop(unsafe { Pin::new_unchecked(KBox::from_raw(this)) });
            return Err(ESRCH);
        }
        Ok(())
    }

    /// What the thread calls.
    ///
    /// # Safety
    ///
    /// `head` must be that of a work that was sent, and be called once.
    unsafe extern "C" fn run(head: *mut bindings::callback_head) {
        // SAFETY: By this function's requirements. It came from a box, which was pinned.
        let this = unsafe {
            let this = head.byte_sub(offset_of!(Self, head)).cast::<Self>();
            Pin::new_unchecked(KBox::from_raw(this))
        };
        this.item.run();
        // The thread is in the module's code, and must be out of it before the module may go. What it does
        // next after its return is the kernel's own.
        // SAFETY: The second head is initialized, and is there until the completion of which it is part is
        // waited for, by `WorkItem::run()`.
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
            // A thread that runs such work can be given more, so that this does not happen. If it did,
            // nobody would know when it is back: the module stays.
            mem::forget(this);
        }
    }
}

impl<E: TaskWorkItem> WorkItem for TaskWork<E> {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        // A thread that its cgroup keeps from the CPU, or that is stopped, comes back when it likes: the worker
        // is idle until then, and not blocked, for the load average and for who looks for hung tasks. No signal
        // ends such a sleep.
        // SAFETY: The completion is initialized, and completed by the thread as soon as it is back.
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
