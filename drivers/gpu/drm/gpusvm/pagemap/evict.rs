// SPDX-License-Identifier: GPL-2.0

//! Eviction: migrates all pages of a block of device memory to system memory.
//!
//! Eviction collects pages by their frames and does not look at any process: the process may have exited, or a child
//! may share its pages. So the state of one process cannot make the eviction of another's pages fail.
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

/// How often an eviction is tried. An attempt skips the pages that are locked at that moment.
const ATTEMPTS: u32 = 3;

/// Migrates all pages of a block, which are at `frames`, to system memory.
///
/// Sleeps; calls MMU notifiers. Errors, after which the pages that could not be migrated are still in the block:
/// - `EBUSY`: another user holds a reference to a page;
/// - `ENOMEM`: there is no system memory for a folio of the same size;
/// - `EFAULT`: the device cannot reach the system memory;
/// - an error of the provider's.
///
/// # Safety
///
/// `frames` must be those of the block. The caller must hold a reference to the block other than the folios'.
pub(crate) unsafe fn evict(devmem: &Devmem, frames: &[usize]) -> Result {
    let mut result = Ok(Outcome::Moved);
    for _ in 0..ATTEMPTS {
        if devmem.is_detached() {
            return Ok(());
        }
        // SAFETY: The frames are device memory, which the caller's reference to the block keeps.
        result = unsafe { Migration::collect_frames(frames) }.and_then(|mut migration| {
            let to_ram = ToRam {
                devmem,
                needed: None,
                memory: |_| MemPolicy::Default,
            };
            to_ram.migrate_to_ram(&mut migration)
        });
        sched::cond_resched();
    }
    if devmem.is_detached() {
        return Ok(());
    }
    result.and(Err(EBUSY))
}
