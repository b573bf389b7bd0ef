// SPDX-License-Identifier: GPL-2.0

//! Charging memory to the cgroup of a process, by a kernel thread that works for it.
//!
//! What is allocated with `GFP_KERNEL_ACCOUNT` is charged to the memory cgroup of the thread that
//! allocates; a kernel thread has none. Page tables that `handle_mm_fault()` needs are such memory. (The
//! pages themselves are charged to whose address space it is, in any case.)
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::bindings as ext;
use core::{ffi::c_void, marker::PhantomData};
use kernel::mm::MmWithUser;

/// While this is there, the calling thread's accounted allocations are charged to the memory cgroup of a
/// process, `set_active_memcg()`. They nest; each is to be dropped before those that were there before it.
///
/// # Invariants
///
/// This owns a reference to `memcg`, if that is not null; it is what the thread charges.
#[must_use = "charges as before when it is dropped"]
pub struct ActiveMemcg {
    memcg: *mut c_void,
    before: *mut c_void,
    /// It is of the thread that made it.
    _thread: PhantomData<*mut ()>,
}

impl ActiveMemcg {
    /// Charges the cgroup of the process that `mm` is of; that of a process without users of its memory is
    /// the root.
    pub fn of(mm: &MmWithUser) -> Self {
        // SAFETY: The address space is valid and has users, so that its owner is there or none.
        let memcg = unsafe { ext::get_mem_cgroup_from_mm(mm.as_raw()) };
        // SAFETY: The reference is kept until the thread charges another.
        let before = unsafe { ext::set_active_memcg(memcg) };
        // INVARIANT: The reference was handed over.
        Self {
            memcg,
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for ActiveMemcg {
    fn drop(&mut self) {
        // SAFETY: What was charged before is kept by who set it; after that nobody charges `memcg` by
        // the reference, which is given back once.
        unsafe {
            ext::set_active_memcg(self.before);
            ext::mem_cgroup_put(self.memcg);
        }
    }
}
