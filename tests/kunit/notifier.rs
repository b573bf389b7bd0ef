// SPDX-License-Identifier: GPL-2.0

//! Tests of the invalidations that a driver receives when the CPU changes its mappings, and of
//! invalidations that may not block.

use crate::fixture::{
    dma,
    driver::{fault, Mirror},
    mm::{self, Prot},
    pages,
    with_device,
    CONFIG,
    LARGE, //
};
use core::ops::Range;
use gpusvm::{Access, Svm};
use kernel::{bindings, prelude::*};

/// A sequence number that the kernel does not use; it is odd, as all of them are.
const SEQ: usize = 0x7777;

/// Returns the notifier at `span`. The caller keeps its ranges.
fn notifier_at(
    svm: &Svm<Mirror>,
    span: Range<usize>,
) -> Result<*mut bindings::mmu_interval_notifier> {
    let _guard = svm.lock();
    // SAFETY: The SVM lock is held.
    let notifier = unsafe { svm.core().notifier_find(span) }.ok_or(ENOENT)?;
    // SAFETY: The notifier exists as long as it has ranges.
    Ok(unsafe { notifier.as_ref() }.mmu().as_raw())
}

/// Calls the notifier at `span`, as the kernel does when `span` changes. Returns whether it
/// proceeded, and whether it set the sequence number.
fn invalidate(svm: &Svm<Mirror>, span: Range<usize>, blockable: bool) -> Result<(bool, bool)> {
    invalidate_by(notifier_at(svm, span.clone())?, span, blockable)
}

fn invalidate_by(
    mni: *mut bindings::mmu_interval_notifier,
    span: Range<usize>,
    blockable: bool,
) -> Result<(bool, bool)> {
    let range = bindings::mmu_notifier_range {
        start: span.start,
        end: span.end,
        flags: if blockable {
            bindings::MMU_NOTIFIER_RANGE_BLOCKABLE
        } else {
            0
        },
        event: bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
        ..Default::default()
    };
    // SAFETY: The notifier is inserted, so that it has operations, which are called as the kernel
    // calls them. Its sequence number is restored for readers.
    unsafe {
        let before = (*mni).invalidate_seq;
        let call = (*(*mni).ops).invalidate.ok_or(EINVAL)?;
        let proceeded = call(mni, &raw const range, SEQ);
        let noted = (*mni).invalidate_seq == SEQ;
        (*mni).invalidate_seq = before;
        Ok((proceeded, noted))
    }
}

