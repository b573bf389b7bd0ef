// SPDX-License-Identifier: GPL-2.0

//! Tests of how much memory a fault of the device populates.

use crate::fixture::{
    driver::{fault_with, Mirror, Served},
    mm::{self, Prot},
    pages,
    with_device,
    BASE,
    LARGE,
    MIDDLE, //
};
use core::{ops::Range, ptr};
use gpusvm::{
    population::is_dense,
    Access,
    Ctx,
    Svm, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::mm::hmm::{
    self,
    HmmRequest,
    Pfn,
    Walk, //
};

/// The number of pages of a huge page.
const HUGE: usize = LARGE / PAGE_SIZE;
/// The number of pages that a fault may populate.
const AROUND: usize = MIDDLE / PAGE_SIZE;

fn ctx(access: Access) -> Ctx {
    Ctx::new(access).with_fault_around(MIDDLE, None)
}

/// Handles a fault on the page with the number `page` behind [`BASE`].
fn fault(svm: &Svm<Mirror>, page: usize, access: Access) -> Result<Served> {
    fault_with(svm, pages(page, 1).start, &ctx(access))
}

/// Returns how many pages of `span` belong to the process: neither holes nor the zero page. `span`
/// must be in the interval of the first range's notifier.
fn populated(svm: &Svm<Mirror>, span: Range<usize>) -> Result<usize> {
    let _guard = svm.lock();
    let mut walk = Walk::new();
    // SAFETY: The SVM lock is held, so that the notifier exists; the process has users.
    unsafe {
        let notifier = svm.core().notifier_find(span.clone()).ok_or(EINVAL)?;
        let mmu = notifier.as_ref().mmu();
        walk.fault(mmu, &span, HmmRequest::Snapshot, ptr::null_mut(), 100)?;
    }
    // The zero page is never mapped writable.
    Ok(walk.pfns().iter().filter(|pfn| pfn.is_writable()).count())
}

#[kunit_tests(gpusvm_population)]
mod tests {
    use super::*;

    #[test]
    fn half_is_dense() -> Result {
        let none = Pfn::from_parts(0, 0, false, false);
        let shared = Pfn::from_parts(1, 0, true, false);
        let own = Pfn::from_parts(2, 0, true, true);
        for access in [Access::Read, Access::Write] {
            ensure!(is_dense(&[own], access));
            ensure!(is_dense(&[own, none], access));
            ensure!(!is_dense(&[own, none, none], access));
            ensure!(!is_dense(&[none], access));
        }
        // A write would copy the shared pages.
        ensure!(is_dense(&[shared, shared, own], Access::Read));
        ensure!(!is_dense(&[shared, shared, own], Access::Write));
        Ok(())
    }

    #[test]
    fn a_read_populates_nothing() -> Result {
        with_device(|env| {
            let all = pages(0, 8 * HUGE);
            mm::map(&all, Prot::Write)?;
            let svm = env.svm()?;
            for chunk in 0..8 {
                let served = fault(&svm, chunk * HUGE + chunk, Access::Read)?;
                ensure_eq!(served.span.len(), MIDDLE);
                ensure_eq!(served.seen.writable, 0);
            }
            ensure_eq!(populated(&svm, all)?, 0);
            Ok(())
        })
    }

    #[test]
    fn a_write_populates_little_where_little_is() -> Result {
        with_device(|env| {
            let all = pages(0, 8 * HUGE);
            mm::map(&all, Prot::Write)?;
            let svm = env.svm()?;
            for chunk in 0..8 {
                let served = fault(&svm, chunk * HUGE + 40 * chunk, Access::Write)?;
                ensure_eq!(served.span.len(), MIDDLE);
            }
            ensure_eq!(populated(&svm, all)?, 8 * AROUND);
            Ok(())
        })
    }

    #[test]
    fn what_is_half_there_is_populated() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 2 * HUGE), Prot::Write)?;
            let svm = env.svm()?;
            // One page less than half is populated.
            mm::fill(&pages(0, HUGE / 2 - 1))?;
            ensure_eq!(fault(&svm, HUGE - 1, Access::Write)?.span.len(), MIDDLE);
            ensure_eq!(populated(&svm, pages(0, HUGE))?, HUGE / 2 - 1 + AROUND);
            mm::fill(&pages(HUGE, HUGE / 2))?;
            ensure_eq!(fault(&svm, 2 * HUGE - 1, Access::Read)?.span.len(), LARGE);
            ensure_eq!(populated(&svm, pages(HUGE, HUGE))?, HUGE / 2);
            ensure_eq!(fault(&svm, 2 * HUGE - 1, Access::Write)?.span.len(), LARGE);
            ensure_eq!(populated(&svm, pages(HUGE, HUGE))?, HUGE);
            Ok(())
        })
    }

    #[test]
    fn what_the_cpu_has_is_mapped_at_once() -> Result {
        with_device(|env| {
            mm::map(&pages(0, HUGE), Prot::Write)?;
            mm::fill(&pages(0, HUGE))?;
            let svm = env.svm()?;
            let walks = hmm::walks();
            ensure_eq!(fault(&svm, 77, Access::Write)?.span, pages(0, HUGE));
            // The first walk checks one entry, the second one all of them; its result, which chose
            // the range, also serves to map it.
            ensure_eq!(hmm::walks() - walks, 2);
            Ok(())
        })
    }

    #[test]
    fn a_huge_page_is_seen_by_one_entry() -> Result {
        with_device(|env| {
            mm::map_huge(&pages(0, 2 * HUGE))?;
            let svm = env.svm()?;
            // Nothing is populated: the CPU would allocate a huge page, and so does the device.
            let served = fault(&svm, 3, Access::Write)?;
            ensure_eq!(served.span, pages(0, HUGE));
            if served.seen.segments != 1 {
                crate::check::skip("no huge page is available");
                return Ok(());
            }
            mm::write(pages(HUGE, 1).start, 1)?;
            let walks = hmm::walks();
            ensure_eq!(fault(&svm, HUGE + 9, Access::Write)?.seen.segments, 1);
            ensure_eq!(hmm::walks() - walks, 2);
            Ok(())
        })
    }

    #[test]
    fn a_range_whose_pages_are_gone_makes_way() -> Result {
        with_device(|env| {
            mm::map(&pages(0, HUGE), Prot::Write)?;
            mm::fill(&pages(0, HUGE))?;
            let svm = env.svm()?;
            ensure_eq!(fault(&svm, 5, Access::Write)?.span.len(), LARGE);
            mm::drop_pages(&pages(0, HUGE))?;
            let served = fault(&svm, 5, Access::Write)?;
            ensure_eq!((served.span.len(), served.retries), (MIDDLE, 1));
            ensure_eq!(populated(&svm, pages(0, HUGE))?, AROUND);
            Ok(())
        })
    }

    #[test]
    fn a_write_copies_little() -> Result {
        with_device(|env| {
            mm::map(&pages(0, HUGE), Prot::Write)?;
            // Map the zero page everywhere.
            for addr in pages(0, HUGE).step_by(PAGE_SIZE) {
                ensure_eq!(mm::read(addr)?, 0);
            }
            let svm = env.svm()?;
            // For a read all pages are populated; a write would have to copy them.
            ensure_eq!(fault(&svm, 100, Access::Read)?.span.len(), LARGE);
            ensure_eq!(fault(&svm, 100, Access::Write)?.span.len(), MIDDLE);
            ensure_eq!(populated(&svm, pages(0, HUGE))?, AROUND);
            Ok(())
        })
    }

    #[test]
    fn without_a_limit_all_is_populated() -> Result {
        with_device(|env| {
            mm::map(&pages(0, HUGE), Prot::Write)?;
            let svm = env.svm()?;
            let served = fault_with(&svm, BASE, &Ctx::new(Access::Write))?;
            ensure_eq!(served.span.len(), LARGE);
            ensure_eq!(populated(&svm, pages(0, HUGE))?, HUGE);
            Ok(())
        })
    }
}
