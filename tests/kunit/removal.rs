// SPDX-License-Identifier: GPL-2.0

//! Tests of the removal and invalidation of ranges: no range leaves the tree while it is mapped,
//! and no memory is unmapped while the driver still has it in its page table. The counters of each
//! test check that for each unmapping.

use crate::fixture::{
    dma,
    driver::{alive, fault, Mirror},
    mm::{self, Prot},
    pages,
    with_device,
    with_devices,
    Env,
    BASE,
    CONFIG,
    MIDDLE, //
};
use core::{cell::Cell, ops::Range};
use gpusvm::{
    driver::BATCH,
    get_pages::Source,
    range::SvmRange,
    svm::{GpuSvm, Ops},
    Access,
    Ctx,
    PagesFlag,
    RangeFlag,
    Retry,
    Svm, //
};
use kernel::{bindings, page::PAGE_SIZE, prelude::*};
use kernel_ext::{
    bindings as ext,
    mm::hmm::Walk, //
};

const ALL: Range<usize> = 0..usize::MAX;

/// The callback of the driver of [`tests::a_removed_range_is_not_mapped_again`], which has no page
/// table.
///
/// # Safety
///
/// None.
unsafe extern "C" fn nothing_bound(
    _svm: *mut ext::drm_gpusvm,
    _notifier: *mut ext::drm_gpusvm_notifier,
    _range: *const bindings::mmu_notifier_range,
) {
}

static NOTHING_BOUND: Ops = Ops {
    invalidate: Some(nothing_bound),
    ..pin_init::zeroed()
};

/// Returns an SVM with `ranges` ranges of one page, all mapped, at every other page from [`BASE`]
/// on.
fn many(env: &Env, ranges: usize) -> Result<Pin<KBox<Svm<Mirror>>>> {
    let svm = env.svm()?;
    for i in 0..ranges {
        let span = pages(2 * i, 1);
        mm::map(&span, Prot::Write)?;
        ensure_eq!(fault(&svm, span.start, Access::Write)?.span, span);
    }
    Ok(svm)
}

