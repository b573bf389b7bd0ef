// SPDX-License-Identifier: GPL-2.0

//! Tests of CPU faults on device memory.

use crate::fixture::{
    migration::{check, evict, place, to_device, with_vram},
    mm::{self, Prot},
    pages,
    thread::{sleep_ms, Thread},
    vram::{wanted_ram, with_ram, Settings, Vram, HUGE},
    Env, //
};
use core::ptr;
use gpusvm::pagemap::provider::DeviceMemory;
use kernel::{
    bindings,
    ffi::c_int,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, //
    },
    task::Task,
    time::{Delta, Instant, Monotonic}, //
};

const SIGKILL: c_int = bindings::SIGKILL as c_int;

extern "C" {
    /// The common part of `allow_signal()` and `disallow_signal()`; the handler is one of the
    /// constants below.
    fn kernel_sigaction(signal: c_int, handler: usize);
}

const SIG_IGN: usize = 1;
const SIG_KTHREAD: usize = 2;

/// Makes this kernel thread killable until it is dropped; a kill does not end the thread.
struct Killable(());

impl Killable {
    fn new() -> Self {
        // SAFETY: The thread is a kernel thread, which handles no signals otherwise.
        unsafe { kernel_sigaction(SIGKILL, SIG_KTHREAD) };
        Self(())
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        // SAFETY: As above; the thread is the current one.
        unsafe {
            kernel_sigaction(SIGKILL, SIG_IGN);
            bindings::flush_signals(Task::current_raw());
        }
    }
}

fn elapsed_ms(since: Instant<Monotonic>) -> i64 {
    since.elapsed().as_millis()
}

/// A timeslice that is longer than any test waits, in milliseconds.
const LONG_MS: u32 = 20_000;

fn is_short(since: Instant<Monotonic>) -> bool {
    since.elapsed() < Delta::from_millis(i64::from(LONG_MS / 2))
}

/// Maps and fills some pages, and migrates them with a timeslice of `ms` milliseconds.
fn keep(env: &Env, pagemap: &DeviceMemory<Vram>, ms: u32) -> Result {
    let span = pages(0, 4);
    mm::map(&span, Prot::Write)?;
    mm::fill(&span)?;
    let moved = pagemap.populate(&env.mm, span.clone(), ms)?;
    ensure_eq!(moved.moved, span.len());
    Ok(())
}

#[kunit_tests(gpusvm_pagemap_fault)]
mod tests {
    use super::*;

