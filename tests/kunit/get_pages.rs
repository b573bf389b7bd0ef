// SPDX-License-Identifier: GPL-2.0

//! Tests of mapping a process's pages for a device, for reading and for writing.

use crate::fixture::{
    dma,
    driver::{bind, ctx_with, fault, fault_with, look, translate, Mirror, Seen},
    mm::{self, Prot},
    pages,
    with_device,
    BASE,
    LARGE,
    MIDDLE, //
};
use core::ops::Range;
use gpusvm::{Access, Ctx, Retry, Svm};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::mm::hmm;

/// Returns the device address of the page number `page`, which must be mapped.
fn at(svm: &Svm<Mirror>, page: usize) -> Result<u64> {
    translate(svm, 0, pages(page, 1).start).ok_or(EFAULT)
}

fn range_at(svm: &Svm<Mirror>, addr: usize) -> Option<Range<usize>> {
    svm.lock().find(addr).map(|found| found.span())
}

#[kunit_tests(gpusvm_get_pages)]
mod tests {
    use super::*;

    #[test]
    fn the_device_sees_what_the_cpu_wrote() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let served = fault(&svm, BASE + 5 * PAGE_SIZE, Access::Write)?;
            ensure_eq!(served.span, span);
            ensure_eq!(served.retries, 0);
            ensure_eq!(served.seen.bytes, MIDDLE);
            ensure_eq!(served.seen.writable, served.seen.segments);
            ensure_eq!(dma::mapped(), MIDDLE as i64);
            for addr in span.step_by(PAGE_SIZE) {
                let dma = translate(&svm, 0, addr).ok_or(EINVAL)?;
                ensure_eq!(env.device().read(dma)?, mm::pattern(addr));
                env.device().write(dma, 1)?;
                ensure_eq!(mm::read(addr)?, 1);
            }
            Ok(())
        })
    }

    #[test]
    fn a_first_touch_by_the_device_makes_zeroed_pages() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            for page in 0..16 {
                ensure_eq!(env.device().read(at(&svm, page)?)?, 0);
                env.device().write(at(&svm, page)?, page as u64)?;
            }
            for (page, addr) in span.step_by(PAGE_SIZE).enumerate() {
                ensure_eq!(mm::read(addr)?, page as u64);
            }
            Ok(())
        })
    }

    #[test]
    fn pages_that_are_mapped_are_not_mapped_again() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            let (walks, maps) = (hmm::walks(), dma::maps());
            fault(&svm, BASE, Access::Write)?;
            fault(&svm, BASE + PAGE_SIZE, Access::Read)?;
            ensure_eq!(hmm::walks(), walks);
            ensure_eq!(dma::maps(), maps);
            Ok(())
        })
    }

    #[test]
    fn a_fault_walks_the_page_table_once() -> Result {
        with_device(|env| {
            let span = pages(0, 512);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let walks = hmm::walks();
            ensure_eq!(fault(&svm, BASE, Access::Write)?.span, span);
            ensure_eq!(hmm::walks() - walks, 1);

            // The walk that checks the pages for the choice of a chunk also serves to map them.
            svm.lock().remove_all(0..usize::MAX);
            let walks = hmm::walks();
            let checked = ctx_with(Access::Write, |ctx| ctx.check_pages_threshold = LARGE);
            ensure_eq!(fault_with(&svm, BASE, &checked)?.span, span);
            ensure_eq!(hmm::walks() - walks, 1);
            Ok(())
        })
    }

    #[test]
    fn a_read_leaves_the_zero_page() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let served = fault(&svm, BASE, Access::Read)?;
            ensure_eq!(served.span, pages(0, 16));
            ensure_eq!(served.seen.writable, 0);
            // All addresses have the same page: no memory was allocated.
            let zero = at(&svm, 0)?;
            for page in 0..16 {
                ensure_eq!(at(&svm, page)?, zero);
            }
            ensure_eq!(env.device().read(zero)?, 0);
            // No invalidation has happened yet.
            ensure_eq!(svm.vm().invalidations(), 0);
            Ok(())
        })
    }

    #[test]
    fn a_write_after_a_read_lets_go_first() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Read)?;
            let zero = at(&svm, 0)?;

            let served = fault(&svm, BASE + PAGE_SIZE, Access::Write)?;
            ensure_eq!(served.span, pages(0, 16));
            ensure_eq!(served.seen.writable, served.seen.segments);
            ensure!(svm.vm().invalidations() >= 1);
            let received = svm.vm().last();
            ensure!(received.locked);
            ensure!(!received.is_unmap);
            ensure_eq!(received.bound, 1);
            ensure_eq!(received.span, (pages(0, 16).start, pages(0, 16).end));
            for page in 0..16 {
                ensure!(at(&svm, page)? != zero);
                env.device().write(at(&svm, page)?, 7)?;
            }
            // The zero page was not written.
            mm::map(&pages(64, 1), Prot::Write)?;
            ensure_eq!(mm::read(pages(64, 1).start)?, 0);
            // The range is writable now, and is mapped again neither for reading nor for writing.
            let maps = dma::maps();
            fault(&svm, BASE, Access::Read)?;
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(dma::maps(), maps);
            Ok(())
        })
    }

    #[test]
    fn a_write_to_what_was_clean_lets_go_first() -> Result {
        with_device(|env| {
            // The CPU may write the pages of the file without a fault, but no thread has.
            let file = mm::File::sparse(17)?;
            let span = pages(0, 16);
            file.map_shared(&span, Prot::Write)?;
            for addr in span.clone().step_by(PAGE_SIZE) {
                ensure_eq!(mm::read(addr)?, 0);
            }
            let svm = env.svm()?;
            // The read leaves the pages clean. So they are mapped read-only, since a store of the
            // device would not mark them dirty.
            let served = fault(&svm, BASE, Access::Read)?;
            ensure_eq!(served.seen.bytes, MIDDLE);
            ensure_eq!(served.seen.writable, 0);

            let served = fault(&svm, BASE, Access::Write)?;
            ensure_eq!(served.seen.writable, served.seen.segments);
            // The CPU changed nothing: the one invalidation was for the write.
            ensure_eq!(svm.vm().invalidations(), 1);
            let received = svm.vm().last();
            ensure!(received.locked && !received.is_unmap);
            ensure_eq!((received.ranges, received.bound), (1, 1));
            ensure_eq!(received.changed, (span.start, span.end));
            Ok(())
        })
    }

    #[test]
    fn memory_for_reading_is_read() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            mm::protect(&span, Prot::Read)?;
            let svm = env.svm()?;
            let served = fault(&svm, BASE, Access::Read)?;
            ensure_eq!(served.span, span);
            ensure_eq!(served.seen.writable, 0);
            ensure_eq!(served.seen.bytes, MIDDLE);
            let read = env.device().read(at(&svm, 3)?)?;
            ensure_eq!(read, mm::pattern(pages(3, 1).start));
            ensure_eq!(fault(&svm, BASE, Access::Write).err(), Some(EPERM));
            // The mapping for reading is still there.
            ensure!(at(&svm, 0).is_ok());
            Ok(())
        })
    }

    #[test]
    fn what_the_cpu_may_write_is_mapped_for_writing_by_a_read() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 8))?;
            let svm = env.svm()?;
            let served = fault(&svm, BASE, Access::Read)?;
            ensure_eq!(served.seen.bytes, MIDDLE);
            // Each page is writable on its own: those that were written are, the others are not.
            let mut guard = svm.lock();
            let mut found = guard.find(BASE).ok_or(EINVAL)?;
            let right = found.commit(|view, _| {
                view.segments()
                    .all(|segment| segment.writable == (segment.va < pages(8, 1).start))
            });
            ensure_eq!(right, Ok(true));
            drop(guard);
            // For a write, one read-only page is enough to map all pages again.
            let served = fault(&svm, BASE, Access::Write)?;
            ensure_eq!(served.seen.writable, served.seen.segments);
            ensure_eq!(svm.vm().invalidations(), 1);
            Ok(())
        })
    }

    #[test]
    fn a_read_of_a_private_file_copies_nothing() -> Result {
        with_device(|env| {
            let file = mm::File::new(16)?;
            let (shared, private) = (pages(0, 16), pages(64, 16));
            file.map_shared(&shared, Prot::Read)?;
            file.map_private(&private, Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, shared.start, Access::Read)?;
            let served = fault(&svm, private.start, Access::Read)?;
            ensure_eq!(served.seen.bytes, MIDDLE);
            ensure_eq!(served.seen.writable, 0);
            for page in 0..16 {
                ensure_eq!(at(&svm, page)?, at(&svm, 64 + page)?);
                ensure_eq!(env.device().read(at(&svm, page)?)?, page as u64);
            }

            // A write makes the copies; the file does not change.
            let served = fault(&svm, private.start, Access::Write)?;
            ensure_eq!(served.seen.writable, served.seen.segments);
            for page in 0..16 {
                let copy = at(&svm, 64 + page)?;
                ensure!(copy != at(&svm, page)?);
                ensure_eq!(env.device().read(copy)?, page as u64);
                env.device().write(copy, 99)?;
                ensure_eq!(mm::read(pages(page, 1).start)?, page as u64);
                ensure_eq!(mm::read(pages(64 + page, 1).start)?, 99);
            }
            Ok(())
        })
    }

    #[test]
    fn a_huge_page_is_one_segment() -> Result {
        with_device(|env| {
            let span = pages(0, 512);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let served = fault(&svm, BASE + 12345, Access::Write)?;
            ensure_eq!(served.span, span);
            let one = Seen {
                segments: 1,
                bytes: LARGE,
                writable: 1,
                device: 0,
            };
            ensure_eq!(served.seen, one);
            ensure_eq!(dma::maps(), 1);
            for page in [0, 1, 255, 511] {
                let read = env.device().read(at(&svm, page)?)?;
                ensure_eq!(read, mm::pattern(pages(page, 1).start));
            }
            Ok(())
        })
    }

    #[test]
    fn a_part_of_a_huge_page_is_mapped_in_its_largest_pieces() -> Result {
        with_device(|env| {
            let span = pages(0, 512);
            mm::map_huge(&span)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Write);
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            // 64 KiB of the 2 MiB.
            let window = pages(32, 16);
            let mut found = guard.find_or_insert(window.start, window.clone(), &ctx, &attempt)?;
            ensure_eq!(found.span(), window);
            found.get(&ctx, &attempt)?;
            let seen = found
                .commit(|view, _| look(&view, 0))
                .map_err(|_| EAGAIN)??;
            ensure_eq!(seen.segments, 1);
            ensure_eq!(seen.bytes, MIDDLE);
            Ok(())
        })
    }

    #[test]
    fn what_lies_beyond_the_end_of_a_file_is_left_out() -> Result {
        with_device(|env| {
            let file = mm::File::new(3)?;
            file.map_shared(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let mut guard = svm.lock();
            let ctx = Ctx::new(Access::Read);
            let mut retry = Retry::bounded();
            let mut attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt)?;
            let whole = found.span();
            ensure_eq!(whole, pages(0, 16));
            ensure_eq!(found.get(&ctx, &attempt), Err(EFAULT));
            // Nothing is mapped.
            ensure_eq!(dma::mapped(), 0);
            ensure!(found.commit(|_, _| ()).is_err());
            ensure!(attempt.narrow(BASE, whole));

            // The range is too large now, and is removed.
            let attempt = retry.next().ok_or(EINVAL)?;
            let again = guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt);
            ensure_eq!(again.err(), Some(EAGAIN));
            ensure_eq!(guard.collect_garbage(), 1);
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt)?;
            ensure_eq!(found.span(), pages(0, 1));
            found.get(&ctx, &attempt)?;
            ensure!(bind(&mut found).is_ok());
            drop(guard);

            // The same with complete faults, each with few retries.
            let served = fault(&svm, pages(2, 1).start, Access::Write)?;
            ensure_eq!(served.span, pages(2, 1));
            ensure!(served.retries <= 2);
            ensure_eq!(env.device().read(at(&svm, 2)?)?, 2);
            for page in [3, 9, 15] {
                let failed = fault(&svm, pages(page, 1).start, Access::Read);
                ensure_eq!(failed.err(), Some(EFAULT));
            }
            ensure!(at(&svm, 2).is_ok());
            Ok(())
        })
    }

    #[test]
    fn half_of_a_range_that_lost_its_permission() -> Result {
        with_device(|env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let (kept, lost) = (pages(3, 1).start, pages(12, 1).start);
            for prot in [Prot::Read, Prot::None] {
                ensure_eq!(fault(&svm, kept, Access::Write)?.span, span);
                mm::protect(&pages(8, 8), prot)?;
                // A fault in the half that is still writable succeeds.
                let served = fault(&svm, kept, Access::Write)?;
                ensure!(served.span.end <= pages(8, 1).start);
                ensure!(served.retries <= 2);
                env.device().write(at(&svm, 3)?, 5)?;
                ensure_eq!(mm::read(kept)?, 5);
                // A fault in the other half fails at once, with the right error.
                let walks = hmm::walks();
                ensure_eq!(fault(&svm, lost, Access::Write).err(), Some(EPERM));
                ensure_eq!(hmm::walks(), walks);
                match prot {
                    Prot::Read => {
                        let served = fault(&svm, lost, Access::Read)?;
                        ensure_eq!(served.seen.writable, 0);
                        let read = env.device().read(at(&svm, 12)?)?;
                        ensure_eq!(read, mm::pattern(lost));
                    }
                    _ => {
                        ensure_eq!(fault(&svm, lost, Access::Read).err(), Some(EFAULT));
                        ensure!(hmm::walks() - walks <= 3);
                    }
                }
                // With the permission restored, faults succeed again, with ranges of any size.
                mm::protect(&span, Prot::Write)?;
                fault(&svm, lost, Access::Write)?;
                env.device().write(at(&svm, 12)?, 6)?;
                ensure_eq!(mm::read(lost)?, 6);
                mm::write(lost, mm::pattern(lost))?;
                svm.lock().remove_all(0..usize::MAX);
            }
            Ok(())
        })
    }

    #[test]
    fn device_memory_only_means_no_system_memory() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let ctx = ctx_with(Access::Write, |ctx| ctx.devmem_only = true);
            ensure_eq!(fault_with(&svm, BASE, &ctx).err(), Some(EFAULT));
            ensure_eq!(dma::mapped(), 0);
            ensure!(at(&svm, 0).is_err());
            // Without the option the fault succeeds.
            fault(&svm, BASE, Access::Write)?;
            ensure!(range_at(&svm, BASE).is_some());
            Ok(())
        })
    }

    #[test]
    fn what_the_device_wrote_survives_reclaim() -> Result {
        with_device(|env| {
            // Clean pages of a file: the CPU may write them, but has only read them.
            let file = mm::File::sparse(16)?;
            let shared = pages(0, 16);
            file.map_shared(&shared, Prot::Write)?;
            for addr in shared.clone().step_by(PAGE_SIZE) {
                ensure_eq!(mm::read(addr)?, 0);
            }
            // Pages that the process freed by MADV_FREE, and that the device writes again.
            let freed = pages(64, 16);
            mm::map(&freed, Prot::Write)?;
            mm::fill(&freed)?;
            mm::free_pages(&freed)?;

            let svm = env.svm()?;
            for span in [shared, freed] {
                fault(&svm, span.start, Access::Write)?;
                for addr in span.clone().step_by(PAGE_SIZE) {
                    let dma = translate(&svm, 0, addr).ok_or(EFAULT)?;
                    env.device().write(dma, addr as u64)?;
                }
                mm::reclaim(&span)?;
                for addr in span.step_by(PAGE_SIZE) {
                    ensure_eq!(mm::read(addr)?, addr as u64);
                }
            }
            Ok(())
        })
    }
}
