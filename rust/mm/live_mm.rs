// SPDX-License-Identifier: GPL-2.0

//! References to the users of an address space (`mmget()`), for threads that work for a process,
//! unless the process is exiting.
//!
//! A kernel thread that serves a process takes a reference to `mm_users`. While it holds that, none
//! of the memory is freed, even if the process was killed to free memory. So a kernel thread must
//! stop when the process is exiting: it would allocate the memory that the exit was to free, and
//! the OOM killer would select another process.
//!
//! Nor may the thread invoke the OOM killer while it holds the reference: the OOM killer kills the
//! process, the parent reaps it, and the kernel no longer has a victim whose memory it expects to
//! be freed soon. So the thread makes the kernel free memory before it takes the reference. The
//! freed pages are on the lists of one CPU and of one migrate type, where another allocation may
//! not find them. While the thread holds the reference it may therefore allocate as much from the
//! kernel's reserves, which never invokes the OOM killer.
//!
//! The reserves are small. A walk may wait for userspace without limit (userfaultfd, FUSE) and
//! continue when there is no memory any more; userspace could let any number of walks continue at
//! once. So only two threads may use the reserves at a time. A thread that does not get them within
//! `RESERVES_MS` works without them: room was made for it all the same.
//!
//! # Memory cgroups
//!
//! If the memory cgroup of the process is at its limit, the thread likewise makes it free memory
//! before it takes the reference, and may then exceed the limit while it holds it: a charge with
//! `PF_MEMALLOC` does not fail, and does not invoke the OOM killer.
//!
//! The OOM killer of a cgroup does not see a process all of whose threads have begun to exit, even
//! before its memory is free. A process that charges memory is usually the victim itself, and its
//! charges end with it. A kernel thread that continued to charge would have the next process
//! killed, until the memory of the first is free. So a kernel thread
//!
//! - first charges without an OOM kill, and stops if the process is exiting;
//! - waits for `EXIT_MS` before a kill: another thread may have caused one;
//! - has one process killed by a charge that fails after that ([`Memcg::kill`]), unless a thread of
//!   a process caused a kill meanwhile;
//! - waits for the memory of the victim for up to `VICTIM_MS` before it lets itself or another kernel
//!   thread cause the next kill.
//!
//! C headers: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h),
//! [`include/linux/oom.h`](srctree/include/linux/oom.h)

use crate::{
    bindings as ext,
    mm::memcg::Memcg,
    sched,
    time::jiffies, //
};
use core::{marker::PhantomData, ops::Deref};
use kernel::{
    bindings,
    mm::{Mm, MmWithUser, MmWithUserAsync},
    prelude::*,
    sync::aref::ARef,
    task::Task,
    time::msecs_to_jiffies, //
};

/// Returns whether the process of `mm` is exiting: the OOM killer has selected it, all of its
/// threads have been told to exit (`SIGNAL_GROUP_EXIT`), or none is left. The result is a hint: it
/// may be outdated, but a process that is exiting stays so.
///
/// If several processes share the address space, the exit of one of them does not count. Without
/// `CONFIG_MEMCG` the kernel does not track the owner of an address space, and only the OOM
/// killer's selection counts.
pub fn is_exiting(mm: &MmWithUser) -> bool {
    // SAFETY: `mm` is valid and has users, so that its owner is a task or null.
    unsafe { ext::mm_is_exiting(mm.as_raw()) }
}

/// Returns whether `mm` has no users any more, or its process [is exiting](is_exiting).
pub fn is_gone(mm: &Mm) -> bool {
    user_of(mm).is_err()
}

/// How many pages one step may allocate besides the process's pages: page tables and the kernel's
/// own records.
const OVERHEAD: usize = 16;

/// How long to wait for the reserves, in milliseconds: the duration of a step that does not block.
const RESERVES_MS: u32 = 100;

/// How long a cgroup may free memory by itself before a kernel thread has a process killed, in
/// milliseconds: a former victim may be exiting.
const EXIT_MS: u32 = 100;

/// How long to wait for the memory of a process that was killed, in milliseconds: the OOM reaper
/// begins after 2 seconds (`OOM_REAPER_DELAY`), and may take one.
const VICTIM_MS: u32 = 4000;

