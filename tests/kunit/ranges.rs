// SPDX-License-Identifier: GPL-2.0

//! Tests of the lookup, creation, iteration and removal of ranges.

use crate::fixture::{
    driver::{alive, ctx_with, Mirror},
    mm::{self, Prot},
    pages,
    with_device,
    BASE,
    CONFIG,
    LARGE,
    MIDDLE, //
};
use core::ops::Range;
use gpusvm::{range::SvmRange, Access, Config, Ctx, Guard, Retry, Svm};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

const ALL: Range<usize> = 0..usize::MAX;

fn insert_with(
    guard: &mut Guard<'_, Mirror>,
    addr: usize,
    window: Range<usize>,
    ctx: &Ctx,
) -> Result<Range<usize>> {
    let mut retry = Retry::bounded();
    let attempt = retry.next().ok_or(EINVAL)?;
    let found = guard.find_or_insert(addr, window, ctx, &attempt)?;
    Ok(found.span())
}

fn insert(guard: &mut Guard<'_, Mirror>, addr: usize) -> Result<Range<usize>> {
    insert_with(guard, addr, ALL, &Ctx::new(Access::Write))
}

/// Returns the addresses of the range at `addr`, if there is one.
fn lookup(guard: &mut Guard<'_, Mirror>, addr: usize) -> Option<Range<usize>> {
    guard.find(addr).map(|found| found.span())
}

/// Returns whether there is a notifier that overlaps `span`.
fn has_notifier(svm: &Svm<Mirror>, span: Range<usize>) -> bool {
    let _guard = svm.lock();
    // SAFETY: The SVM lock is held.
    unsafe { svm.core().notifier_find(span) }.is_some()
}

