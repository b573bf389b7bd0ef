// SPDX-License-Identifier: GPL-2.0

//! Tests of changes that a process makes to memory on a device: mremap(), munmap(), madvise(),
//! mlock(), pinning, KSM and reclaim.

use crate::fixture::{
    file::OpenFile,
    migration::{
        check, check_zero, is_unmapped, map_for_device, moved, place, to_device, used, with_vram,
    },
    mm::{self, Pinned, Prot},
    pages,
    thread::sleep_ms,
    vram::HUGE, //
};
use core::ops::Range;
use kernel::{bindings, page::PAGE_SIZE, prelude::*};

/// Checks memory that was at `from` when it was filled.
fn check_moved(span: &Range<usize>, from: usize) -> Result {
    for addr in span.clone().step_by(PAGE_SIZE) {
        ensure_eq!(mm::read(addr)?, mm::pattern(from + (addr - span.start)));
    }
    Ok(())
}

/// Writes to the file `run` of KSM: "1" starts merging, "2" stops it and unmerges all pages.
fn set_merging(how: &[u8]) -> Result {
    OpenFile::new(c"/sys/kernel/mm/ksm/run", bindings::O_WRONLY, 0)?.write(0, how)
}

/// Returns whether KSM merges pages within `ms` milliseconds.
fn merges_within(ms: u32) -> Result<bool> {
    for _ in 0..ms / 10 {
        let file = OpenFile::new(c"/sys/kernel/mm/ksm/pages_shared", bindings::O_RDONLY, 0)?;
        let mut text = [0; 8];
        if file.read(&mut text)? != 0 && text[0] != b'0' {
            return Ok(true);
        }
        sleep_ms(10);
    }
    Ok(false)
}

#[kunit_tests(gpusvm_pagemap_mm)]
mod tests {
    use super::*;

