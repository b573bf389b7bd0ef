// SPDX-License-Identifier: GPL-2.0

//! Tests of ranges that are mapped for several devices.

use crate::fixture::{
    dma,
    driver::{fault, look, translate, Mirror},
    mm::{self, Prot},
    pages,
    with_devices,
    BASE,
    MIDDLE, //
};
use gpusvm::{Access, Ctx, Retry, Stale, Svm};
use kernel::{page::PAGE_SIZE, prelude::*};
use kernel_ext::mm::hmm;

fn is_mapped(svm: &Svm<Mirror>) -> bool {
    svm.lock()
        .ranges(0..usize::MAX)
        .all(|range| range.is_mapped())
}

#[kunit_tests(gpusvm_devices)]
mod tests {
    use super::*;

    #[test]
    fn one_walk_serves_all_devices() -> Result {
        for devices in [1, 2, 3] {
            with_devices(devices, |env| {
                let span = pages(0, 16);
                mm::map(&span, Prot::Write)?;
                mm::fill(&span)?;
                let svm = env.svm()?;
                let walks = hmm::walks();
                fault(&svm, BASE, Access::Write)?;
                ensure_eq!(hmm::walks() - walks, 1);
                ensure_eq!(dma::mapped(), (devices * MIDDLE) as i64);
                ensure!(is_mapped(&svm));
                for (index, device) in env.devices.iter().enumerate() {
                    for addr in span.clone().step_by(PAGE_SIZE) {
                        let dma = translate(&svm, index, addr).ok_or(EFAULT)?;
                        ensure_eq!(device.read(dma)?, mm::pattern(addr));
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_view_knows_its_devices() -> Result {
        with_devices(3, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            let mut guard = svm.lock();
            let mut found = guard.find(BASE).ok_or(EINVAL)?;
            let seen = found.commit(|view, _| {
                ensure_eq!(view.devices(), 3);
                ensure_eq!(view.span(), pages(0, 16));
                for (index, device) in env.devices.iter().enumerate() {
                    let drm = view.device(index).ok_or(EINVAL)?;
                    ensure_eq!(drm.as_raw(), device.drm().as_raw());
                    ensure_eq!(look(&view, index)?.bytes, MIDDLE);
                }
                // `segments()` returns the segments of the first device.
                ensure!(view.segments().eq(view.of(0)));
                // An index that is too large.
                ensure!(view.device(3).is_none());
                ensure!(view.of(3).next().is_none());
                Ok(())
            });
            ensure_eq!(seen, Ok(Ok(())));
            Ok(())
        })
    }

    #[test]
    fn all_devices_lose_a_range_at_once() -> Result {
        with_devices(3, |env| {
            mm::map(&pages(0, 16), Prot::Write)?;
            let svm = env.svm()?;
            fault(&svm, BASE, Access::Write)?;
            mm::drop_pages(&pages(2, 1))?;
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(svm.vm().invalidations(), 1);
            ensure!(!is_mapped(&svm));
            // One walk maps the range again for all devices.
            let walks = hmm::walks();
            fault(&svm, BASE, Access::Write)?;
            ensure_eq!(hmm::walks() - walks, 1);
            ensure_eq!(dma::mapped(), 3 * MIDDLE as i64);
            Ok(())
        })
    }

    #[test]
    fn if_one_device_cannot_have_it_none_has() -> Result {
        with_devices(3, |env| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            let svm = env.svm()?;
            let ctx = Ctx::new(Access::Write);
            let mut guard = svm.lock();
            let mut retry = Retry::bounded();
            let attempt = retry.next().ok_or(EINVAL)?;
            let mut found = guard.find_or_insert(BASE, 0..usize::MAX, &ctx, &attempt)?;
            // Mapping the last page for the last device fails.
            let (result, failed) = dma::failing(47, || found.get(&ctx, &attempt));
            ensure!(failed);
            ensure_eq!(result, Err(EFAULT));
            ensure_eq!(dma::mapped(), 0);
            ensure_eq!(found.commit(|_, _| ()), Err(Stale));
            found.get(&ctx, &attempt)?;
            ensure_eq!(dma::mapped(), 3 * MIDDLE as i64);
            Ok(())
        })
    }
}
