// SPDX-License-Identifier: GPL-2.0

//! Tests of device folios that are split: parts of a huge page are migrated, unmapped or protected
//! separately.

use crate::fixture::{
    migration::{check, evict, map_for_device, moved, place, used, with_vram},
    mm::{self, Prot},
    pages,
    vram::{with_ram, Vram, HUGE},
    Env,
    BASE, //
};
use gpusvm::pagemap::{provider::DeviceMemory, to_device::Sources};
use kernel::{page::PAGE_SIZE, prelude::*};

/// The number of pages that [`split`] migrates back.
const BACK: usize = 7;

/// Migrates a huge page to the device, and touches it with RAM for some of its pages only.
fn split(env: &Env, pagemap: &DeviceMemory<Vram>) -> Result {
    place(env, pagemap, &pages(0, HUGE), true)?;
    with_ram(BACK as i64 + 1, false, || mm::fault(BASE, false))?;
    // The first page is copied twice, since its mapping is split.
    ensure_eq!(pagemap.provider().take_done().to_ram, BACK + 1);
    Ok(())
}

#[kunit_tests(gpusvm_pagemap_split)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_keeps_the_memory() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            split(env, pagemap)?;
            // Some pages of the block are free, but they are not reused: the block is freed as a
            // whole.
            ensure_eq!(used(pagemap), HUGE);
            let vram = pagemap.provider();
            {
                let handles = vram.handles()?;
                ensure_eq!(handles.len(), 1);
                ensure!(!handles[0].is_detached());
            }
            evict(pagemap)?;
            ensure_eq!(vram.take_done().to_ram, HUGE - BACK);
            ensure_eq!(used(pagemap), 0);
            check(&pages(0, HUGE))
        })
    }

    #[test]
    fn the_device_maps_what_is_left() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            split(env, pagemap)?;
            let svm = env.svm()?;
            let seen = map_for_device(&svm, pagemap)?;
            ensure_eq!(seen.bytes, HUGE * PAGE_SIZE);
            ensure_eq!(seen.device, (HUGE - BACK) * PAGE_SIZE);
            check(&pages(0, HUGE))?;
            ensure_eq!(used(pagemap), 0);
            Ok(())
        })
    }

    #[test]
    fn a_part_moves_on() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let (span, part) = (pages(0, HUGE), pages(100, 50));
            place(env, pagemap, &span, true)?;
            let gathered = pagemap.populate_from(Sources::All, &env.mm, part, 0)?;
            ensure_eq!(gathered, moved(50, 50, 50));
            let vram = pagemap.provider();
            ensure_eq!(vram.take_done().to_peer, 50);
            ensure_eq!(used(pagemap), HUGE + 50);
            let handles = vram.handles()?;
            ensure_eq!(handles.len(), 2);
            handles[0].evict()?;
            drop(handles);
            ensure_eq!(vram.take_done().to_ram, HUGE - 50);
            ensure_eq!(used(pagemap), 50);
            check(&span)?;
            ensure_eq!(used(pagemap), 0);
            Ok(())
        })
    }

    #[test]
    fn a_part_is_protected() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let part = pages(0, 100);
            place(env, pagemap, &pages(0, HUGE), true)?;
            let svm = env.svm()?;
            map_for_device(&svm, pagemap)?;
            mm::protect(&part, Prot::Read)?;
            svm.lock().collect_garbage();
            // The fault migrates only the pages of the same VMA.
            check(&part)?;
            let vram = pagemap.provider();
            ensure_eq!(vram.take_done().to_ram, 100);
            ensure_eq!(mm::write(BASE, 1), Err(EFAULT));
            ensure_eq!(used(pagemap), HUGE);
            evict(pagemap)?;
            ensure_eq!(vram.take_done().to_ram, HUGE - 100);
            ensure_eq!(used(pagemap), 0);
            check(&pages(0, HUGE))
        })
    }
}
