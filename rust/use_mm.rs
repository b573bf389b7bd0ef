// SPDX-License-Identifier: GPL-2.0

//! A kernel thread works in a process's address space.
//!
//! C header: [`include/linux/mmu_context.h`](srctree/include/linux/mmu_context.h)

use kernel::{
    bindings,
    mm::MmWithUser,
    prelude::*,
    task::Task, //
};

/// Runs `f` with user addresses meaning those of `mm`, as `kthread_use_mm()` does.
///
/// Inside, `UserSlice` reads and writes `mm`: it may fault pages in, so no lock may be held that a
/// page fault takes. Fails with `EBUSY` when the caller is no kernel thread, or works in some
/// address space already, and then does not call `f`.
pub fn with_mm<R>(mm: &MmWithUser, f: impl FnOnce() -> R) -> Result<R> {
    let task = Task::current_raw();
    // SAFETY: `current` is valid, and its flags and mm are changed by itself alone.
    let (flags, current_mm) = unsafe { ((*task).flags, (*task).mm) };
    if flags & bindings::PF_KTHREAD == 0 || !current_mm.is_null() {
        return Err(EBUSY);
    }

    // SAFETY: `current` is a kernel thread without an mm, checked above; the reference keeps the
    // users of `mm` above zero until after `kthread_unuse_mm()`.
    unsafe { bindings::kthread_use_mm(mm.as_raw()) };
    let result = f();
    // SAFETY: Pairs with the call above: `f` cannot leave `mm` by itself, as a nested call of this
    // function is refused.
    unsafe { bindings::kthread_unuse_mm(mm.as_raw()) };
    Ok(result)
}
