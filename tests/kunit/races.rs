// SPDX-License-Identifier: GPL-2.0

//! Tests with a change of the CPU's mappings at each step of a fault.
//!
//! Between two steps the test changes the mappings itself. During `get()` another thread does,
//! which waits for the notifier lock: the hook of the test runs before each segment is mapped, and
//! sleeps there, so that the other thread has time to wait for the lock.

use crate::fixture::{
    dma,
    driver::{alive, bind, ctx_with, fault, look, translate},
    mm::{self, Prot},
    pages,
    thread::{sleep_ms, Thread},
    with_device,
    with_devices,
    Env,
    BASE,
    LARGE, //
};
use core::{cell::Cell, ops::Range};
use gpusvm::{
    get_pages::BATCH,
    retry::{ATTEMPTS, TIMEOUT_MS},
    Access,
    Ctx,
    Retry,
    Stale, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    dma::Call,
    mm::hmm,
    time::jiffies, //
};

const ALL: Range<usize> = 0..usize::MAX;

/// A change that the process makes to a span of its memory.
type Change = fn(&Range<usize>) -> Result;

/// Starts a thread of the process that changes `span` once the returned flag is set.
fn changer(env: &Env, span: Range<usize>, change: Change) -> Result<(Thread, Arc<Atomic<bool>>)> {
    let go = Arc::new(Atomic::new(false), GFP_KERNEL)?;
    let may_go = go.clone();
    let thread = Thread::spawn(&env.mm, move || {
        while !may_go.load(Acquire) {
            sleep_ms(1);
        }
        change(&span)
    })?;
    Ok((thread, go))
}

/// Maps 2 MiB of small pages at [`BASE`] for the device, while another thread changes `other` from
/// the first segment on. Returns the result, and the segment at which the other thread was done,
/// unless it was done after the last.
fn change_while_mapping(
    env: &Env,
    other: Range<usize>,
    change: Change,
) -> Result<(Result, Option<usize>)> {
    let span = pages(0, 512);
    mm::map(&span, Prot::Write)?;
    mm::map(&other, Prot::Write)?;
    mm::fill(&span)?;
    let svm = env.svm()?;
    // A range at `other` makes the change an invalidation of this SVM.
    if !span.contains(&other.start) {
        fault(&svm, other.start, Access::Write)?;
    }
    let (thread, go) = changer(env, other.clone(), change)?;

    let (segment, done_at) = (Cell::new(0), Cell::new(None));
    let see = |call| {
        if call == Call::Map {
            go.store(true, Release);
            if done_at.get().is_none() && thread.is_done() {
                done_at.set(Some(segment.get()));
            }
            // The other thread waits for the lock meanwhile, long enough that no reader may take
            // the lock before it any more.
            if segment.get() % (BATCH / 4) == 0 {
                sleep_ms(10);
            }
            segment.set(segment.get() + 1);
        }
        Ok(())
    };
    let mut guard = svm.lock();
    let ctx = Ctx::new(Access::Write);
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
    ensure_eq!(found.span(), span);
    let result = dma::watched(&see, || found.get(&ctx, &attempt));
    match result {
        Ok(()) => {
            let seen = found
                .commit(|view, _| look(&view, 0))
                .map_err(|_| EAGAIN)??;
            ensure_eq!(seen.bytes, LARGE);
        }
        Err(_) => ensure!(found.commit(|_, _| ()).is_err()),
    }
    drop(guard);
    thread.join()?;
    Ok((result, done_at.get()))
}

#[kunit_tests(gpusvm_races)]
mod tests {
    use super::*;

