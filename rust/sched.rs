// SPDX-License-Identifier: GPL-2.0

//! Scheduling.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use crate::{
    bindings as ext,
    lock_name, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        static_lock_class,
        SpinLock, //
    },
    task::Task, //
};

/// Reschedules if necessary: for loops that may run for long. May sleep.
pub fn cond_resched() {
    // SAFETY: The caller may sleep; a debug kernel warns if it may not.
    unsafe { ext::cond_resched() }
}

/// Returns whether the calling thread has been killed, and should stop its work. A kernel thread
/// can be killed only in [`Killable::run`]. C: `fatal_signal_pending(current)`.
pub fn is_killed() -> bool {
    // SAFETY: Reads fields of `current` only.
    unsafe { ext::is_killed() }
}

/// Reschedules if necessary, and fails with `EINTR` if the calling thread [has been
/// killed](is_killed). May sleep.
///
/// For each iteration of a loop that userspace can make long, and whose work can be undone.
pub fn check_killed() -> Result {
    cond_resched();
    if is_killed() {
        return Err(EINTR);
    }
    Ok(())
}

/// A call that a kernel thread runs, one at a time, and in which it can be killed like a thread of
/// a process.
///
/// A kill ends the thread's killable waits, above all those for a page that userspace withholds,
/// and [`is_killed`] returns true.
///
/// Lock order: the `thread` lock is taken last; only the lock of the thread's signals nests inside.
#[pin_data]
pub struct Killable {
    #[pin]
    thread: SpinLock<Option<ARef<Task>>>,
}

impl Killable {
    /// Returns a `Killable` with no call running.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            thread <- SpinLock::new(None, lock_name!(c"kext_killable"), static_lock_class!()),
        })
    }

    /// Calls `f`, whose killable waits are ended by [`kill`](Self::kill). A kill before the call
    /// has no effect: `f` itself has to check whether its work is still wanted. In a thread of a
    /// process this just calls `f`: only signals kill that.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        if !is_kernel_thread() {
            return f();
        }
        // A kernel thread has its own copy of kthreadd's signal handlers, all of which ignore their
        // signals. So the change affects no other thread.
        // SAFETY: The calling thread is a kernel thread, whose signal handlers no other code
        // changes.
        unsafe { ext::allow_kill() };
        *self.thread.lock() = Some((&**kernel::current!()).into());
        let result = f();
        // `kill()` does not find the thread any more.
        let thread = self.thread.lock().take();
        // SAFETY: As above. A pending kill must be discarded, as the worker thread continues with
        // other work.
        unsafe { ext::disallow_kill() };
        drop(thread);
        result
    }

    /// Returns whether a call runs, at some recent time.
    pub fn is_running(&self) -> bool {
        self.thread.lock().is_some()
    }

    /// Kills the call that runs, if there is one. Does not wait for its end.
    pub fn kill(&self) {
        if let Some(thread) = &*self.thread.lock() {
            // SAFETY: The reference keeps the thread. It is still killable, since it clears
            // `thread` under the lock before it ends that.
            unsafe { ext::kill_thread(thread.as_ptr()) };
        }
    }
}

/// Sleeps for `jiffies`, or until the thread is killed.
pub fn sleep_killable(jiffies: usize) {
    // CAST: A longer time is longer than any uptime.
    let jiffies = jiffies.min(isize::MAX as usize) as isize;
    // SAFETY: The caller may sleep.
    unsafe { bindings::schedule_timeout_killable(jiffies) };
}

/// Returns whether the calling thread is a kernel thread, even one that uses the address space of a
/// process.
pub fn is_kernel_thread() -> bool {
    // SAFETY: `current` is valid, and only the thread itself changes its flags.
    unsafe { (*Task::current_raw()).flags & bindings::PF_KTHREAD != 0 }
}

/// Returns whether the calling thread is a thread of the process whose address space is `mm`.
/// Always false for a kernel thread, even for one that uses `mm`.
pub fn is_thread_of(mm: &Mm) -> bool {
    let task = Task::current_raw();
    // SAFETY: `current` is valid, and only the thread itself changes its flags and its `mm`.
    let (flags, current_mm) = unsafe { ((*task).flags, (*task).mm) };
    flags & bindings::PF_KTHREAD == 0 && current_mm == mm.as_raw()
}

/// Returns whether a thread is runnable, and so may return to user mode soon; at some recent time.
pub fn is_runnable(task: &Task) -> bool {
    // SAFETY: The reference keeps the task.
    unsafe { ext::task_is_runnable(task.as_ptr()) }
}

/// Returns the thread with the number `nth`, counted from 0, of those threads of `process` that use
/// `mm` and are [runnable](is_runnable); `None` if there are fewer. Each call iterates over all
/// threads.
pub fn find_runnable(process: &Task, mm: &Mm, nth: u32) -> Option<ARef<Task>> {
    // SAFETY: Both references keep their objects.
    let found = unsafe { ext::find_runnable_thread(process.as_ptr(), mm.as_raw(), nth) };
    // SAFETY: The result is a task with a reference, which the caller owns.
    NonNull::new(found).map(|task| unsafe { ARef::from_raw(task.cast()) })
}

/// Returns whether `mm` still has users: a process, or another holder of a reference to `mm_users`.
/// Once false, the result stays false.
pub fn has_users(mm: &Mm) -> bool {
    // SAFETY: The reference keeps the `mm_struct`; the counter is accessed by atomic operations
    // only.
    let users = unsafe {
        let mm = mm.as_raw();
        Atomic::from_ptr(&raw mut (*mm).__bindgen_anon_1.mm_users.counter)
    };
    users.load(Relaxed) > 0
}

/// Runs `f` with the niceness `nice`, -20 to 19, of the calling thread, and restores the former
/// niceness: for threads that run other work, too, such as those of a workqueue. Changes that other
/// threads make meanwhile are lost.
pub fn with_nice<R>(nice: i16, f: impl FnOnce() -> R) -> R {
    let task = Task::current_raw();
    // SAFETY: `current` is valid, and the priority is one word.
    let before = unsafe { (*task).static_prio } as isize - bindings::DEFAULT_PRIO as isize;
    // SAFETY: `current` is valid.
    unsafe { bindings::set_user_nice(task, nice.into()) };
    let result = f();
    // SAFETY: As above.
    unsafe { bindings::set_user_nice(task, before) };
    result
}