#[kunit_tests(gpusvm_notifier)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_wait_proceeds_over_an_empty_span() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, pages(16, 1).start, Access::Write)?;
            let mapped = dma::mapped();
            for span in [
                pages(0, 16),
                pages(32, 1000),
                pages(31, 1).end..pages(40, 1).start,
            ] {
                ensure_eq!(invalidate(&svm, span, false)?, (true, true));
            }
            ensure_eq!(svm.vm().invalidations(), 0);
            ensure_eq!(dma::mapped(), mapped);
            Ok(())
        })
    }

    #[test]
    fn who_may_not_wait_has_ranges_let_go_of() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            let spans = [pages(16, 1), pages(0, 64), pages(31, 10), pages(0, 17)];
            for (rounds, span) in (1..).zip(spans) {
                fault(&svm, pages(16, 1).start, Access::Write)?;
                ensure!(dma::mapped() != 0);
                ensure_eq!(invalidate(&svm, span, false)?, (true, true));
                ensure_eq!(svm.vm().invalidations(), rounds);
                ensure!(svm.vm().last().locked);
                ensure_eq!(svm.vm().last().bound, 1);
                ensure_eq!(dma::mapped(), 0);
            }
            Ok(())
        })
    }

    #[test]
    fn who_may_not_wait_is_sent_away_by_a_driver_that_would() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, pages(16, 1).start, Access::Write)?;
            let mapped = dma::mapped();
            svm.vm().set_waits(true);
            for span in [pages(16, 1), pages(0, 64)] {
                ensure_eq!(invalidate(&svm, span, false)?.0, false);
            }
            // The refused invalidations changed nothing.
            ensure_eq!(svm.vm().invalidations(), 0);
            ensure_eq!(dma::mapped(), mapped);
            // An invalidation of another span proceeds.
            ensure_eq!(invalidate(&svm, pages(32, 16), false)?, (true, true));
            // A blockable invalidation proceeds.
            ensure_eq!(invalidate(&svm, pages(31, 10), true)?, (true, true));
            ensure_eq!(svm.vm().invalidations(), 1);
            ensure_eq!(dma::mapped(), 0);
            // After the driver was refused it may proceed later.
            fault(&svm, pages(16, 1).start, Access::Write)?;
            svm.vm().set_waits(false);
            ensure_eq!(invalidate(&svm, pages(16, 1), false)?, (true, true));
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn who_may_not_wait_does_not_wait_for_the_lock() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, pages(16, 1).start, Access::Write)?;
            let mni = notifier_at(&svm, pages(0, 16))?;
            // SAFETY: While the lock is held the thread calls only an invalidation that does not
            // block.
            let held = unsafe { svm.core() }.read_lock();
            let result = invalidate_by(mni, pages(0, 16), false);
            drop(held);
            ensure_eq!(result?, (false, false));
            ensure_eq!(invalidate(&svm, pages(0, 16), false)?, (true, true));
            Ok(())
        })
    }

    #[test]
    fn the_span_to_flush_covers_all_that_is_zapped() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let svm = env.svm()?;
            let mut windows = [pages(16, 1), pages(100, 1), pages(512, 512)];
            for window in &windows {
                // Create the small ranges first, so that they limit the later chunks.
                let mut guard = svm.lock();
                let ctx = gpusvm::Ctx::new(Access::Write);
                let mut retry = gpusvm::Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let found = guard.find_or_insert(window.start, window.clone(), &ctx, &attempt)?;
                ensure_eq!(found.span(), *window);
                drop(guard);
                fault(&svm, window.start, Access::Write)?;
            }
            // The CPU changes only the middle of the last range, but the span covers all three.
            mm::drop_pages(&pages(16, 600))?;
            let received = svm.vm().last();
            ensure_eq!(svm.vm().invalidations(), 1);
            ensure_eq!((received.ranges, received.bound), (3, 3));
            ensure_eq!(received.span, (windows[0].start, windows[2].end));
            ensure_eq!(received.changed, (pages(16, 1).start, pages(616, 1).start));
            ensure!(received.locked && !received.is_unmap);

            // A range that is not mapped is not in the span.
            windows.rotate_left(1);
            fault(&svm, windows[0].start, Access::Write)?;
            mm::drop_pages(&pages(16, 600))?;
            let received = svm.vm().last();
            ensure_eq!((received.ranges, received.bound), (1, 1));
            ensure_eq!(received.span, (windows[0].start, windows[0].end));

            // With no range mapped, the driver is not called.
            mm::drop_pages(&pages(0, 1024))?;
            ensure_eq!(svm.vm().invalidations(), 2);
            Ok(())
        })
    }

    #[test]
    fn each_notifier_tells_of_its_own_part() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let svm = env.svm_with(gpusvm::Config {
                notifier_size: LARGE,
                ..CONFIG
            })?;
            fault(&svm, pages(0, 1).start, Access::Write)?;
            fault(&svm, pages(512, 1).start, Access::Write)?;
            mm::drop_pages(&pages(511, 2))?;
            // Each notifier invalidates its own range, once.
            ensure_eq!(svm.vm().invalidations(), 2);
            let received = svm.vm().last();
            ensure_eq!((received.ranges, received.bound), (1, 1));
            let (first, second) = (pages(511, 1), pages(512, 1));
            let first = (first.start, first.end);
            let second = (second.start, second.end);
            ensure!(received.changed == first || received.changed == second);
            ensure_eq!(dma::mapped(), 0);

            // Each range gets its own flags: the one of which a part is left is partially unmapped.
            mm::unmap(&pages(256, 1024))?;
            let mut guard = svm.lock();
            let flags = |range: &gpusvm::Range<Mirror>| {
                (
                    range.has(gpusvm::RangeFlag::Unmapped),
                    range.has(gpusvm::RangeFlag::PartialUnmap),
                )
            };
            ensure!(guard
                .ranges(0..usize::MAX)
                .map(flags)
                .eq([(true, true), (true, false)]));
            ensure_eq!(guard.collect_garbage(), 2);
            Ok(())
        })
    }

    #[test]
    fn changes_elsewhere_are_nobodys_business() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, pages(16, 1).start, Access::Write)?;
            let mapped = dma::mapped();
            mm::unmap(&pages(0, 16))?;
            mm::drop_pages(&pages(32, 16))?;
            mm::protect(&pages(48, 16), Prot::Read)?;
            ensure_eq!(svm.vm().invalidations(), 0);
            ensure_eq!(svm.vm().garbage(), 0);
            ensure_eq!(dma::mapped(), mapped);
            Ok(())
        })
    }
}
