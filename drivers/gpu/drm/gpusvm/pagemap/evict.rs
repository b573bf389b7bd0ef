// SPDX-License-Identifier: GPL-2.0

//! Taking device memory back from whoever uses it.
//!
//! Only frames are looked at, never a process: it may have exited, and its pages may be those of a
//! child. So what becomes of one process cannot fail the eviction of another's pages.
//!
//! C: `drm_pagemap_evict_to_ram()`.

use super::{
    devmem::Devmem,
    to_ram::{Outcome, ToRam}, //
};
use kernel::prelude::*;
use kernel_ext::{
    mm::{
        folio::MemPolicy,
        migrate::Migration, //
    },
    sched, //
};

/// How often an allocation is gone over. A page that somebody works on just now is passed by.
const ATTEMPTS: u32 = 3;

/// Moves all pages of an allocation, which are at `frames`, to RAM.
///
/// Sleeps; calls MMU notifiers. Errors, after which the pages that could not be moved are where they
/// were:
/// - `EBUSY`: somebody holds a page;
/// - `ENOMEM`: there is no RAM for a folio as large as a page on the device has;
/// - `EFAULT`: the device cannot reach the RAM;
/// - an error of the provider's.
///
/// # Safety
///
/// The frames must be those of the allocation, which the caller holds a reference to that is not the
/// folios'.
pub(crate) unsafe fn evict(allocation: &Devmem, frames: &[usize]) -> Result {
    let mut result = Ok(Outcome::Moved);
    for _ in 0..ATTEMPTS {
        if allocation.is_detached() {
            return Ok(());
        }
        // SAFETY: The frames are device memory that the caller's reference keeps.
        result = unsafe { Migration::collect_frames(frames) }.and_then(|mut migration| {
            let wanted = ToRam {
                allocation,
                needed: None,
                memory: |_| MemPolicy::Default,
            };
            wanted.migrate_to_ram(&mut migration)
        });
        sched::cond_resched();
    }
    if allocation.is_detached() {
        return Ok(());
    }
    result.and(Err(EBUSY))
}
