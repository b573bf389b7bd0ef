// SPDX-License-Identifier: GPL-2.0

//! Each allocation fails once. Whatever was being done then fails with it, or does without; nothing
//! is left behind and nothing changed, and the same works when there is memory again.
//!
//! That no memory leaks is for kmemleak to say, after the suite.

use crate::fixture::{
    dma,
    driver::{alive, bind, ctx_with, fault, Mirror},
    failure::{each_allocation, with_failures, without_memory},
    mm::{self, Prot},
    pages,
    BASE,
    MIDDLE, //
};
use core::ops::Range;
use gpusvm::{segment::SegmentArray, Access, Ctx, Retry, ScanResult, Svm};
use kernel::prelude::*;
use kernel_ext::mm::hmm::Walk;

const ALL: Range<usize> = 0..usize::MAX;

fn insert(svm: &Svm<Mirror>, addr: usize) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let ctx = ctx_with(Access::Write, |ctx| ctx.check_pages_threshold = MIDDLE);
    guard.find_or_insert(addr, ALL, &ctx, &attempt).map(|_| ())
}

/// Maps the range at [`BASE`] for all devices; it must be there.
fn get(svm: &Svm<Mirror>) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    found.get(&Ctx::new(Access::Write), &attempt)?;
    let bound = bind(&mut found);
    bound.map_err(|_| EAGAIN)?.map(|_| ())
}

/// What was being done failed for want of memory, or could do without.
fn is_done_or(error: Error, result: Result) -> Result {
    ensure!(result.is_ok() || result == Err(error));
    Ok(())
}

/// A failed allocation is told as such. In the depths of a page fault it comes out as `EFAULT`.
fn is_told(result: &Result) -> bool {
    matches!(result, Ok(()) | Err(ENOMEM | EFAULT))
}

#[kunit_tests(gpusvm_failures)]
mod tests {
    use super::*;

    #[test]
    fn of_making_an_svm() -> Result {
        with_failures(2, |env| {
            let sites = each_allocation(
                || env.svm(),
                |result| {
                    is_done_or(ENOMEM, result.map(drop))?;
                    ensure_eq!(alive(), (0, 0));
                    Ok(())
                },
            )?;
            ensure!(sites >= 1);
            Ok(())
        })
    }