    #[test]
    fn brings_the_allocation_back() -> Result {
        with_vram(64, |env, pagemap| {
            let (first, second) = (pages(0, 8), pages(8, 8));
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            to_device(env, pagemap, &first)?;
            to_device(env, pagemap, &second)?;
            let vram = pagemap.provider();
            vram.take_done();
            ensure_eq!(mm::read(pages(5, 1).start)?, mm::pattern(pages(5, 1).start));
            ensure_eq!(vram.take_done().to_ram, 8);
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 8);
            mm::write(pages(9, 1).start, 7)?;
            ensure_eq!(vram.take_done().to_ram, 8);
            ensure_eq!(mm::read(pages(9, 1).start)?, 7);
            check(&first)
        })
    }

    #[test]
    fn leaves_others_pages_where_they_are() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            // The span of the second block includes that of the first.
            to_device(env, pagemap, &pages(4, 4))?;
            to_device(env, pagemap, &span)?;
            let vram = pagemap.provider();
            vram.take_done();
            mm::read(span.start)?;
            ensure_eq!(vram.take_done().to_ram, 12);
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 4);
            check(&span)
        })
    }

    #[test]
    fn what_comes_back_may_move_on() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            for (count, is_huge, folios) in [(4, false, 4), (HUGE, true, 1)] {
                let span = pages(0, count);
                place(env, pagemap, &span, is_huge)?;
                // The folio is allocated for the process, with its memory policy. A failure is not
                // reported, as this is a kernel thread, which may get none.
                let wanted = wanted_ram(|| check(&span))?;
                ensure_eq!(wanted, [folios; 4]);
                // An eviction has no process whose memory policy could be used.
                place(env, pagemap, &span, is_huge)?;
                let wanted = wanted_ram(|| evict(pagemap))?;
                ensure_eq!(wanted, [folios, folios, 0, folios]);
            }
            Ok(())
        })
    }

    #[test]
    fn without_huge_pages() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let vram = pagemap.provider();
            with_ram(i64::MAX, false, || check(&span))?;
            // The first page is copied twice, since its mapping is split.
            ensure_eq!(vram.take_done().to_ram, HUGE + 1);
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }

    #[test]
    fn without_a_huge_page_for_another() -> Result {
        with_vram(4 * HUGE, |env, pagemap| {
            let span = pages(0, 2 * HUGE);
            place(env, pagemap, &span, true)?;
            let vram = pagemap.provider();
            with_ram(i64::MAX, false, || -> Result {
                check(&pages(HUGE, 1))?;
                // The huge page that was touched migrates. The other one would have to be split,
                // which is not necessary.
                ensure_eq!(vram.take_done().to_ram, HUGE + 1);
                check(&span)
            })?;
            ensure_eq!(vram.take_done().to_ram, HUGE + 1);
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }

    #[test]
    fn with_memory_for_a_part_of_a_huge_page() -> Result {
        with_vram(2 * HUGE, |env, pagemap| {
            let span = pages(0, HUGE);
            place(env, pagemap, &span, true)?;
            let at = pages(20, 1).start;
            let vram = pagemap.provider();
            vram.take_done();
            ensure_eq!(with_ram(0, false, || mm::fault(at, false)), Err(ENOMEM));
            ensure_eq!((vram.used(), vram.take_done().to_ram), (HUGE, 0));
            // There is memory for the page that was touched, and for some others.
            with_ram(8, false, || mm::fault(at, false))?;
            ensure_eq!(vram.take_done().to_ram, 8);
            ensure_eq!(mm::read(at)?, mm::pattern(at));
            ensure_eq!(vram.take_done().to_ram, 0);
            check(&span)?;
            gpusvm::pagemap::flush();
            ensure_eq!(vram.used(), 0);
            Ok(())
        })
    }

    #[test]
    fn without_memory() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            let at = pages(5, 1).start;
            ensure_eq!(with_ram(0, true, || mm::fault(at, false)), Err(ENOMEM));
            ensure_eq!(pagemap.provider().used(), 16);
            // There is memory for one page: the one that was touched.
            with_ram(1, true, || mm::fault(at, false))?;
            ensure_eq!(pagemap.provider().take_done().to_ram, 1);
            check(&span)
        })
    }

    #[test]
    fn a_copy_that_fails() -> Result {
        with_vram(64, |env, pagemap| {
            let span = pages(0, 16);
            place(env, pagemap, &span, false)?;
            let vram = pagemap.provider();
            vram.set(Settings {
                broken: true,
                ..Settings::default()
            });
            ensure_eq!(mm::fault(span.start, false), Err(EFAULT));
            ensure_eq!(vram.used(), 16);
            vram.set(Settings::default());
            check(&span)
        })
    }

    #[test]
    fn waits_for_the_end_of_the_timeslice() -> Result {
        with_vram(64, |env, pagemap| {
            keep(env, pagemap, 300)?;
            let begun = Instant::<Monotonic>::now();
            check(&pages(0, 4))?;
            ensure!(elapsed_ms(begun) >= 250);
            Ok(())
        })
    }

    #[test]
    fn waits_without_the_mmap_lock() -> Result {
        with_vram(64, |env, pagemap| {
            mm::map(&pages(100, 1), Prot::Write)?;
            keep(env, pagemap, 2000)?;
            let seen = Arc::new(Atomic::new(0u64), GFP_KERNEL)?;
            let see = seen.clone();
            let reader = Thread::spawn(&env.mm, move || {
                see.store(mm::read(pages(1, 1).start)?, Release);
                Ok(())
            })?;
            // The reader waits without `mmap_lock`, so that other threads can change mappings.
            sleep_ms(100);
            let begun = Instant::<Monotonic>::now();
            mm::unmap(&pages(100, 1))?;
            ensure!(elapsed_ms(begun) < 1000);
            ensure_eq!(seen.load(Acquire), 0);
            reader.join()?;
            ensure_eq!(seen.load(Acquire), mm::pattern(pages(1, 1).start));
            Ok(())
        })
    }

    #[test]
    fn who_cannot_wait_does_not() -> Result {
        with_vram(64, |env, pagemap| {
            keep(env, pagemap, LONG_MS)?;
            let begun = Instant::<Monotonic>::now();
            mm::fault(pages(2, 1).start, false)?;
            ensure!(is_short(begun));
            check(&pages(0, 4))
        })
    }

    #[test]
    fn who_waits_can_be_killed() -> Result {
        with_vram(64, |env, pagemap| {
            keep(env, pagemap, LONG_MS)?;
            let killable = Killable::new();
            // The test's thread waits for the helper, and so exists.
            let task = Task::current_raw() as usize;
            let killer = Thread::spawn(&env.mm, move || {
                sleep_ms(100);
                let task = ptr::with_exposed_provenance_mut(task);
                // SAFETY: The task exists, see above.
                unsafe { bindings::send_sig(SIGKILL, task, 1) };
                Ok(())
            })?;
            let begun = Instant::<Monotonic>::now();
            let result = mm::read(pages(0, 1).start);
            let is_short = is_short(begun);
            killer.join()?;
            drop(killable);
            ensure_eq!(result, Err(EFAULT));
            ensure!(is_short);
            // No page migrated.
            ensure_eq!(pagemap.provider().take_done().to_ram, 0);
            for handle in pagemap.provider().handles()? {
                handle.evict()?;
            }
            check(&pages(0, 4))
        })
    }
}
