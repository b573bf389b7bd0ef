// SPDX-License-Identifier: GPL-2.0

//! Kernel threads that belong to a user process: in its cgroups wherever it moves, and gone with it.
//!
//! They are threads of the process, as far as it and its parents can see. What runs is the kernel's.
//!
//! C header: [`include/linux/sched/vhost_task.h`](srctree/include/linux/sched/vhost_task.h)

use crate::bindings as ext;
use core::{ffi::c_void, ptr::NonNull};
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*,
    sync::Arc,
    task::Task, //
};

/// Whether this kernel has such threads.
pub const IS_AVAILABLE: bool = cfg!(CONFIG_VHOST_TASK);

/// What such a thread does.
pub trait Worker: Send + Sync + 'static {
    /// Whether there is something to do: asked after each [wake](ProcessThread::wake). Must not sleep.
    fn has_work(&self) -> bool;

    /// Does it. May sleep, but not for what the process itself has to do.
    fn work(&self);

    /// The process is being killed, or executes another program: the thread ends, and does nothing any
    /// more. Called once, by the thread; not if the thread was stopped before.
    fn killed(&self);
}

/// A thread of a process.
///
/// Dropping it stops it and waits for its end; a process that is stopped (`SIGSTOP`) has that wait until
/// it goes on. Not to be dropped by the thread itself.
///
/// # Invariants
///
/// The pointer is a task that was made for the object that `worker` keeps, and was not stopped.
pub struct ProcessThread<W: Worker> {
    task: NonNull<ext::vhost_task>,
    worker: Arc<W>,
}

// SAFETY: Such a thread may be woken and stopped by any other, and its object is for all of them.
unsafe impl<W: Worker> Send for ProcessThread<W> {}
// SAFETY: As above.
unsafe impl<W: Worker> Sync for ProcessThread<W> {}

impl<W: Worker> ProcessThread<W> {
    /// Makes a thread of the calling process; up to 15 characters of `name` are seen.
    ///
    /// Fails with `EINVAL` for a kernel thread; `EAGAIN` when the process may have no more threads;
    /// `ERESTARTNOINTR` when a signal is to be handled before; `EOPNOTSUPP` on a kernel that cannot;
    /// and `ENOMEM`. Sleeps.
    pub fn new(name: &CStr, worker: Arc<W>) -> Result<Self> {
        let current = Task::current_raw();
        // SAFETY: `current` is valid, and its flags are changed by itself alone.
        if unsafe { (*current).flags } & bindings::PF_KTHREAD != 0 {
            return Err(EINVAL);
        }
        let data = Arc::as_ptr(&worker).cast_mut().cast();
        // SAFETY: The object is for any thread, and lives until the task is stopped. The name is copied.
        let task = unsafe {
            ext::vhost_task_create(
                Some(Self::run),
                Some(Self::handle_sigkill),
                data,
                name.as_char_ptr(),
            )
        };
        let task = NonNull::new(from_err_ptr(task)?).ok_or(ENOMEM)?;
        // SAFETY: Just made, and started once.
        unsafe { ext::vhost_task_start(task.as_ptr()) };
        // INVARIANT: Just made.
        Ok(Self { task, worker })
    }

    /// What the thread works for.
    pub fn worker(&self) -> &W {
        &self.worker
    }

    /// Has the thread look for work. Any context.
    pub fn wake(&self) {
        // SAFETY: By the type invariants.
        unsafe { ext::vhost_task_wake(self.task.as_ptr()) }
    }

    /// # Safety
    ///
    /// To be called by the task, with the object that it was made for.
    unsafe extern "C" fn run(data: *mut c_void) -> bool {
        // SAFETY: By this function's requirements; the object lives until the task is stopped.
        let worker = unsafe { &*data.cast::<W>() };
        // The thread is about to sleep: a wake-up that comes now has it stay awake.
        if !worker.has_work() {
            return false;
        }
        // SAFETY: Has no requirements: the thread goes on.
        unsafe { ext::set_current_running() };
        worker.work();
        true
    }

    /// # Safety
    ///
    /// As for [`run`](Self::run).
    unsafe extern "C" fn handle_sigkill(data: *mut c_void) {
        // SAFETY: As above.
        unsafe { &*data.cast::<W>() }.killed();
    }
}

impl<W: Worker> Drop for ProcessThread<W> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; stopped once. The object goes after that.
        unsafe { ext::vhost_task_stop(self.task.as_ptr()) }
    }
}
