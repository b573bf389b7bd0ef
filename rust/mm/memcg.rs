// SPDX-License-Identifier: GPL-2.0

//! Charging the allocations of a kernel thread to the memory cgroup of a process.
//!
//! `GFP_KERNEL_ACCOUNT` allocations are charged to the memory cgroup of the allocating thread; a
//! kernel thread has none. The page tables that `handle_mm_fault()` allocates are such memory. (The
//! pages themselves are always charged to the cgroup of the address space.)
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::bindings as ext;
use core::{ffi::c_void, marker::PhantomData};
use kernel::mm::MmWithUser;

/// Charges the calling thread's accounted allocations to the memory cgroup of a process until it is
/// dropped. C: `set_active_memcg()`.
///
/// Instances nest, and must be dropped in reverse order.
///
/// # Invariants
///
/// Owns a reference to `memcg`, if that is not null; it is the thread's active memory cgroup.
#[must_use = "the former cgroup is charged again when this is dropped"]
pub struct ActiveMemcg {
    memcg: *mut c_void,
    before: *mut c_void,
    /// Not `Send`: the active cgroup is that of the thread that created this.
    _thread: PhantomData<*mut ()>,
}

impl ActiveMemcg {
    /// Charges the cgroup of the process that owns `mm`; the root cgroup if no process owns it any
    /// more.
    pub fn of(mm: &MmWithUser) -> Self {
        // SAFETY: `mm` is valid and has users, so that its owner is a task or null.
        let memcg = unsafe { ext::get_mem_cgroup_from_mm(mm.as_raw()) };
        // SAFETY: The reference to `memcg` is held until `drop()` sets another.
        let before = unsafe { ext::set_active_memcg(memcg) };
        // INVARIANT: `get_mem_cgroup_from_mm()` returned a reference, and `memcg` was set above.
        Self {
            memcg,
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for ActiveMemcg {
    fn drop(&mut self) {
        // SAFETY: The code that set `before` holds a reference to it. Once it is restored the
        // thread does not use `memcg`, whose reference is dropped once.
        unsafe {
            ext::set_active_memcg(self.before);
            ext::mem_cgroup_put(self.memcg);
        }
    }
}