/// The interval at which a cgroup is charged meanwhile, in milliseconds.
const POLL_MS: u32 = 20;

/// How many OOM kills in succession may have had no victim before there is no memory: the OOM
/// killer may be in use, or a former victim that takes long to exit keeps it from selecting another.
const FRUITLESS_KILLS: u32 = 5;

/// A reference to the users of an address space, held by the thread that took it.
///
/// The allocations of a kernel thread for which room was made may use the kernel's reserves until
/// this is dropped, if it is one of the two threads that may. References nest, and must be dropped
/// in reverse order.
#[must_use = "the reference to the users is dropped with this"]
pub struct LiveMm {
    // Dropped before `mm`, whose drop may free the whole address space.
    _reserves: Option<Reserves>,
    mm: ARef<MmWithUserAsync>,
}

impl Deref for LiveMm {
    type Target = MmWithUser;

    fn deref(&self) -> &MmWithUser {
        &self.mm
    }
}

/// Allows the calling thread's allocations to use the kernel's reserves, without reclaim and OOM
/// kills, until it is dropped.
struct Reserves {
    /// The flags to restore.
    before: kernel::ffi::c_uint,
    /// Not `Send`: the flags are those of the thread that created this.
    _thread: PhantomData<*mut ()>,
}

impl Reserves {
    /// Returns whether the calling thread's allocations may use the reserves.
    fn are_open() -> bool {
        // SAFETY: `current` is valid, and only the thread itself changes its flags.
        unsafe { (*Task::current_raw()).flags & bindings::PF_MEMALLOC != 0 }
    }

    /// Waits up to [`RESERVES_MS`] for the reserves. Returns `None` after that, or if the thread
    /// may use them already. Sleeps.
    fn open() -> Option<Self> {
        // SAFETY: The caller may sleep.
        if Self::are_open() || !unsafe { ext::reserves_get(RESERVES_MS) } {
            return None;
        }
        Some(Self {
            // SAFETY: Has no requirements: it changes the calling thread's flags.
            before: unsafe { ext::memalloc_noreclaim_save() },
            _thread: PhantomData,
        })
    }
}

impl Drop for Reserves {
    fn drop(&mut self) {
        // SAFETY: `before` is the result of this thread's call, with nested calls restored already,
        // and `open()` acquired the reserves.
        unsafe {
            ext::memalloc_noreclaim_restore(self.before);
            ext::reserves_put();
        }
    }
}

/// Takes a reference to the users of `mm`. Fails with `EFAULT` if it has no users any more, or its
/// process [is exiting](is_exiting); and with `ENOMEM`.
///
/// For kernel threads, and for all code that may run in one. The caller takes the reference before
/// each step that allocates memory for the process, of at most `pages` pages, and drops it after
/// the step. It must hold no lock that a process needs to exit.
///
/// If memory is short, or that of the cgroup of `mm`, a kernel thread first makes the kernel free
/// some, by an OOM kill if necessary, and takes the reference after that: so the memory of any
/// killed process is freed soon. For the cgroup it waits for a worker of the system, so the caller
/// must not run on a work queue for reclaim (`WQ_MEM_RECLAIM`). Fails with `EINTR` if the thread is
/// killed meanwhile.
pub fn get(mm: &Mm, pages: usize) -> Result<LiveMm> {
    let made_room = sched::is_kernel_thread() && make_room(mm, pages.saturating_add(OVERHEAD))?;
    // A step that allocates no pages for the process does not need the reserves.
    let reserves = if made_room && pages != 0 {
        Reserves::open()
    } else {
        None
    };
    let mm = user_of(mm)?;
    Ok(LiveMm {
        _reserves: reserves,
        mm,
    })
}

/// Returns the memory cgroup of `mm`, to charge the allocations of a kernel thread to. Fails with
/// `EFAULT` if `mm` has no users any more, or its process [is exiting](is_exiting).
pub fn memcg(mm: &Mm) -> Result<Memcg> {
    Ok(Memcg::of(&*user_of(mm)?))
}

