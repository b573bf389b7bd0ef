// SPDX-License-Identifier: GPL-2.0

//! Tests of charging device memory, as far as a kernel thread can do it.
//!
//! The program `vxe_dmem` tests the charges and limits of processes.

use crate::fixture::{mm, use_mm::with_mm};
use gpusvm::pagemap::dmem;
use kernel::{device::Bound, faux, page::PAGE_SIZE, prelude::*, sync::Arc};
use kernel_ext::cgroup::dmem::{
    Charge,
    Chooser,
    Pool,
    Reclaim,
    Refused,
    Region,
    Registration,
    Want, //
};

/// A region without reclaimable memory.
struct Nothing;

impl Reclaim for Nothing {
    fn reclaim(&self, _limit: &Pool, _bytes: u64) -> Result<bool> {
        Ok(false)
    }
}

fn device() -> Result<faux::Registration> {
    faux::Registration::new(c"gpusvm_kunit", None)
}

fn register(device: &faux::Registration) -> Result<Registration<Nothing>> {
    let device: &faux::Device<Bound> = device.as_ref();
    Registration::new_devm(device.as_ref(), c"dmem", 1 << 20, Nothing)
}

/// Charges the cgroup of this thread, which is the root and has no limit.
fn charge(region: &Region, bytes: u64) -> Result<Charge> {
    region.try_charge(bytes).map_err(error)
}

fn error(refused: Refused) -> Error {
    match refused {
        Refused::Limit(_) => ENOSPC,
        Refused::Failed(e) => e,
    }
}

#[kunit_tests(gpusvm_pagemap_dmem)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_stays_so_when_the_device_is_gone() -> Result {
        let device = device()?;
        let registration = register(&device)?;
        let region = registration.region().clone();
        let before = charge(&region, 4096)?;
        let longer = charge(&region, 8192)?;
        drop(before);
        drop(registration);
        ensure!(matches!(charge(&region, 4096), Err(e) if e == ENODEV));
        // The name may be registered again while a charge of the first region exists.
        let again = register(&device)?;
        let other = charge(again.region(), 4096)?;
        drop(longer);
        drop(other);
        Ok(())
    }

    #[test]
    fn a_registration_ends_with_the_binding() -> Result {
        let device = device()?;
        let registration = register(&device)?;
        let charged = charge(registration.region(), 4096)?;
        drop(device);
        ensure!(matches!(charge(registration.region(), 4096), Err(e) if e == ENODEV));
        drop(registration);
        drop(charged);
        Ok(())
    }

    #[test]
    fn of_ones_own_all_may_be_taken() -> Result {
        let device = device()?;
        let registration = register(&device)?;
        let (mine, wanted) = (
            charge(registration.region(), 4096)?,
            charge(registration.region(), 4096)?,
        );
        let mut chooser = Chooser::new(Want::Room(&wanted));
        ensure!(chooser.may_take(&mine));
        // No victim was spared.
        ensure!(!chooser.try_harder());
        ensure!(Chooser::new(Want::All).may_take(&mine));
        Ok(())
    }

    #[test]
    fn any_part_of_a_charge_can_be_taken() -> Result {
        let device = device()?;
        let registration = register(&device)?;
        let page = PAGE_SIZE as u64;
        for pages in [1, 2, 3, 7, 8, 9, 100, 255] {
            for part in 0..=pages {
                let all = registration.region().try_charge_pages(pages);
                let mut all = all.map_err(error)?;
                let (whole, wanted) = (u64::from(pages) * page, u64::from(part) * page);
                ensure_eq!(all.bytes(), whole);
                let taken = all.take(wanted).ok_or(EINVAL)?;
                ensure_eq!((taken.bytes(), all.bytes()), (wanted, whole - wanted));
                // It is not possible to take more than is charged, or a part of a page.
                ensure!(all.take(whole - wanted + page).is_none());
                ensure!(all.take(page / 2).is_none());
                ensure_eq!(all.bytes(), whole - wanted);
                let rest = all.take(whole - wanted).ok_or(EINVAL)?;
                ensure_eq!((rest.bytes(), all.bytes()), (whole - wanted, 0));
            }
        }
        Ok(())
    }

    #[test]
    fn who_did_not_enroll_is_not_charged() -> Result {
        let device = device()?;
        let registration = register(&device)?;
        // A kernel thread belongs to no process whose cgroup could be charged.
        ensure!(dmem::register().is_err_and(|e| e == EINVAL));
        let mm = mm::process()?;
        ensure!(dmem::pid(&mm).is_none());
        let region: &Arc<Region> = registration.region();
        ensure!(matches!(
            dmem::charge(&mm, region, 1).map_err(error),
            Err(e) if e == ESRCH
        ));
        // Using the address space of a process does not change that.
        with_mm(&mm, || {
            ensure!(dmem::register().is_err_and(|e| e == EINVAL));
            Ok(())
        })?
    }
}