    #[test]
    fn of_making_the_first_range() -> Result {
        with_failures(2, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            // The first notifier of a process makes its subscription, which stays.
            let svm = env.svm()?;
            let sites = each_allocation(
                || insert(&svm, BASE),
                |result| {
                    // The look at the pages can be done without.
                    if result.is_ok() {
                        ensure_eq!(svm.lock().remove_all(ALL), 1);
                    } else {
                        ensure_eq!(result, Err(ENOMEM));
                    }
                    ensure!(!svm.lock().has_mapping(ALL));
                    ensure_eq!(alive(), (1, 0));
                    Ok(())
                },
            )?;
            // At the least a notifier, what the process needs for its first, a range, and arrays
            // of devices and of pages.
            ensure!(sites >= 1);
            ensure_eq!(alive(), (1, 1));
            Ok(())
        })
    }

    #[test]
    fn of_making_another_range() -> Result {
        with_failures(1, |env| {
            mm::map(&pages(0, 32), Prot::Write)?;
            let svm = env.svm()?;
            insert(&svm, BASE)?;
            let before = alive();
            let another = pages(16, 1).start;
            let sites = each_allocation(
                || insert(&svm, another),
                |result| {
                    if result.is_ok() {
                        ensure_eq!(svm.lock().remove_all(another..usize::MAX), 1);
                    } else {
                        ensure_eq!(result, Err(ENOMEM));
                    }
                    ensure_eq!(alive(), before);
                    ensure!(svm.lock().has_mapping(pages(0, 1)));
                    Ok(())
                },
            )?;
            ensure!(sites >= 1);
            ensure_eq!(alive(), (1, 2));
            Ok(())
        })
    }

    #[test]
    fn of_mapping_for_several_devices() -> Result {
        with_failures(2, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            insert(&svm, BASE)?;
            let sites = each_allocation(
                || get(&svm),
                |result| {
                    ensure!(is_told(&result));
                    if result.is_ok() {
                        svm.lock().invalidate(ALL);
                    }
                    ensure_eq!(dma::mapped(), 0);
                    ensure!(!svm.lock().ranges(ALL).any(|range| range.is_mapped()));
                    ensure_eq!(alive(), (1, 1));
                    Ok(())
                },
            )?;
            // What the arrays are held in, at least; the arrays, and the result of the walk, are had
            // from elsewhere.
            ensure!(sites >= 1);
            ensure_eq!(dma::mapped(), 2 * MIDDLE as i64);
            Ok(())
        })
    }

    #[test]
    fn of_everything() -> Result {
        with_failures(2, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            ensure_eq!(without_memory(|| insert(&svm, BASE))?, Err(ENOMEM));
            ensure_eq!(alive(), (1, 0));
            insert(&svm, BASE)?;
            let beside = pages(16, 1);
            mm::map(&beside, Prot::Write)?;
            ensure_eq!(without_memory(|| insert(&svm, beside.start))?, Err(ENOMEM));
            ensure_eq!(alive(), (1, 1));
            ensure_eq!(without_memory(|| get(&svm))?, Err(ENOMEM));
            ensure_eq!(dma::mapped(), 0);
            get(&svm)?;
            // What is mapped needs no memory, and removing it none either.
            ensure_eq!(without_memory(|| get(&svm))?, Ok(()));
            ensure_eq!(without_memory(|| svm.lock().remove_all(ALL))?, 1);
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn of_raising_a_read_to_a_write() -> Result {
        with_failures(1, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Read)?;
            let sites = each_allocation(
                || get(&svm),
                |result| {
                    ensure!(is_told(&result));
                    // It was let go of for the write, and is not mapped for less.
                    ensure!(result.is_ok() || dma::mapped() == 0);
                    // To the beginning: mapped for reading, with nothing there to be written.
                    mm::drop_pages(&pages(0, 16))?;
                    ensure_eq!(fault(&svm, BASE, Access::Read)?.seen.writable, 0);
                    Ok(())
                },
            )?;
            ensure!(sites >= 1);
            ensure_eq!(dma::mapped(), MIDDLE as i64);
            Ok(())
        })
    }

    #[test]
    fn of_a_whole_fault_on_untouched_memory() -> Result {
        with_failures(2, |env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            // By a driver that does not try again, so that each failure is seen.
            each_allocation(
                || {
                    insert(&svm, BASE)?;
                    get(&svm)
                },
                |result| {
                    ensure!(is_told(&result));
                    svm.lock().remove_all(ALL);
                    ensure_eq!(dma::mapped(), 0);
                    ensure_eq!(alive(), (1, 0));
                    mm::drop_pages(&span)
                },
            )?;
            Ok(())
        })
    }

    #[test]
    fn of_scanning_and_evicting() -> Result {
        with_failures(1, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            let mapped = dma::mapped();
            let scan = || {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                match guard.find(BASE).ok_or(EINVAL)?.scan(&attempt) {
                    ScanResult::System => Ok(()),
                    // What a scan says that could not look.
                    ScanResult::Unpopulated => Err(ENOMEM),
                    _ => Err(EINVAL),
                }
            };
            each_allocation(scan, |result| {
                is_done_or(ENOMEM, result)?;
                ensure_eq!(dma::mapped(), mapped);
                Ok(())
            })?;
            ensure_eq!(without_memory(scan)?, Err(ENOMEM));

            let users = mm::users(&env.mm);
            let evict = || {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let found = guard.find(BASE).ok_or(EINVAL)?;
                found.evict(&attempt)
            };
            each_allocation(evict, |result| {
                is_done_or(ENOMEM, result)?;
                ensure_eq!((dma::mapped(), mm::users(&env.mm)), (mapped, users));
                Ok(())
            })?;
            ensure_eq!(without_memory(evict)?, Err(ENOMEM));
            ensure_eq!((dma::mapped(), mm::users(&env.mm)), (mapped, users));
            Ok(())
        })
    }

    #[test]
    fn of_arrays_and_svms() -> Result {
        with_failures(3, |env| {
            let array = || SegmentArray::new(8).map(drop);
            each_allocation(array, |result| is_done_or(ENOMEM, result))?;
            ensure_eq!(without_memory(array)?, Err(ENOMEM));
            let sites =
                each_allocation(|| env.svm().map(drop), |result| is_done_or(ENOMEM, result))?;
            ensure!(sites >= 4);
            // A walk that never began takes nothing.
            let sites = each_allocation(
                || {
                    let walk = Walk::new();
                    ensure!(walk.pfns().is_empty());
                    Ok(())
                },
                |_| Err(EINVAL),
            )?;
            ensure_eq!(sites, 0);
            Ok(())
        })
    }
}
