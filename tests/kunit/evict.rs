// SPDX-License-Identifier: GPL-2.0

//! Tests of the scan of a range, and of its eviction to system memory.

use crate::fixture::{
    driver::Mirror,
    mm::{self, Prot},
    pages,
    with_device,
    BASE, //
};
use core::{ops::Range, ptr};
use gpusvm::{Access, Ctx, LockedRange, Retry, ScanResult, Svm};
use kernel::prelude::*;
use kernel_ext::mm::hmm::{
    self,
    HmmRequest,
    Walk, //
};

/// Runs `f` with the range of 16 pages at [`BASE`], which is created if there is none.
fn with_range<R>(
    svm: &Svm<Mirror>,
    f: impl FnOnce(LockedRange<'_, '_, Mirror>, &mut gpusvm::Attempt<'_>) -> Result<R>,
) -> Result<R> {
    let mut guard = svm.lock();
    let mut retry = Retry::bounded();
    let mut attempt = retry.next().ok_or(EINVAL)?;
    let ctx = Ctx::new(Access::Read);
    let found = match guard.has_mapping(0..usize::MAX) {
        true => guard.find(BASE).ok_or(EINVAL)?,
        false => guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt)?,
    };
    ensure_eq!(found.span(), pages(0, 16));
    f(found, &mut attempt)
}

/// Returns whether the CPU maps all pages of `span`, which must be in the interval of the first
/// range's notifier.
fn are_present(svm: &Svm<Mirror>, span: Range<usize>) -> Result<bool> {
    let _guard = svm.lock();
    let mut walk = Walk::new();
    // SAFETY: The SVM lock is held, so that the notifier exists; the process has users.
    unsafe {
        let notifier = svm.core().notifier_find(span.clone()).ok_or(EINVAL)?;
        let mmu = notifier.as_ref().mmu();
        walk.fault(mmu, &span, HmmRequest::Snapshot, ptr::null_mut(), 100)?;
    }
    Ok(walk.pfns().iter().all(|pfn| pfn.is_valid()))
}

#[kunit_tests(gpusvm_evict)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_faults_nothing_in() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let scan = || with_range(&svm, |mut found, attempt| Ok(found.scan(attempt)));
            ensure_eq!(scan()?, ScanResult::Unpopulated);
            mm::fill(&pages(0, 15))?;
            ensure_eq!(scan()?, ScanResult::Unpopulated);
            ensure!(!are_present(&svm, pages(15, 1))?);
            mm::fill(&pages(15, 1))?;
            ensure_eq!(scan()?, ScanResult::System);
            mm::drop_pages(&pages(0, 1))?;
            ensure_eq!(scan()?, ScanResult::Unpopulated);
            mm::unmap(&pages(0, 16))?;
            ensure_eq!(scan()?, ScanResult::Unpopulated);
            Ok(())
        })
    }

    #[test]
    fn what_a_scan_saw_is_mapped_without_another_walk() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            let walks = hmm::walks();
            with_range(&svm, |mut found, attempt| {
                ensure_eq!(found.scan(attempt), ScanResult::System);
                found.get(&Ctx::new(Access::Write), attempt)
            })?;
            ensure_eq!(hmm::walks() - walks, 1);
            Ok(())
        })
    }

    #[test]
    fn eviction_passes_over_holes() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            with_range(&svm, |_, _| Ok(()))?;
            // Unmap the first page, one in the middle, and two adjacent ones.
            for page in [0, 5, 9, 10] {
                mm::unmap(&pages(page, 1))?;
            }
            let behind = [pages(1, 4), pages(6, 3), pages(11, 5)];
            for part in &behind {
                ensure!(!are_present(&svm, part.clone())?);
            }
            with_range(&svm, |found, attempt| found.evict(attempt))?;
            for part in &behind {
                ensure!(are_present(&svm, part.clone())?);
            }
            Ok(())
        })
    }

    #[test]
    fn eviction_passes_over_what_cannot_be_had() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            with_range(&svm, |_, _| Ok(()))?;
            mm::protect(&pages(4, 2), Prot::None)?;
            let evicted = with_range(&svm, |found, attempt| found.evict(attempt));
            // The eviction fails, but only after it has faulted in the pages behind.
            ensure_eq!(evicted, Err(EFAULT));
            ensure!(are_present(&svm, pages(0, 4))?);
            ensure!(are_present(&svm, pages(6, 10))?);
            Ok(())
        })
    }

    #[test]
    fn nothing_is_left_to_evict() -> Result {
        with_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            with_range(&svm, |_, _| Ok(()))?;
            mm::unmap(&pages(0, 16))?;
            let walks = hmm::walks();
            with_range(&svm, |found, attempt| found.evict(attempt))?;
            ensure_eq!(hmm::walks(), walks);
            Ok(())
        })
    }
}
