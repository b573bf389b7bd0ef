// SPDX-License-Identifier: GPL-2.0

//! Tests with a failure of each allocation in turn. The operation then fails, or continues without
//! the memory; it leaves nothing behind, changes nothing, and succeeds when it is repeated with
//! memory.
//!
//! kmemleak checks for leaks after the suite.

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

/// Maps the range at [`BASE`], which must exist, for all devices.
fn get(svm: &Svm<Mirror>) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    found.get(&Ctx::new(Access::Write), &attempt)?;
    let bound = bind(&mut found);
    bound.map_err(|_| EAGAIN)?.map(|_| ())
}

/// Checks that an operation failed with `error`, or succeeded without the memory.
fn is_done_or(error: Error, result: Result) -> Result {
    ensure!(result.is_ok() || result == Err(error));
    Ok(())
}

/// Returns whether a failed allocation was reported as such. A page fault reports it as `EFAULT`.
fn is_reported(result: &Result) -> bool {
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
            // The first notifier of a process creates the process's subscription, which stays.
            let svm = env.svm()?;
            let sites = each_allocation(
                || insert(&svm, BASE),
                |result| {
                    // The walk to check the pages is optional.
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
            // The failed allocations are some of those of the notifier, the process's subscription,
            // the range, and the arrays of devices and of pages.
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
                    ensure!(is_reported(&result));
                    if result.is_ok() {
                        svm.lock().invalidate(ALL);
                    }
                    ensure_eq!(dma::mapped(), 0);
                    ensure!(!svm.lock().ranges(ALL).any(|range| range.is_mapped()));
                    ensure_eq!(alive(), (1, 1));
                    Ok(())
                },
            )?;
            // At least the allocation of the vector of arrays fails; the arrays, and the result of
            // the walk, are then allocated by `vmalloc()`.
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
            // Neither getting mapped pages nor removing a range needs memory.
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
                    ensure!(is_reported(&result));
                    // A failure leaves the pages, which were invalidated for the write, unmapped.
                    ensure!(result.is_ok() || dma::mapped() == 0);
                    // Restore the initial state: mapped for reading, with no page that is writable.
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
            // There are no retries, so that each failure is seen.
            each_allocation(
                || {
                    insert(&svm, BASE)?;
                    get(&svm)
                },
                |result| {
                    ensure!(is_reported(&result));
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
                    // The result of a scan that could not walk.
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
            // A walk that was not started allocates nothing.
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
