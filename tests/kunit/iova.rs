// SPDX-License-Identifier: GPL-2.0

//! Tests with a device behind an IOMMU: a range is linked into one reservation of IOVA space.

use crate::fixture::{
    dma,
    driver::{bind, fault, look, translate, Mirror},
    mm::{self, Prot},
    pages,
    with_iommu_device,
    BASE,
    LARGE,
    MIDDLE, //
};
use core::{cell::Cell, ops::Range};
use gpusvm::{Access, Ctx, Retry, Stale, Svm};
use kernel::{
    prelude::*, //
};
use kernel_ext::dma::Call;

const ALL: Range<usize> = 0..usize::MAX;

/// Returns whether the device addresses of the range at [`BASE`] are contiguous.
fn is_one_piece(svm: &Svm<Mirror>) -> Result<bool> {
    let mut guard = svm.lock();
    let mut found = guard.find(BASE).ok_or(EINVAL)?;
    found
        .commit(|view, _| {
            let first = view.segments().next().ok_or(EINVAL)?;
            let offset = |segment: gpusvm::Mapped<'_>| segment.addr.wrapping_sub(segment.va as u64);
            Ok(view
                .segments()
                .all(|segment| offset(segment) == offset(first)))
        })
        .map_err(|Stale| EAGAIN)?
}

/// Runs `f`, and counts its calls of a kind.
fn count<R>(kind: Call, f: impl FnOnce() -> R) -> (R, usize) {
    let calls = Cell::new(0);
    let see = |call| {
        calls.set(calls.get() + usize::from(call == kind));
        Ok(())
    };
    let result = dma::watched(&see, f);
    (result, calls.get())
}

#[kunit_tests(gpusvm_iova)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_piece_of_the_devices_addresses() -> Result {
        with_iommu_device(|env| {
            mm::map(&pages(0, 512), Prot::Write)?;
            mm::fill(&pages(0, 512))?;
            let svm = env.svm()?;
            let (served, links) = count(Call::Link, || fault(&svm, BASE, Access::Write));
            let served = served?;
            ensure_eq!(served.seen.bytes, LARGE);
            ensure_eq!(links, served.seen.segments);
            ensure!(is_one_piece(&svm)?);
            // One call unlinks all pages, as all of them are writable.
            let ((), unlinks) = count(Call::Unlink, || svm.lock().invalidate(ALL));
            ensure_eq!(unlinks, 1);
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn pages_of_both_kinds_are_unlinked_as_they_were_linked() -> Result {
        with_iommu_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            // Three writable pages among read-only ones.
            for page in [0, 7, 8] {
                mm::fill(&pages(page, 1))?;
            }
            let svm = env.svm()?;
            let served = fault(&svm, BASE, Access::Read)?;
            ensure_eq!(served.seen.writable, 3);
            ensure!(is_one_piece(&svm)?);
            let ((), unlinks) = count(Call::Unlink, || svm.lock().invalidate(ALL));
            ensure_eq!(unlinks, 4);
            ensure_eq!(dma::mapped(), 0);
            Ok(())
        })
    }

    #[test]
    fn the_same_addresses_are_mapped_again_and_again() -> Result {
        with_iommu_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let mut places = KVec::new();
            for _ in 0..50 {
                fault(&svm, BASE, Access::Write)?;
                ensure_eq!(dma::mapped(), MIDDLE as i64);
                let place = translate(&svm, 0, BASE).ok_or(EFAULT)?;
                if !places.contains(&place) {
                    places.push(place, GFP_KERNEL)?;
                }
                mm::drop_pages(&pages(3, 1))?;
                ensure_eq!(dma::mapped(), 0);
            }
            // The reservation was freed each time; the IOVA caches of the CPUs keep some addresses.
            ensure!(places.len() < 25);
            Ok(())
        })
    }

    #[test]
    fn each_link_may_fail() -> Result {
        with_iommu_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            mm::fill(&pages(0, 16))?;
            let svm = env.svm()?;
            let ctx = Ctx::new(Access::Write);
            for nth in 0..17 {
                let mut guard = svm.lock();
                let mut retry = Retry::bounded();
                let attempt = retry.next().ok_or(EINVAL)?;
                let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
                let (result, failed) = dma::failing(nth, || found.get(&ctx, &attempt));
                ensure_eq!(failed, nth < 16);
                if failed {
                    ensure_eq!(result, Err(EFAULT));
                    ensure_eq!(found.commit(|_, _| ()), Err(Stale));
                    ensure_eq!(dma::mapped(), 0);
                } else {
                    result?;
                    ensure!(bind(&mut found).is_ok());
                }
            }
            Ok(())
        })
    }

    #[test]
    fn making_the_links_visible_may_fail() -> Result {
        with_iommu_device(|env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            let ctx = Ctx::new(Access::Write);
            let mut guard = svm.lock();
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, ALL, &ctx, &attempt)?;
            let see = |call| match call {
                Call::Sync => Err(ENOMEM),
                _ => Ok(()),
            };
            let result = dma::watched(&see, || found.get(&ctx, &attempt));
            ensure_eq!(result, Err(ENOMEM));
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(found.commit(|_, _| ()), Err(Stale));
            found.get(&ctx, &attempt)?;
            let seen = found
                .commit(|view, _| look(&view, 0))
                .map_err(|_| EAGAIN)??;
            ensure_eq!(seen.bytes, MIDDLE);
            Ok(())
        })
    }
}
