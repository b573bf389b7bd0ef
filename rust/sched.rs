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

/// Lets other tasks run if it is time: for loops that may go on for long. May sleep.
pub fn cond_resched() {
    // SAFETY: Has no requirements, but that the caller may sleep, which is its own affair: a debug
    // kernel warns if not.
    unsafe { ext::cond_resched() }
}

/// Whether the calling thread has been killed, and should come to an end. For a thread of the kernel that is
/// so only in what is [`Killable`]. C: `fatal_signal_pending(current)`.
pub fn is_killed() -> bool {
    // SAFETY: Looks at `current` only.
    unsafe { ext::is_killed() }
}

/// For each step of a loop that userspace can make long, and that can be undone: lets other tasks run if
/// it is time. Fails with `EINTR` if the calling thread [has been killed](is_killed). May sleep.
pub fn check_killed() -> Result {
    cond_resched();
    if is_killed() {
        return Err(EINTR);
    }
    Ok(())
}

/// What a kernel thread does, one at a time, and what it can be killed in: as a thread of a process can be,
/// it waits for nothing then that such a thread would not wait for, a page that userspace holds back above
/// all, and [`is_killed`] says so.
///
/// Lock order: its lock is a leaf, but for that of the thread's signals.
#[pin_data]
pub struct Killable {
    #[pin]
    thread: SpinLock<Option<ARef<Task>>>,
}

impl Killable {
    /// Nothing that is being done.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            thread <- SpinLock::new(None, lock_name!(c"kext_killable"), static_lock_class!()),
        })
    }

    /// Calls `f`, which [`kill`](Self::kill) ends the waits of. What was killed before it begins is not this:
    /// whether it is wanted still is for `f` to ask. A thread of a process is killed by signals only.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        if !is_kernel_thread() {
            return f();
        }
        // A kernel thread has signal handlers of its own, all of which ignore: it inherits them from kthreadd
        // without sharing. So this is about no other thread.
        // SAFETY: The thread is the kernel's, which handles its signals itself.
        unsafe { ext::allow_kill() };
        *self.thread.lock() = Some((&**kernel::current!()).into());
        let result = f();
        // From here on nobody kills it.
        let thread = self.thread.lock().take();
        // SAFETY: As above. It is a thread of a pool, which goes on with the work of others.
        unsafe { ext::disallow_kill() };
        drop(thread);
        result
    }

    /// Whether something is being done, at some recent time.
    pub fn is_running(&self) -> bool {
        self.thread.lock().is_some()
    }

    /// Kills what is being done, if something is. Waits for nothing.
    pub fn kill(&self) {
        if let Some(thread) = &*self.thread.lock() {
            // SAFETY: The thread is valid, and has not given up to be killed, which it does under the lock.
            unsafe { ext::kill_thread(thread.as_ptr()) };
        }
    }
}

/// Sleeps for so many jiffies, or until the thread is killed.
pub fn sleep_killable(jiffies: usize) {
    // CAST: Longer than this is for ever.
    let jiffies = jiffies.min(isize::MAX as usize) as isize;
    // SAFETY: Has no requirements, but that the caller may sleep.
    unsafe { bindings::schedule_timeout_killable(jiffies) };
}

/// Whether the calling thread is one of the kernel's, whatever it works with.
pub fn is_kernel_thread() -> bool {
    // SAFETY: `current` is valid, and its flags are changed by itself alone.
    unsafe { (*Task::current_raw()).flags & bindings::PF_KTHREAD != 0 }
}

/// Whether the calling thread is one of a process, and that is the one whose memory is `mm`. A kernel
/// thread is not, whatever it works with.
pub fn is_thread_of(mm: &Mm) -> bool {
    let task = Task::current_raw();
    // SAFETY: `current` is valid, and its flags and mm are changed by itself alone.
    let (flags, current_mm) = unsafe { ((*task).flags, (*task).mm) };
    flags & bindings::PF_KTHREAD == 0 && current_mm == mm.as_raw()
}

/// Whether a thread does not sleep, and so may come to user mode soon; at some recent time.
pub fn is_runnable(task: &Task) -> bool {
    // SAFETY: The task is valid.
    unsafe { ext::task_is_runnable(task.as_ptr()) }
}

/// One of the threads of `process` that work in `mm` and are [runnable](is_runnable): that with the number
/// `nth`, from 0 on. None if there are fewer. Each call looks at all threads.
pub fn find_runnable(process: &Task, mm: &Mm, nth: u32) -> Option<ARef<Task>> {
    // SAFETY: Both are valid.
    let found = unsafe { ext::find_runnable_thread(process.as_ptr(), mm.as_raw(), nth) };
    // SAFETY: It is a task, whose reference is handed over.
    NonNull::new(found).map(|task| unsafe { ARef::from_raw(task.cast()) })
}

/// Whether a process still runs, or somebody still works, in `mm`. Once that is not so, it stays so.
pub fn has_users(mm: &Mm) -> bool {
    // SAFETY: The reference keeps the descriptor, whose counter is changed by atomic operations.
    let users = unsafe {
        let mm = mm.as_raw();
        Atomic::from_ptr(&raw mut (*mm).__bindgen_anon_1.mm_users.counter)
    };
    users.load(Relaxed) > 0
}

/// Runs `f` with the niceness `nice`, -20 to 19, of the calling thread: for threads that are lent, as
/// those of a work queue. Others that change it meanwhile are undone.
pub fn with_nice<R>(nice: i16, f: impl FnOnce() -> R) -> R {
    let task = Task::current_raw();
    // SAFETY: `current` is valid, and the priority is a word.
    let before = unsafe { (*task).static_prio } as isize - bindings::DEFAULT_PRIO as isize;
    // SAFETY: `current` is valid.
    unsafe { bindings::set_user_nice(task, nice.into()) };
    let result = f();
    // SAFETY: As above.
    unsafe { bindings::set_user_nice(task, before) };
    result
}