    #[test]
    fn unmapped_between_find_and_get() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
            mm::unmap(&span)?;
            // The caller must look up the range again, since new memory may be mapped there.
            ensure_eq!(found.get(&ctx, &attempt), Err(EAGAIN));
            ensure_eq!(found.commit(|_, _| ()), Err(Stale));
            ensure_eq!(dma::maps(), 0);
            ensure_eq!(svm.vm().garbage(), 1);
            // The range was not mapped in the driver's page table, so that the driver was not
            // called.
            ensure_eq!(svm.vm().invalidations(), 0);
            drop(guard);
            ensure_eq!(fault(&svm, BASE, Access::Write).err(), Some(ENOENT));
            ensure_eq!(alive().1, 0);
            Ok(())
        })
    }

    #[test]
    fn replaced_between_find_and_get() -> Result {
        with_device(|env| {
            // A single page, so that no smaller range can be tried.
            let span = pages(3, 1);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(span.start, ALL, &ctx, &attempt)?;
            // The process has memory there at any time.
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            ensure_eq!(found.get(&ctx, &attempt), Err(EAGAIN));
            drop(guard);
            fault(&svm, span.start, Access::Write)?;
            let dma = translate(&svm, 0, span.start).ok_or(EFAULT)?;
            ensure_eq!(env.device().read(dma)?, mm::pattern(span.start));
            Ok(())
        })
    }

    #[test]
    fn changed_between_look_and_get() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            // The walk for the choice of the chunk also serves to map the pages.
            let ctx = ctx_with(Access::Write, |ctx| ctx.check_pages_threshold = LARGE);
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
            ensure_eq!(found.span(), span);
            mm::drop_pages(&pages(15, 1))?;
            let walks = hmm::walks();
            ensure_eq!(found.get(&ctx, &attempt), Err(EAGAIN));
            ensure_eq!(hmm::walks(), walks);
            ensure_eq!(dma::maps(), 0);
            found.get(&ctx, &attempt)?;
            ensure!(bind(&mut found).is_ok());
            drop(guard);
            let dma = translate(&svm, 0, pages(15, 1).start).ok_or(EFAULT)?;
            ensure_eq!(env.device().read(dma)?, 0);
            Ok(())
        })
    }

    #[test]
    fn changed_between_get_and_commit() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            let svm = env.svm()?;
            for unmap in [false, true] {
                mm::map(&span, Prot::Write)?;
                let mut guard = svm.lock();
                let ctx = Ctx::new(Access::Write);
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
                found.get(&ctx, &attempt)?;
                if unmap {
                    mm::unmap(&pages(7, 1))?;
                } else {
                    mm::drop_pages(&pages(7, 1))?;
                }
                // The closure is not called.
                ensure_eq!(found.commit(|_, _| ()), Err(Stale));
                ensure_eq!(dma::mapped(), 0);
                ensure_eq!(guard.collect_garbage(), usize::from(unmap));
                guard.remove_all(ALL);
            }
            Ok(())
        })
    }

    #[test]
    fn changed_while_it_is_being_mapped() -> Result {
        // Unmap the pages, or drop them, which leaves the mapping.
        for change in [mm::unmap as Change, mm::drop_pages] {
            with_device(|env| {
                // Change a part of the range that is being mapped.
                let (result, done_at) = change_while_mapping(env, pages(256, 256), change)?;
                ensure_eq!(result, Err(EAGAIN));
                // The mapping ended before the change was complete.
                ensure!(done_at.is_none());
                ensure!(dma::maps() as usize <= 3 * BATCH);
                ensure_eq!(dma::mapped(), 0);
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_writer_waits_for_a_few_batches_only() -> Result {
        with_device(|env| {
            // Change memory outside of the range.
            let (result, done_at) = change_while_mapping(env, pages(2048, 16), mm::unmap)?;
            ensure_eq!(result, Ok(()));
            // The writer waits from the first segment on. When the lock is released for the first
            // time, the reader may take it again before the writer once.
            let done_at = done_at.ok_or(ETIME)?;
            ensure!(done_at <= 3 * BATCH);
            Ok(())
        })
    }

    #[test]
    fn each_segment_may_fail_to_map() -> Result {
        with_devices(2, |env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let ctx = Ctx::new(Access::Write);
            // Sixteen segments for each of two devices.
            for nth in 0..33 {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
                let (result, failed) = dma::failing(nth, || found.get(&ctx, &attempt));
                ensure_eq!(failed, nth < 32);
                if failed {
                    ensure_eq!(result, Err(EFAULT));
                    ensure_eq!(dma::mapped(), 0);
                    ensure_eq!(found.commit(|_, _| ()), Err(Stale));
                    ensure_eq!(svm.vm().invalidations(), 0);
                } else {
                    result?;
                    ensure!(bind(&mut found).is_ok());
                }
            }
            Ok(())
        })
    }

    #[test]
    fn a_permission_lost_before_get() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let mut attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
            mm::protect(&pages(8, 8), Prot::Read)?;
            ensure_eq!(found.get(&ctx, &attempt), Err(EPERM));
            ensure_eq!(dma::mapped(), 0);
            // A smaller range may succeed, and does at this address.
            ensure!(attempt.narrow(BASE, found.span()));
            drop(guard);
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(
                fault(&svm, pages(8, 1).start, Access::Write).err(),
                Some(EPERM)
            );
            Ok(())
        })
    }

    #[test]
    fn garbage_that_nobody_collects_ends_a_fault_anyway() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            mm::unmap(&pages(0, 1))?;
            // Fault in the rest of the range, without collecting the garbage.
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let mut attempts = 0;
            while let Some(attempt) = retry.next() {
                let found = guard.find_or_insert(pages(5, 1).start, ALL, &ctx, &attempt);
                ensure_eq!(found.err(), Some(EAGAIN));
                attempts += 1;
            }
            ensure!(attempts <= ATTEMPTS);
            ensure_eq!(guard.collect_garbage(), 1);
            drop(guard);
            ensure_eq!(
                fault(&svm, pages(5, 1).start, Access::Write)?.span,
                pages(5, 1)
            );
            Ok(())
        })
    }

    #[test]
    fn a_fault_ends_however_often_the_cpu_interferes() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
            let (stopped, dropped) = (stop.clone(), span.clone());
            mm::drop_pages(&span)?;
            let thread = Thread::spawn(&env.mm, move || {
                while !stopped.load(Acquire) {
                    mm::drop_pages(&dropped)?;
                }
                Ok(())
            })?;
            let mut result = Ok(());
            for page in 0..6 {
                let begun = jiffies::now();
                match fault(&svm, BASE + page * PAGE_SIZE, Access::Write) {
                    Ok(_) => {}
                    Err(e) if e == EBUSY => {}
                    Err(e) => result = Err(e),
                }
                // The attempts may take the time-out, and the last one may begin just before it.
                if jiffies::since(begun) > msecs_to_jiffies(3 * TIMEOUT_MS) {
                    result = Err(ETIME);
                }
            }
            stop.store(true, Release);
            thread.join()?;
            ensure_eq!(result, Ok(()));
            fault(&svm, BASE, Access::Write)?;
            Ok(())
        })
    }
}