#[kunit_tests(gpusvm_removal)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_range_is_let_go_of_first() -> Result {
        with_devices(2, |env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(dma::mapped(), 2 * MIDDLE as i64);
            let mut guard = svm.lock();
            guard.find(BASE).ok_or(EINVAL)?.remove();
            ensure_eq!(svm.vm().invalidations(), 1);
            let received = svm.vm().last();
            ensure!(received.locked);
            ensure_eq!((received.ranges, received.bound), (1, 1));
            ensure_eq!(received.span, (span.start, span.end));
            // The CPU did not unmap it.
            ensure!(!received.is_unmap);
            ensure_eq!(svm.vm().garbage(), 0);
            ensure_eq!(dma::mapped(), 0);
            ensure!(!guard.has_mapping(ALL));
            ensure_eq!(alive(), (1, 0));
            drop(guard);
            // A fault creates the range again.
            ensure_eq!(fault(&svm, BASE, Access::Write)?.span, span);
            Ok(())
        })
    }

    #[test]
    fn a_range_that_is_not_mapped_is_just_removed() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            mm::drop_pages(&pages(0, 1))?;
            ensure_eq!(svm.vm().invalidations(), 1);
            ensure_eq!(svm.lock().remove_all(ALL), 1);
            ensure_eq!(svm.vm().invalidations(), 1);
            Ok(())
        })
    }

    #[test]
    fn an_svm_that_goes_lets_go_of_everything() -> Result {
        with_devices(2, |env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let svm = env.svm()?;
            for page in [0, 600, 900] {
                fault(&svm, pages(page, 1).start, Access::Read)?;
            }
            ensure!(dma::mapped() > 0);
            ensure!(alive().1 >= 2);
            drop(svm);
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(alive(), (0, 0));
            Ok(())
        })
    }

    /// There are more ranges than one hold of the notifier lock unmaps.
    #[test]
    fn a_shut_svm_maps_nothing() -> Result {
        with_devices(2, |env| {
            const RANGES: usize = 150;
            let page = |i: usize| pages(2 * i, 1);
            let svm = env.svm()?;
            for i in 0..RANGES {
                mm::map(&page(i), Prot::Write)?;
                fault(&svm, page(i).start, Access::Write)?;
            }
            ensure_eq!(dma::mapped(), (2 * RANGES * PAGE_SIZE) as i64);
            // `shut()` does not wait for the SVM lock.
            let guard = svm.lock();
            svm.shut();
            ensure_eq!(dma::mapped(), 0);
            ensure!(svm.vm().invalidations() > 1);
            ensure_eq!(guard.ranges(ALL).count(), RANGES);
            ensure!(!guard.ranges(ALL).any(|range| range.is_mapped()));
            drop(guard);
            // Neither an existing nor a new range can be mapped.
            ensure_eq!(fault(&svm, page(0).start, Access::Read).err(), Some(EFAULT));
            mm::map(&page(RANGES), Prot::Write)?;
            ensure_eq!(
                fault(&svm, page(RANGES).start, Access::Write).err(),
                Some(EFAULT)
            );
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn what_the_cpu_unmapped_is_garbage() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            mm::unmap(&span)?;
            let received = svm.vm().last();
            ensure!(received.is_unmap && received.locked);
            ensure_eq!(
                (received.bound, received.changed),
                (1, (span.start, span.end))
            );
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(svm.vm().garbage(), 1);
            let mut guard = svm.lock();
            let flags = guard
                .ranges(ALL)
                .map(|range| {
                    (
                        range.has(RangeFlag::Unmapped),
                        range.has(RangeFlag::PartialUnmap),
                    )
                })
                .next();
            ensure_eq!(flags, Some((true, false)));
            ensure_eq!(guard.collect_garbage(), 1);
            ensure_eq!(guard.collect_garbage(), 0);
            ensure!(!guard.has_mapping(ALL));
            ensure_eq!(alive().1, 0);
            Ok(())
        })
    }

    #[test]
    fn a_range_unmapped_in_parts_is_garbage_once() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            for page in [0, 9, 15] {
                mm::unmap(&pages(page, 1))?;
            }
            // The first unmap invalidated the driver's mapping.
            ensure_eq!(svm.vm().invalidations(), 1);
            let mut guard = svm.lock();
            let partial = guard
                .ranges(ALL)
                .all(|range| range.has(RangeFlag::PartialUnmap) && range.has(RangeFlag::Unmapped));
            ensure!(partial);
            ensure_eq!(guard.collect_garbage(), 1);
            drop(guard);
            // Faults on the remaining pages succeed, with ranges that fit; those on unmapped pages
            // fail.
            for page in 0..16 {
                let served = fault(&svm, pages(page, 1).start, Access::Write);
                match page {
                    0 | 9 | 15 => ensure_eq!(served, Err(ENOENT)),
                    _ => ensure_eq!(served?.span, pages(page, 1)),
                }
            }
            Ok(())
        })
    }

    #[test]
    fn garbage_that_is_removed_is_no_garbage() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::map(&pages(32, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            fault(&svm, pages(32, 1).start, Access::Write)?;
            mm::unmap(&pages(0, 64))?;
            let mut guard = svm.lock();
            guard.find(BASE).ok_or(EINVAL)?.remove();
            ensure_eq!(alive().1, 1);
            ensure_eq!(guard.collect_garbage(), 1);
            ensure_eq!(alive().1, 0);
            Ok(())
        })
    }

    #[test]
    fn an_invalidated_range_stays() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            for page in [0, 16, 32] {
                fault(&svm, pages(page, 1).start, Access::Write)?;
            }
            let one = dma::mapped() / 3;
            let mut guard = svm.lock();
            guard.invalidate(pages(20, 20));
            ensure_eq!(svm.vm().invalidations(), 1);
            let received = svm.vm().last();
            ensure_eq!((received.ranges, received.bound), (2, 2));
            ensure!(received.locked && !received.is_unmap);
            ensure_eq!(received.span, (pages(16, 1).start, pages(48, 1).start));
            ensure_eq!(dma::mapped(), one);
            ensure_eq!(guard.ranges(ALL).count(), 3);
            ensure_eq!(guard.collect_garbage(), 0);
            // No range there is mapped any more.
            guard.invalidate(pages(20, 20));
            guard.invalidate(pages(64, 1000));
            ensure_eq!(svm.vm().invalidations(), 1);
            drop(guard);
            fault(&svm, pages(20, 1).start, Access::Write)?;
            ensure_eq!(dma::mapped(), 2 * one);
            Ok(())
        })
    }

    #[test]
    fn many_ranges_are_invalidated_in_batches() -> Result {
        with_device(|env| {
            let svm = many(env, 2 * BATCH + 10)?;
            let last = pages(2 * (2 * BATCH + 9), 1);
            let asked = Cell::new(0);
            let go_on = || {
                asked.set(asked.get() + 1);
                let received = svm.vm().last();
                ensure!(received.locked);
                ensure_eq!((received.ranges, received.bound), (BATCH, BATCH));
                // This change needs the notifier lock, which is not held between batches.
                mm::drop_pages(&last)
            };
            let done = svm.lock().invalidate_while(ALL, go_on);
            ensure_eq!(done, Ok(()));
            ensure_eq!(asked.get(), 2);
            // The last range was invalidated for this change.
            ensure_eq!(svm.vm().invalidations(), 4);
            ensure_eq!(svm.vm().last().ranges, 9);
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn what_is_left_over_is_as_it_was() -> Result {
        with_device(|env| {
            let svm = many(env, 3 * BATCH)?;
            let enough = || Err(EINTR);
            let mut guard = svm.lock();
            ensure_eq!(guard.invalidate_while(ALL, enough), Err(EINTR));
            let is_mapped = |(i, range): (usize, &gpusvm::Range<Mirror>)| {
                let is_rest = i >= BATCH;
                range.is_mapped() == is_rest && range.data().is_bound() == is_rest
            };
            ensure!(guard.ranges(ALL).enumerate().all(is_mapped));

            ensure_eq!(guard.remove_all_while(ALL, enough), Err(EINTR));
            ensure_eq!(guard.ranges(ALL).count(), 2 * BATCH);
            ensure!(guard.ranges(ALL).all(|range| range.is_mapped()));

            // One batch is shown to the closure and removed; the rest stays on the garbage list.
            mm::unmap(&pages(0, 6 * BATCH))?;
            let mut shown = 0;
            let collected = guard.collect_garbage_while(enough, |_| {
                shown += 1;
                Ok(())
            });
            ensure_eq!((collected, shown), (Err(EINTR), BATCH));
            drop(guard);
            let mut guard = svm.lock();
            ensure_eq!(guard.ranges(ALL).count(), BATCH);
            let refused = guard.collect_garbage_while(|| Ok(()), |_| Err(EINTR));
            ensure_eq!((refused, guard.ranges(ALL).count()), (Err(EINTR), BATCH));
            ensure_eq!(guard.collect_garbage(), BATCH);
            ensure!(!guard.has_mapping(ALL));
            Ok(())
        })
    }

    #[test]
    fn a_removed_range_is_not_mapped_again() -> Result {
        with_device(|env| {
            let (one, other) = (pages(0, 16), pages(16, 16));
            mm::map(&pages(0, 32), Prot::Write)?;
            let init = GpuSvm::new(c"gpusvm_kunit", &env.mm, CONFIG, &NOTHING_BOUND);
            let svm = KBox::pin_init(init, GFP_KERNEL)?;
            // SAFETY: The pages are dropped before the devices.
            let (set, others) = unsafe { (env.pages()?, env.pages()?) };
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut walk = Walk::new();
            // SAFETY: No other thread uses the SVM, so that no lock is necessary. The process does
            // not change the memory that is mapped. The ranges are removed below; the second one
            // keeps the notifier until its last use.
            unsafe {
                let made =
                    svm.find_or_insert(BASE, one.clone(), &ctx, &attempt, &mut walk, |_| false)?;
                let kept =
                    svm.find_or_insert(other.start, other, &ctx, &attempt, &mut walk, |_| false);
                let kept = match kept {
                    Ok(kept) => kept,
                    Err(e) => {
                        svm.remove(made, &[], |_| ());
                        return Err(e);
                    }
                };
                let source = Source {
                    svm: &svm,
                    mm: &env.mm,
                    notifier: kept.as_ref().notifier().mmu(),
                    span: one,
                };
                made.as_ref().get();
                let got = source.get(set.as_slice(), &ctx, &attempt, &mut walk);
                let mapped = dma::mapped();
                let was_mapped = Cell::new(None);
                svm.remove(made, set.as_slice(), |mapped| was_mapped.set(Some(mapped)));
                let after = (
                    dma::mapped(),
                    source.get(set.as_slice(), &ctx, &attempt, &mut walk),
                );
                let retired = set.as_slice()[0].has(PagesFlag::Unmapped);
                let kept_was_mapped = Cell::new(None);
                svm.remove(kept, others.as_slice(), |mapped| {
                    kept_was_mapped.set(Some(mapped))
                });
                SvmRange::put(made);
                ensure_eq!(got, Ok(()));
                ensure_eq!(mapped, MIDDLE as i64);
                ensure_eq!(was_mapped.get(), Some(true));
                // The other range was never mapped.
                ensure_eq!(kept_was_mapped.get(), Some(false));
                ensure_eq!(after, (0, Err(EFAULT)));
                ensure!(retired);
            }
            ensure_eq!(dma::maps() as usize, 16);
            Ok(())
        })
    }
}
