// SPDX-License-Identifier: GPL-2.0

//! Tests of the eviction of device memory.

use crate::fixture::{
    migration::{check, evict, moved, place, to_device, with_vram},
    mm::{self, Pinned, Prot},
    pages,
    thread::Thread,
    touch,
    vram::{with_ram, Done, Settings, Vram, HUGE}, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    sched,
    time::jiffies,
    workqueue::OwnedQueue, //
};

/// How often an eviction races a thread that frees the last page.
const ROUNDS: u32 = 300;

/// How long to wait for that thread, in milliseconds.
const WAIT_MS: u32 = 5000;

#[kunit_tests(gpusvm_pagemap_evict)]
mod tests {
    use super::*;

    #[test]
    fn brings_all_back() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE + 7);
            mm::map_huge(&pages(0, HUGE))?;
            mm::map(&pages(HUGE, 7), Prot::Write)?;
            mm::fill(&span)?;
            to_device(env, pagemap, &span)?;
            let vram = pagemap.provider();
            vram.take_done();
            evict(pagemap)?;
            ensure_eq!(vram.take_done().to_ram, HUGE + 7);
            ensure_eq!(vram.used(), 0);
            ensure_eq!(vram.handles()?.len(), 0);
            check(&span)?;
            ensure_eq!(vram.take_done(), Done::default());
            Ok(())
        })
    }

    #[test]
    fn needs_no_process() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            // A worker thread has no process.
            let queue = OwnedQueue::new_unbound(c"gpusvm_kunit")?;
            let handles = pagemap.provider().handles()?;
            let is_done = Arc::new(Atomic::new(false), GFP_KERNEL)?;
            let done = is_done.clone();
            queue.try_spawn(GFP_KERNEL, move || {
                let are_back = handles.iter().all(|handle| handle.evict().is_ok());
                done.store(are_back, Release);
            })?;
            queue.flush();
            ensure!(is_done.load(Acquire));
            ensure_eq!(pagemap.provider().used(), 0);
            ensure_eq!(pagemap.provider().take_done().to_ram, 16);
            check(&span)
        })
    }

    #[test]
    fn after_the_process_is_gone() -> Result {
        with_vram(64, |_env, pagemap| {
            let process = mm::process()?;
            let (mm, there) = (process.clone(), pagemap.clone());
            Thread::spawn(&process, move || {
                let span = pages(0, 16);
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)?;
                ensure_eq!(there.populate(&mm, span, 0)?, moved(16, 16, 16));
                Ok(())
            })?
            .join()?;
            let vram = pagemap.provider();
            ensure_eq!(vram.used(), 16);
            let handles = vram.handles()?;
            ensure_eq!(handles.len(), 1);
            drop(process);
            // The exit freed the pages: there is nothing left to evict, which is no error.
            handles[0].evict()?;
            ensure_eq!(vram.take_done().to_ram, 0);
            drop(handles);
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }

    #[test]
    fn waits_for_who_frees_the_last_page() -> Result {
        with_vram(64, |env, pagemap| {
            for _ in 0..ROUNDS {
                let span = pages(0, 1);
                place(env, pagemap, &span, false)?;
                let vram = pagemap.provider();
                let handle = vram.handles()?.pop().ok_or(EINVAL)?;
                let thread = Thread::spawn(&env.mm, move || mm::drop_pages(&span))?;
                // The other thread has freed the page, but its callback has perhaps not returned.
                let begun = jiffies::now();
                while !handle.is_detached() && jiffies::since(begun) < msecs_to_jiffies(WAIT_MS) {
                    sched::cond_resched();
                }
                handle.evict()?;
                let left = vram.handles()?.len();
                thread.join()?;
                drop(handle);
                ensure_eq!((left, vram.used()), (0, 0));
                mm::unmap(&pages(0, 1))?;
            }
            Ok(())
        })
    }

    #[test]
    fn parts_that_the_process_gave_up() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            mm::unmap(&pages(0, 100))?;
            evict(pagemap)?;
            ensure_eq!(pagemap.provider().used(), 0);
            check(&pages(100, HUGE - 100))
        })
    }

    #[test]
    fn what_the_process_gives_up_meanwhile() -> Result {
        with_vram(64, |env, pagemap| {
            let (span, kept) = (pages(0, 16), pages(8, 8));
            for unmap in [pages(0, 8), span.clone()] {
                place(env, pagemap, &span, false)?;
                let vram = pagemap.provider();
                // Unmapping the last page frees the `anon_vma` by which the rmap finds the pages.
                vram.set(Settings {
                    unmap: (unmap.start, unmap.end),
                    ..Settings::NONE
                });
                evict(pagemap)?;
                ensure_eq!((vram.take_done().to_ram, vram.used()), (16, 0));
                ensure_eq!(check(&unmap), Err(EFAULT));
                if unmap != span {
                    check(&kept)?;
                    mm::unmap(&span)?;
                }
            }
            Ok(())
        })
    }

    /// The eviction collects the PFNs of pages that are gone when it locks them. One of them has an
    /// extra reference, and so looks like a page that can be migrated.
    #[test]
    fn what_a_cpu_brings_back_meanwhile() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            let vram = pagemap.provider();
            let handles = vram.handles()?;
            let page = *handles[0].memory().pages().get(5).ok_or(EINVAL)?;
            // SAFETY: The page is the one mapped at this address, and no code touches the address
            // before.
            let (result, held) = unsafe {
                touch::touched(pages(5, 1).start, Vram::folio_page(pagemap, page)?, || {
                    handles[0].evict()
                })
            }?;
            let held = held.ok_or(EFAULT)?;
            // No page was copied twice.
            ensure_eq!((result, vram.take_done().to_ram), (Err(EBUSY), 16));
            ensure!(!handles[0].is_detached());
            drop(held);
            handles[0].evict()?;
            drop(handles);
            ensure_eq!(vram.used(), 0);
            check(&span)?;
            ensure_eq!(vram.take_done(), Done::default());
            Ok(())
        })
    }

    #[test]
    fn pages_that_came_back_alone() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            mm::unmap(&pages(3, 5))?;
            evict(pagemap)?;
            ensure_eq!(pagemap.provider().used(), 0);
            ensure_eq!(pagemap.provider().take_done().to_ram, 11);
            check(&pages(0, 3))?;
            check(&pages(8, 8))
        })
    }

    #[test]
    fn without_memory_nothing_is_lost() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            ensure_eq!(with_ram(0, true, || evict(pagemap)), Err(ENOMEM));
            ensure_eq!(pagemap.provider().used(), 16);
            // The eviction succeeds for the pages for which there is memory.
            ensure_eq!(with_ram(10, true, || evict(pagemap)), Err(ENOMEM));
            ensure_eq!(pagemap.provider().take_done().to_ram, 10);
            evict(pagemap)?;
            ensure_eq!(pagemap.provider().used(), 0);
            check(&span)
        })
    }

    #[test]
    fn a_copy_that_fails_loses_nothing() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let vram = pagemap.provider();
            vram.set(Settings {
                broken: true,
                ..Settings::default()
            });
            ensure_eq!(evict(pagemap), Err(EIO));
            ensure_eq!(vram.used(), HUGE);
            vram.set(Settings::default());
            evict(pagemap)?;
            check(&span)
        })
    }

    #[test]
    fn a_victim_that_fails_does_not_harm_others() -> Result {
        with_vram(64, |env, pagemap| {
            let (first, second) = (pages(0, 4), pages(16, 4));
            for span in [&first, &second] {
                mm::map(span, Prot::Write)?;
                mm::fill(span)?;
                to_device(env, pagemap, span)?;
            }
            let handles = pagemap.provider().handles()?;
            ensure_eq!(handles.len(), 2);
            ensure_eq!(with_ram(0, true, || handles[0].evict()), Err(ENOMEM));
            handles[1].evict()?;
            ensure!(!handles[0].is_detached());
            ensure!(handles[1].is_detached());
            drop(handles);
            check(&first)?;
            // Pinning the page migrates it back.
            drop(Pinned::new(second.start)?);
            check(&second)
        })
    }
}