/// Makes the kernel free `pages` pages if memory is short, or that of the cgroup of `mm`, by an OOM
/// kill if necessary. Returns whether it was short. Fails with `EFAULT` and `EINTR` like [`get`],
/// and with `ENOMEM`.
///
/// The caller must hold no reference to the users of `mm`.
fn make_room(mm: &Mm, pages: usize) -> Result<bool> {
    let short_memcg = {
        let mm = user_of(mm)?;
        // The caller of a nested `get()` has a reference, and may exceed the limit already.
        let is_short = !Reserves::are_open()
            // SAFETY: `mm` is valid and has users, so that its owner is a task or null.
            && unsafe { ext::memcg_is_short(mm.as_raw(), pages) };
        is_short.then(|| Memcg::of(&mm))
    };
    // SAFETY: Has no requirements.
    let is_short = unsafe { ext::memory_is_short(pages) };
    // SAFETY: The caller may sleep.
    if is_short && !unsafe { ext::make_room(pages) } {
        crate::debug!("there is no memory for the process");
        return Err(ENOMEM);
    }
    if let Some(memcg) = &short_memcg {
        make_memcg_room(mm, memcg, pages)?;
    }
    Ok(is_short || short_memcg.is_some())
}

/// Makes `memcg` free memory until it can charge `pages` pages, by OOM kills if necessary. Fails
/// with `EFAULT`, `EINTR` and `ENOMEM`.
fn make_memcg_room(mm: &Mm, memcg: &Memcg, pages: usize) -> Result {
    if wait_for_room(memcg, pages, EXIT_MS, || is_gone(mm))? {
        return Ok(());
    }
    let mut fruitless = 0;
    while fruitless < FRUITLESS_KILLS {
        if is_gone(mm) {
            return Err(EFAULT);
        }
        let turn = KillTurn::take();
        // Read before the look at what is left: a thread of a process may cause a kill at any time.
        let kills = memcg.kills();
        // While another kernel thread has the turn, its victim exits.
        let ms = if turn.is_some() { 0 } else { POLL_MS };
        if wait_for_room(memcg, pages, ms, || is_gone(mm))? {
            return Ok(());
        }
        if turn.is_none() || is_gone(mm) {
            continue;
        }
        // Even if the victim is the process of `mm`, the turn ends when its memory is free.
        if memcg.kill(pages, kills) || wait_for_room(memcg, pages, VICTIM_MS, || false)? {
            return Ok(());
        }
        fruitless = if memcg.kills() == kills {
            fruitless + 1
        } else {
            0
        };
    }
    crate::debug!("there is no memory for the process in its cgroup");
    Err(ENOMEM)
}

/// Makes `memcg` reclaim until it can charge `pages` pages, for at most `ms` milliseconds, or until
/// `is_over` is true. Returns whether it can. Fails with `EINTR` if the calling thread is killed.
fn wait_for_room(memcg: &Memcg, pages: usize, ms: u32, is_over: impl Fn() -> bool) -> Result<bool> {
    let begun = jiffies::now();
    loop {
        // SAFETY: The caller may sleep.
        if memcg.charge(|| unsafe { ext::memcg_make_room(pages) }) {
            return Ok(true);
        }
        sched::check_killed()?;
        if is_over() || jiffies::since(begun) >= msecs_to_jiffies(ms) {
            return Ok(false);
        }
        sched::sleep_killable(msecs_to_jiffies(POLL_MS));
    }
}

/// The turn to cause OOM kills in memory cgroups, which one thread at a time has.
struct KillTurn;

impl KillTurn {
    /// Waits for the turn for up to [`POLL_MS`]. Sleeps.
    fn take() -> Option<Self> {
        // SAFETY: The caller may sleep.
        unsafe { ext::memcg_kill_begin(POLL_MS) }.then_some(Self)
    }
}

impl Drop for KillTurn {
    fn drop(&mut self) {
        // SAFETY: `take()` got the turn.
        unsafe { ext::memcg_kill_end() }
    }
}

/// Like [`get`], but makes no room. If the reference is the last one, a worker of the kernel frees
/// the address space, since that may wait for userspace (asynchronous I/O of the process).
fn user_of(mm: &Mm) -> Result<ARef<MmWithUserAsync>> {
    let mm = MmWithUser::into_mmput_async(mm.mmget_not_zero().ok_or(EFAULT)?);
    if is_exiting(&mm) {
        crate::debug!("the process is exiting");
        return Err(EFAULT);
    }
    Ok(mm)
}
