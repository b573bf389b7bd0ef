// SPDX-License-Identifier: GPL-2.0

//! Users of an address space, but not of one whose process is on its way out.
//!
//! A kernel thread that serves a process becomes a user of its address space (`mmget()`), and while it is
//! one nothing of that memory is freed, not even when the process was killed to free it. So a kernel thread
//! must not go on for a process that is exiting: it would allocate what its death was to free, and the OOM
//! killer would turn to the next one.
//!
//! Nor may it look for memory while it is a user, where there is none: the OOM killer kills the process, its
//! parent buries it, and nobody is left of whom the kernel knew that its memory is about to be free. So it has
//! room made before. What was freed for it is on the lists of a CPU, of one mobility, where another
//! allocation may not find it: while the thread is a user it may take as much from the kernel's reserves,
//! which never kills.
//!
//! The reserves are for few. A walk may have to wait for userspace (userfaultfd, FUSE), for ever, and go on
//! when there is no memory any more; and any number of them could be let go on at once. So two threads have the
//! reserves at a time. Who waits for these in vain for a moment, before it is a user, goes without: room was
//! made for it all the same.
//!
//! C headers: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h),
//! [`include/linux/oom.h`](srctree/include/linux/oom.h)

use crate::{
    bindings as ext,
    mm::memcg::ActiveMemcg,
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

/// Whether the process that `mm` is of is exiting: the OOM killer has chosen it, all of its threads were
/// told to end (`SIGNAL_GROUP_EXIT`), or there are none left. Advice only: it may be wrong when the caller
/// reads it, but only by being late.
///
/// Where several processes share the address space, one of them does not count. On a kernel without
/// `CONFIG_MEMCG` nobody knows whose an address space is, and only the OOM killer's choice counts.
pub fn is_exiting(mm: &MmWithUser) -> bool {
    // SAFETY: The address space is valid and has users, so that its owner is there or none.
    unsafe { ext::mm_is_exiting(mm.as_raw()) }
}

/// Whether `mm` has no users any more, or its process [is exiting](is_exiting).
pub fn is_gone(mm: &Mm) -> bool {
    user_of(mm).is_err()
}

/// How many pages one step may need besides what it is asked for: page tables, and what the kernel notes.
const BESIDES: usize = 16;

/// How long the reserves are waited for, in milliseconds: as long as a step takes that waits for nobody.
const RESERVES_MS: u32 = 100;

/// A user of an address space, of the thread that became one.
///
/// Of a kernel thread that had room made, and is one of few, its allocations may use the kernel's reserves
/// until this is dropped.
/// Several nest; each is to be dropped before those that were there before it.
#[must_use = "is no user any more when it is dropped"]
pub struct LiveMm {
    // Ends before the address space is given back, which may free all of it.
    _reserves: Option<Reserves>,
    mm: ARef<MmWithUserAsync>,
}

impl Deref for LiveMm {
    type Target = MmWithUser;

    fn deref(&self) -> &MmWithUser {
        &self.mm
    }
}

/// The calling thread's allocations may use the kernel's reserves, and neither reclaim nor kill, as long as
/// this is there.
struct Reserves {
    /// What is to be restored.
    before: kernel::ffi::c_uint,
    /// It is of the thread that made it.
    _thread: PhantomData<*mut ()>,
}

impl Reserves {
    /// Opens them, unless too many others have them for too long, or the thread has them already. Sleeps.
    fn open() -> Option<Self> {
        // SAFETY: `current` is valid, and its flags are changed by itself alone.
        let flags = unsafe { (*Task::current_raw()).flags };
        // SAFETY: Has no requirements, but that the caller may sleep.
        if flags & bindings::PF_MEMALLOC != 0 || !unsafe { ext::reserves_get(RESERVES_MS) } {
            return None;
        }
        Some(Self {
            // SAFETY: Has no requirements: the flags are the calling thread's.
            before: unsafe { ext::memalloc_noreclaim_save() },
            _thread: PhantomData,
        })
    }
}

impl Drop for Reserves {
    fn drop(&mut self) {
        // SAFETY: `before` was returned to this thread, which dropped what it made since, and is one of those
        // who have the reserves.
        unsafe {
            ext::memalloc_noreclaim_restore(self.before);
            ext::reserves_put();
        }
    }
}

/// Becomes a user of `mm`. Fails with `EFAULT` if it has no users any more, or its process
/// [is exiting](is_exiting); and with `ENOMEM`.
///
/// For kernel threads, and for all that may run in one: to be asked anew before each step that allocates
/// memory for the process, `pages` pages of it at the most, and given back after it. No lock may be held
/// that a process needs to end.
///
/// Where memory is short, a kernel thread first has the kernel make room, by killing somebody if need be, and
/// only then becomes a user: of whoever is killed, all memory is free soon.
pub fn get(mm: &Mm, pages: usize) -> Result<LiveMm> {
    let made_room = sched::is_kernel_thread() && make_room(mm, pages.saturating_add(BESIDES))?;
    // Who allocates nothing for the process has no part in them.
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

/// Has what the calling thread, one of the kernel's, allocates be charged to the memory cgroup of `mm`, as long as
/// the result is kept. Fails with `EFAULT` if it has no users any more, or its process [is exiting](is_exiting).
pub fn charge(mm: &Mm) -> Result<ActiveMemcg> {
    Ok(ActiveMemcg::of(&*user_of(mm)?))
}

/// Where memory is short, has the kernel make room for so many pages, by killing somebody if need be. The
/// caller must be no user of the address space. Returns whether the machine's memory is short; fails with
/// `EFAULT` as [`get`], and with `ENOMEM`.
fn make_room(mm: &Mm, pages: usize) -> Result<bool> {
    let short_memcg = {
        let mm = user_of(mm)?;
        // SAFETY: The address space is valid and has users, so that its owner is there or none.
        let is_short = unsafe { ext::memcg_is_short(mm.as_raw(), pages) };
        is_short.then(|| ActiveMemcg::of(&mm))
    };
    // SAFETY: Has no requirements.
    let is_short = unsafe { ext::memory_is_short(pages) };
    // SAFETY: Has no requirements, but that the caller may sleep.
    let had = !is_short || unsafe { ext::make_room(pages) };
    // SAFETY: As above.
    let had = had && (short_memcg.is_none() || unsafe { ext::memcg_make_room(pages) });
    if !had {
        crate::debug!("there is no memory for the process");
        return Err(ENOMEM);
    }
    Ok(is_short)
}

/// As [`get`], but makes no room. The end of the address space, should it have no user after this one, is left to
/// a worker of its own: it may wait for userspace (asynchronous I/O of the process).
fn user_of(mm: &Mm) -> Result<ARef<MmWithUserAsync>> {
    let mm = MmWithUser::into_mmput_async(mm.mmget_not_zero().ok_or(EFAULT)?);
    if is_exiting(&mm) {
        crate::debug!("the process is exiting");
        return Err(EFAULT);
    }
    Ok(mm)
}