#[kunit_tests(gpusvm_ranges)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_made_once_and_found_after() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            ensure_eq!(lookup(&mut guard, BASE), None);
            ensure!(!guard.has_mapping(ALL));

            let span = pages(0, 512);
            ensure_eq!(insert(&mut guard, BASE + LARGE - 1)?, span);
            for addr in [span.start, span.start + 1, span.end - 1] {
                ensure_eq!(lookup(&mut guard, addr), Some(span.clone()));
                ensure_eq!(insert(&mut guard, addr)?, span);
            }
            ensure_eq!(alive(), (1, 1));
            ensure_eq!(lookup(&mut guard, span.end), None);
            ensure_eq!(lookup(&mut guard, span.start - 1), None);
            ensure_eq!(lookup(&mut guard, 0), None);
            ensure_eq!(lookup(&mut guard, usize::MAX), None);

            ensure!(guard.has_mapping(span.clone()));
            ensure!(guard.has_mapping(ALL));
            ensure!(guard.has_mapping(0..span.start + 1));
            ensure!(guard.has_mapping(span.end - 1..usize::MAX));
            ensure!(!guard.has_mapping(0..span.start));
            ensure!(!guard.has_mapping(span.end..usize::MAX));
            ensure!(!guard.has_mapping(span.start..span.start));
            Ok(())
        })
    }

    #[test]
    fn a_range_stays_inside_its_vma() -> Result {
        with_device(|env| {
            // The VMA has one page more than a chunk of 2 MiB at its start, and one less at its
            // end.
            mm::map(&pages(511, 512), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            ensure_eq!(insert(&mut guard, pages(511, 1).start)?, pages(511, 1));
            ensure_eq!(insert(&mut guard, pages(512, 1).start)?, pages(512, 16));
            ensure_eq!(insert(&mut guard, pages(1022, 1).start)?, pages(1022, 1));
            ensure_eq!(insert(&mut guard, pages(1023, 1).start).err(), Some(ENOENT));
            Ok(())
        })
    }

    #[test]
    fn a_range_stays_inside_window_notifier_and_svm() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let ctx = Ctx::new(Access::Write);

            let svm = env.svm()?;
            let mut guard = svm.lock();
            ensure_eq!(
                insert_with(&mut guard, BASE, pages(0, 511), &ctx)?,
                pages(0, 16)
            );
            ensure_eq!(
                insert_with(&mut guard, pages(30, 1).start, pages(17, 100), &ctx)?,
                pages(30, 1)
            );
            drop(guard);
            drop(svm);

            let small: Config = Config {
                notifier_size: MIDDLE,
                chunk_sizes: &[MIDDLE, PAGE_SIZE],
                ..CONFIG
            };
            let svm = env.svm_with(small)?;
            ensure_eq!(insert(&mut svm.lock(), BASE)?, pages(0, 16));
            drop(svm);

            let svm = env.svm_with(Config {
                start: pages(1, 1).start,
                size: 512 * PAGE_SIZE,
                ..CONFIG
            })?;
            let mut guard = svm.lock();
            ensure_eq!(insert(&mut guard, pages(1, 1).start)?, pages(1, 1));
            ensure_eq!(insert(&mut guard, pages(16, 1).start)?, pages(16, 16));
            ensure_eq!(insert(&mut guard, pages(512, 1).start)?, pages(512, 1));
            Ok(())
        })
    }

    #[test]
    fn ranges_do_not_overlap() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 1024), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            // A range of one page limits the chunks around it.
            let middle = pages(40, 1);
            insert_with(&mut guard, middle.start, middle.clone(), &ctx)?;
            ensure_eq!(insert(&mut guard, pages(0, 1).start)?, pages(0, 16));
            ensure_eq!(insert(&mut guard, pages(39, 1).start)?, pages(39, 1));
            ensure_eq!(insert(&mut guard, pages(41, 1).start)?, pages(41, 1));
            ensure_eq!(insert(&mut guard, pages(48, 1).start)?, pages(48, 16));
            ensure_eq!(insert(&mut guard, pages(512, 1).start)?, pages(512, 512));
            ensure_eq!(alive().1, 6);
            Ok(())
        })
    }

    #[test]
    fn addresses_outside_are_refused() -> Result {
        with_device(|env| {
            // The memory ends where the SVM's address space ends: there an address that is wrongly
            // accepted would fail with another error.
            mm::map(&pages(0, 32), Prot::Write)?;
            let svm = env.svm_with(Config {
                start: pages(16, 1).start,
                size: 16 * PAGE_SIZE,
                ..CONFIG
            })?;
            let inside = pages(16, 16);
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            // Addresses outside of the SVM's address space, whose end is exclusive.
            for addr in [0, inside.start - 1, inside.end, usize::MAX - 1, usize::MAX] {
                ensure_eq!(insert(&mut guard, addr).err(), Some(EINVAL));
            }
            // Addresses outside of the window.
            let window = pages(18, 2);
            mm::unmap(&pages(20, 1))?;
            for addr in [window.start - 1, window.end, inside.end - 1] {
                let made = insert_with(&mut guard, addr, window.clone(), &ctx);
                ensure_eq!(made.err(), Some(EINVAL));
            }
            // A window that is smaller than a page.
            let window = window.start..window.start + PAGE_SIZE - 1;
            let made = insert_with(&mut guard, window.start, window, &ctx);
            ensure_eq!(made.err(), Some(EINVAL));
            ensure!(!guard.has_mapping(ALL));
            ensure_eq!(alive(), (1, 0));
            drop(guard);
            ensure!(!has_notifier(&svm, ALL));

            // The last address of the SVM is accepted.
            mm::map(&pages(20, 1), Prot::Write)?;
            let mut guard = svm.lock();
            ensure_eq!(insert(&mut guard, inside.end - 1)?, inside);
            Ok(())
        })
    }

    #[test]
    fn memory_that_cannot_be_mirrored_is_refused() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Read)?;
            let svm = env.svm()?;
            ensure_eq!(insert(&mut svm.lock(), BASE).err(), Some(EPERM));
            ensure_eq!(
                insert(&mut svm.lock(), pages(16, 1).start).err(),
                Some(ENOENT)
            );
            let read = Ctx::new(Access::Read);
            mm::with_vma_flags(BASE, kernel::mm::virt::flags::PFNMAP, || {
                let made = insert_with(&mut svm.lock(), BASE, ALL, &read);
                ensure_eq!(made.err(), Some(EIO));
                Ok(())
            })?;
            mm::with_vma_flags(BASE, kernel::mm::virt::flags::IO, || {
                let made = insert_with(&mut svm.lock(), BASE, ALL, &read);
                ensure_eq!(made.err(), Some(EIO));
                Ok(())
            })?;
            // The failures left nothing behind, including the notifier.
            ensure_eq!(alive(), (1, 0));
            ensure!(!has_notifier(&svm, ALL));
            ensure_eq!(
                insert_with(&mut svm.lock(), BASE, ALL, &read)?,
                pages(0, 16)
            );
            // A write to read-only memory is refused at an existing range, too.
            ensure_eq!(insert(&mut svm.lock(), BASE).err(), Some(EPERM));
            ensure_eq!(alive(), (1, 1));
            Ok(())
        })
    }

    #[test]
    fn a_range_that_fits_its_vma_no_more_makes_way() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            ensure_eq!(insert(&mut guard, BASE)?, pages(0, 16));
            // Both halves are still mapped, but in two VMAs.
            mm::protect(&pages(8, 8), Prot::Read)?;
            ensure_eq!(insert(&mut guard, BASE).err(), Some(EAGAIN));
            ensure_eq!(guard.collect_garbage(), 1);
            ensure_eq!(insert(&mut guard, BASE)?, pages(0, 1));
            Ok(())
        })
    }

    #[test]
    fn ranges_are_visited_in_order_across_notifiers() -> Result {
        with_device(|env| {
            let svm = env.svm_with(Config {
                notifier_size: LARGE,
                ..CONFIG
            })?;
            let mut guard = svm.lock();
            // Ranges of a page, in several notifiers, of which some have two.
            const PLACES: [usize; 7] = [3, 9, 511, 512, 1024 + 17, 4096, 5000];
            for order in [4, 1, 6, 0, 3, 5, 2] {
                let span = pages(PLACES[order], 1);
                mm::map(&span, Prot::Write)?;
                ensure_eq!(insert(&mut guard, span.start)?, span);
            }
            let visit = |guard: &Guard<'_, Mirror>, span: Range<usize>, places: &[usize]| {
                let visited = guard.ranges(span).map(|range| range.span());
                ensure!(visited.eq(places.iter().map(|&place| pages(place, 1))));
                Ok(())
            };
            visit(&guard, ALL, &PLACES)?;
            visit(&guard, pages(9, 1), &[9])?;
            visit(&guard, pages(9, 504), &[9, 511, 512])?;
            visit(&guard, pages(9, 503), &[9, 511])?;
            visit(&guard, pages(10, 501), &[])?;
            visit(&guard, pages(513, 4487), &[1024 + 17, 4096])?;
            visit(&guard, pages(4096, 10000), &[4096, 5000])?;
            visit(&guard, pages(5001, 10000), &[])?;
            // The span begins and ends within a page.
            let odd = pages(3, 1).end - 1..pages(9, 1).start + 1;
            visit(&guard, odd, &[3, 9])?;
            visit(&guard, pages(3, 1).end..pages(9, 1).start, &[])?;
            Ok(())
        })
    }

    #[test]
    fn a_notifier_goes_with_its_last_range() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 64), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            for page in [1, 5] {
                let span = pages(page, 1);
                insert_with(&mut guard, span.start, span, &ctx)?;
            }
            drop(guard);
            ensure!(has_notifier(&svm, ALL));
            ensure_eq!(svm.lock().remove_all(pages(0, 3)), 1);
            ensure!(has_notifier(&svm, ALL));
            ensure_eq!(svm.lock().remove_all(pages(2, 3)), 0);
            ensure_eq!(svm.lock().remove_all(ALL), 1);
            ensure!(!has_notifier(&svm, ALL));
            ensure_eq!(alive(), (1, 0));
            // The notifier is created again.
            ensure_eq!(insert(&mut svm.lock(), BASE)?, pages(0, 16));
            Ok(())
        })
    }

    #[test]
    fn a_reference_keeps_a_removed_range() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            insert(&mut guard, BASE)?;
            // SAFETY: The SVM lock is held; a reference is taken before the range is removed.
            let range = unsafe { svm.core().range_find(ALL) }.ok_or(EINVAL)?;
            // SAFETY: As above.
            unsafe { range.as_ref() }.get();
            ensure_eq!(guard.remove_all(ALL), 1);
            let left = alive().1;
            // SAFETY: The reference taken above keeps the range.
            let span = unsafe { range.as_ref() }.span();
            // SAFETY: This gives up the reference taken above; the SVM exists.
            unsafe { SvmRange::put(range) };
            ensure_eq!(left, 1);
            ensure_eq!(span, pages(0, 16));
            ensure_eq!(alive().1, 0);
            Ok(())
        })
    }

    #[test]
    fn the_next_vma_begins_inside_the_span() -> Result {
        with_device(|env| {
            mm::map(&pages(10, 10), Prot::Write)?;
            mm::map(&pages(30, 10), Prot::None)?;
            let svm = env.svm()?;
            let at = |page| Some(pages(page, 1).start);
            // For a VMA that begins below the span, the result is the start of the span.
            ensure_eq!(svm.find_vma_start(pages(15, 20)), at(15));
            ensure_eq!(svm.find_vma_start(pages(19, 1)), at(19));
            ensure_eq!(svm.find_vma_start(pages(10, 1)), at(10));
            ensure_eq!(svm.find_vma_start(pages(2, 20)), at(10));
            ensure_eq!(svm.find_vma_start(pages(20, 11)), at(30));
            // The end of the span is exclusive.
            ensure_eq!(svm.find_vma_start(pages(20, 10)), None);
            ensure_eq!(svm.find_vma_start(pages(2, 8)), None);
            ensure_eq!(svm.find_vma_start(pages(40, 100)), None);
            ensure_eq!(svm.find_vma_start(pages(15, 0)), None);
            let middle = pages(15, 1).start + 5;
            ensure_eq!(svm.find_vma_start(middle..middle + 1), Some(middle));
            Ok(())
        })
    }

    #[test]
    fn a_checked_chunk_has_all_pages() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 512), Prot::Write)?;
            let svm = env.svm()?;
            let checked =
                |threshold| ctx_with(Access::Write, |ctx| ctx.check_pages_threshold = threshold);
            let choose = |threshold| {
                let mut guard = svm.lock();
                let span = insert_with(&mut guard, pages(17, 1).start, ALL, &checked(threshold))?;
                ensure_eq!(guard.remove_all(ALL), 1);
                Ok(span.len())
            };
            // No page is present: the check, where the threshold asks for it, selects the smallest
            // chunk.
            ensure_eq!(choose(LARGE)?, PAGE_SIZE);
            ensure_eq!(choose(MIDDLE)?, LARGE);
            ensure_eq!(choose(LARGE - 1)?, LARGE);
            ensure_eq!(choose(PAGE_SIZE)?, LARGE);
            ensure_eq!(choose(0)?, LARGE);
            // All pages of the chunk of 64 KiB except the last one; then all of them.
            mm::fill(&pages(16, 15))?;
            ensure_eq!(choose(LARGE)?, PAGE_SIZE);
            mm::fill(&pages(31, 1))?;
            ensure_eq!(choose(LARGE)?, MIDDLE);
            mm::fill(&pages(0, 512))?;
            ensure_eq!(choose(LARGE)?, LARGE);
            mm::drop_pages(&pages(511, 1))?;
            ensure_eq!(choose(LARGE)?, MIDDLE);
            Ok(())
        })
    }
}