    #[test]
    fn moves_it() -> Result {
        for (count, is_huge) in [(16, false), (HUGE, true)] {
            with_vram(2 * HUGE, |env, pagemap| {
                let (old, new) = (pages(0, count), pages(4 * HUGE, count));
                place(env, pagemap, &old, is_huge)?;
                let svm = env.svm()?;
                map_for_device(&svm, pagemap)?;
                mm::move_to(&old, new.start)?;
                // The device's mapping was invalidated, and nothing was copied.
                is_unmapped(pagemap)?;
                ensure_eq!(pagemap.provider().take_done().to_ram, 0);
                ensure_eq!(used(pagemap), count);
                svm.lock().collect_garbage();
                check_moved(&new, old.start)?;
                ensure_eq!(pagemap.provider().take_done().to_ram, count);
                ensure_eq!(used(pagemap), 0);
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn moves_a_part_of_a_huge_page() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let svm = env.svm()?;
            map_for_device(&svm, pagemap)?;
            let (part, new) = (pages(100, 30), pages(4 * HUGE + 7, 30));
            mm::move_to(&part, new.start)?;
            is_unmapped(pagemap)?;
            svm.lock().collect_garbage();
            check_moved(&new, part.start)?;
            check(&pages(0, 100))?;
            check(&pages(130, HUGE - 130))?;
            ensure_eq!(used(pagemap), 0);
            Ok(())
        })
    }

    #[test]
    fn unmaps_a_part_of_a_huge_page() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            for (first, count) in [
                (0, 1),
                (0, HUGE / 2),
                (1, 1),
                (255, 2),
                (256, 256),
                (3, HUGE - 4),
                (HUGE - 1, 1),
            ] {
                place(env, pagemap, &span, true)?;
                let svm = env.svm()?;
                map_for_device(&svm, pagemap)?;
                mm::unmap(&pages(first, count))?;
                is_unmapped(pagemap)?;
                svm.lock().collect_garbage();
                // Both the device and the CPU can use what is left.
                ensure!(used(pagemap) > 0);
                if first != 0 {
                    map_for_device(&svm, pagemap)?;
                }
                let end = first + count;
                check(&pages(0, first))?;
                check(&pages(end, HUGE - end))?;
                drop(svm);
                mm::unmap(&span)?;
                ensure_eq!(used(pagemap), 0);
            }
            Ok(())
        })
    }

    #[test]
    fn drops_a_part() -> Result {
        for (count, is_huge) in [(16, false), (HUGE, true)] {
            with_vram(2 * HUGE, |env, pagemap| {
                let span = pages(0, count);
                place(env, pagemap, &span, is_huge)?;
                let svm = env.svm()?;
                map_for_device(&svm, pagemap)?;
                mm::drop_pages(&pages(4, 8))?;
                is_unmapped(pagemap)?;
                check_zero(&pages(4, 8))?;
                check(&pages(0, 4))?;
                check(&pages(12, count - 12))?;
                ensure_eq!(used(pagemap), 0);
                // The same for all of it.
                ensure_eq!(to_device(env, pagemap, &span)?.left, 0);
                mm::drop_pages(&span)?;
                ensure_eq!(used(pagemap), 0);
                check_zero(&span)
            })?;
        }
        Ok(())
    }

    #[test]
    fn does_not_need_it() -> Result {
        for (count, is_huge) in [(16, false), (HUGE, true)] {
            with_vram(2 * HUGE, |env, pagemap| {
                let span = pages(0, count);
                place(env, pagemap, &span, is_huge)?;
                // Each page is unchanged or zero. Reclaim does not find pages on a device.
                mm::free_pages(&span)?;
                mm::reclaim(&span)?;
                for addr in span.clone().step_by(PAGE_SIZE) {
                    let read = mm::read(addr)?;
                    ensure!(read == mm::pattern(addr) || read == 0);
                }
                ensure_eq!(used(pagemap), 0);
                // Pages that were freed by MADV_FREE, written, and then migrated keep their
                // contents. The CPU's LRU batches may hold references to freed pages after the
                // thread has moved to another CPU: retry with new pages then.
                let mut left = span.len();
                for _ in 0..10 {
                    mm::drop_pages(&span)?;
                    mm::fill(&span)?;
                    mm::free_pages(&span)?;
                    mm::fill(&span)?;
                    left = to_device(env, pagemap, &span)?.left;
                    if left == 0 {
                        break;
                    }
                }
                ensure_eq!(left, 0);
                check(&span)?;
                mm::reclaim(&span)?;
                check(&span)
            })?;
        }
        Ok(())
    }

    #[test]
    fn has_it_reclaimed() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            mm::reclaim(&span)?;
            // Reclaim frees system memory only.
            ensure_eq!(used(pagemap), 16);
            check(&span)
        })
    }

    #[test]
    fn locks_it() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            mm::lock(&span, true)?;
            ensure_eq!(used(pagemap), 0);
            // Locked memory does not migrate.
            ensure_eq!(to_device(env, pagemap, &span)?, moved(0, 0, 16));
            check(&span)?;
            mm::lock(&span, false)?;
            ensure_eq!(to_device(env, pagemap, &span)?, moved(16, 16, 16));
            check(&span)
        })
    }

    #[test]
    fn pins_it() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let svm = env.svm()?;
            map_for_device(&svm, pagemap)?;
            // Pinning migrates the page back.
            let pinned = Pinned::new(pages(9, 1).start)?;
            ensure_eq!(used(pagemap), 0);
            is_unmapped(pagemap)?;
            // The pinned page, with its folio, does not migrate.
            let moved = to_device(env, pagemap, &span)?;
            ensure!(moved.left >= PAGE_SIZE);
            ensure_eq!(moved.moved + moved.left, span.len());
            drop(pinned);
            check(&span)?;
            ensure_eq!(to_device(env, pagemap, &span)?.left, 0);
            check(&span)
        })
    }

    #[test]
    fn has_it_merged() -> Result {
        with_vram(64, |env, pagemap| {
            // Equal pages, of which one half is on the device.
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            for addr in span.clone().step_by(PAGE_SIZE) {
                mm::write(addr, 4711)?;
            }
            to_device(env, pagemap, &pages(0, 8))?;
            mm::allow_merging(&span)?;
            set_merging(b"1")?;
            let is_merged = merges_within(10_000);
            let moved = to_device(env, pagemap, &span);
            // Unmerge all pages.
            set_merging(b"2")?;
            ensure!(is_merged?);
            // Pages in the range of a merged page do not migrate any more. Those on the device stay
            // there until the CPU touches them.
            ensure_eq!(moved?, super::moved(0, 0, 16));
            ensure_eq!(used(pagemap), 8);
            for addr in span.step_by(PAGE_SIZE) {
                ensure_eq!(mm::read(addr)?, 4711);
                mm::write(addr, addr as u64)?;
                ensure_eq!(mm::read(addr)?, addr as u64);
            }
            Ok(())
        })
    }
}
