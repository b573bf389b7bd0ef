// SPDX-License-Identifier: GPL-2.0

//! Charging the allocations of a kernel thread to the memory cgroup of a process.
//!
//! `GFP_KERNEL_ACCOUNT` allocations are charged to the memory cgroup of the allocating thread; a
//! kernel thread has none. The page tables that `handle_mm_fault()` allocates are such memory. (The
//! pages themselves are always charged to the cgroup of the address space.)
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::bindings as ext;
use core::ffi::c_void;
use kernel::mm::MmWithUser;

/// A counted reference to a memory cgroup.
///
/// # Invariants
///
/// Owns a reference to the cgroup, if that is not null.
pub struct Memcg(*mut c_void);

// SAFETY: Any thread may use and drop references to memory cgroups.
unsafe impl Send for Memcg {}
// SAFETY: As above.
unsafe impl Sync for Memcg {}

impl Memcg {
    /// Returns the cgroup of the process that owns `mm`; the root cgroup if no process owns it any
    /// more.
    pub fn of(mm: &MmWithUser) -> Self {
        // INVARIANT: `get_mem_cgroup_from_mm()` returns a reference.
        // SAFETY: `mm` is valid and has users, so that its owner is a task or null.
        Self(unsafe { ext::get_mem_cgroup_from_mm(mm.as_raw()) })
    }

    /// Returns a number that tells this cgroup from others, as long as `self` exists.
    pub fn key(&self) -> usize {
        self.0.addr()
    }

    /// Charges the calling thread's accounted allocations to this cgroup while `f` runs. C:
    /// `set_active_memcg()`.
    ///
    /// This is a call and not a guard, so that calls nest: the cgroup that is restored has a
    /// reference, which the outer call holds.
    pub fn charge<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` keeps the reference until the former cgroup is restored below.
        let before = unsafe { ext::set_active_memcg(self.0) };
        let result = f();
        // SAFETY: The code that set `before` holds a reference to it until it sets another.
        unsafe { ext::set_active_memcg(before) };
        result
    }

    /// Makes the cgroup reclaim until it can charge `pages` pages. Returns whether it can. If it
    /// cannot, has one process killed, unless [`kills`](Self::kills) is not `kills` any more.
    ///
    /// Sleeps; the calling thread should hold no lock or reference that a process needs to exit.
    pub fn kill(&self, pages: usize, kills: usize) -> bool {
        // SAFETY: `self` owns a reference, and the caller may sleep.
        unsafe { ext::memcg_kill(self.0, pages, kills) }
    }

    /// Returns a number that grows with each OOM kill that may free memory for this cgroup.
    pub fn kills(&self) -> usize {
        // SAFETY: `self` owns a reference, and so to the parents.
        unsafe { ext::memcg_kills(self.0) }
    }
}

impl Drop for Memcg {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { ext::mem_cgroup_put(self.0) }
    }
}
