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
//! C headers: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h),
//! [`include/linux/oom.h`](srctree/include/linux/oom.h)

use crate::{
    bindings as ext,
    mm::memcg::Memcg,
    sched, //
};
use core::{marker::PhantomData, ops::Deref};
use kernel::{
    bindings,
    mm::{Mm, MmWithUser, MmWithUserAsync},
    prelude::*,
    sync::aref::ARef,
    task::Task, //
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
    /// Waits up to [`RESERVES_MS`] for the reserves. Returns `None` after that, or if the thread
    /// may use them already. Sleeps.
    fn open() -> Option<Self> {
        // SAFETY: `current` is valid, and only the thread itself changes its flags.
        let flags = unsafe { (*Task::current_raw()).flags };
        // SAFETY: The caller may sleep.
        if flags & bindings::PF_MEMALLOC != 0 || !unsafe { ext::reserves_get(RESERVES_MS) } {
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
/// If memory is short, a kernel thread first makes the kernel free some, by an OOM kill if
/// necessary, and takes the reference after that: so the memory of any killed process is freed
/// soon.
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

/// Makes the kernel free `pages` pages if memory is short, by an OOM kill if necessary. Returns
/// whether the system's memory is short, in contrast to that of the cgroup. Fails with `EFAULT`
/// like [`get`], and with `ENOMEM`.
///
/// The caller must hold no reference to the users of `mm`.
fn make_room(mm: &Mm, pages: usize) -> Result<bool> {
    let short_memcg = {
        let mm = user_of(mm)?;
        // SAFETY: `mm` is valid and has users, so that its owner is a task or null.
        let is_short = unsafe { ext::memcg_is_short(mm.as_raw(), pages) };
        is_short.then(|| Memcg::of(&mm))
    };
    // SAFETY: Has no requirements.
    let is_short = unsafe { ext::memory_is_short(pages) };
    // SAFETY: The caller may sleep.
    let has_room = !is_short || unsafe { ext::make_room(pages) };
    let has_room = has_room
        && short_memcg
            // SAFETY: As above.
            .is_none_or(|memcg| memcg.charge(|| unsafe { ext::memcg_make_room(pages) }));
    if !has_room {
        crate::debug!("there is no memory for the process");
        return Err(ENOMEM);
    }
    Ok(is_short)
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
