// SPDX-License-Identifier: GPL-2.0

//! Each allocation fails once. Whatever was being done then fails with it, or does without; nothing
//! is left behind and nothing changed, and the same works when there is memory again.
//!
//! That no memory leaks is for kmemleak to say, after the suite.

use crate::fixture::{
    dma,
    driver::{alive, bind, ctx_with, fault, Mirror},
    failure::each_allocation,
    mm::{self, Prot},
    pages,
    with_device,
    with_devices,
    BASE, //
};
use core::ops::Range;
use gpusvm::{segment::SegmentArray, Access, Ctx, Retry, ScanResult, Svm};
use kernel::{prelude::*, sizes::SZ_64K};
use kernel_ext::hmm::Walk;

const ALL: Range<usize> = 0..usize::MAX;

fn insert(svm: &Svm<Mirror>, addr: usize) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let ctx = ctx_with(Access::Write, |ctx| ctx.check_pages_threshold = SZ_64K);
    guard.find_or_insert(addr, ALL, &ctx, &attempt).map(|_| ())
}

/// Maps the range at [`BASE`] for all devices; it must be there.
fn get(svm: &Svm<Mirror>) -> Result {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    found.get(&Ctx::new(Access::Write), &attempt)?;
    let bound = bind(&found);
    bound.map_err(|_| EAGAIN)?.map(|_| ())
}

/// A failed allocation is told as such. In the depths of a page fault it comes out as `EFAULT`.
fn is_told(result: &Result) -> bool {
    matches!(result, Err(e) if *e == ENOMEM || *e == EFAULT)
}

#[kunit_tests(gpusvm_failures)]
mod tests {
    use super::*;

    #[test]
    fn of_making_an_svm() -> Result {
        with_devices(2, |env| {
            let sites = each_allocation(
                || env.svm(),
                |result| {
                    ensure_eq!(result.err(), Some(ENOMEM));
                    ensure_eq!(alive(), (0, 0));
                    Ok(())
                },
            )?;
            ensure!(sites >= 2);
            Ok(())
        })
    }

    #[test]
    fn of_making_the_first_range() -> Result {
        with_devices(2, |env| {
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
            // At the least a notifier, a range and an array of pages.
            ensure!(sites >= 4);
            ensure_eq!(alive(), (1, 1));
            Ok(())
        })
    }

    #[test]
    fn of_making_another_range() -> Result {
        with_device(|env| {
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
        with_devices(2, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            insert(&svm, BASE)?;
            let sites = each_allocation(
                || get(&svm),
                |result| {
                    ensure!(is_told(&result));
                    ensure_eq!(dma::mapped(), 0);
                    ensure!(!svm.lock().ranges(ALL).any(|range| range.is_mapped()));
                    ensure_eq!(alive(), (1, 1));
                    Ok(())
                },
            )?;
            // At the least the result of the walk and an array for each device.
            ensure!(sites >= 3);
            ensure_eq!(dma::mapped(), 2 * SZ_64K as i64);
            Ok(())
        })
    }

    #[test]
    fn of_raising_a_read_to_a_write() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Read)?;
            each_allocation(
                || get(&svm),
                |result| {
                    ensure!(is_told(&result));
                    // It was let go of for the write, and is not mapped for less.
                    ensure_eq!(dma::mapped(), 0);
                    fault(&svm, BASE, Access::Read)?;
                    Ok(())
                },
            )?;
            ensure_eq!(dma::mapped(), SZ_64K as i64);
            Ok(())
        })
    }

    #[test]
    fn of_a_whole_fault_on_untouched_memory() -> Result {
        with_devices(2, |env| {
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
                    ensure!(result.is_ok() || is_told(&result));
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
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            let mapped = dma::mapped();
            let scan = || {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                Ok(guard.find(BASE).ok_or(EINVAL)?.scan(&attempt))
            };
            let sites = each_allocation(scan, |result| {
                ensure_eq!(result, Ok(ScanResult::Unpopulated));
                ensure_eq!(dma::mapped(), mapped);
                Ok(())
            })?;
            ensure_eq!(sites, 1);
            ensure_eq!(scan(), Ok(ScanResult::System));

            let evict = || {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let found = guard.find(BASE).ok_or(EINVAL)?;
                found.evict(&attempt)
            };
            let sites = each_allocation(evict, |result| {
                ensure_eq!(result, Err(ENOMEM));
                ensure_eq!(dma::mapped(), mapped);
                Ok(())
            })?;
            ensure_eq!(sites, 1);
            Ok(())
        })
    }

    #[test]
    fn of_arrays() -> Result {
        with_devices(3, |env| {
            let sites = each_allocation(
                || SegmentArray::new(8),
                |result| {
                    ensure_eq!(result.err(), Some(ENOMEM));
                    Ok(())
                },
            )?;
            ensure_eq!(sites, 1);
            let sites = each_allocation(
                || env.page_set(),
                |result| {
                    ensure_eq!(result.err(), Some(ENOMEM));
                    Ok(())
                },
            )?;
            ensure!(sites >= 2);
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
