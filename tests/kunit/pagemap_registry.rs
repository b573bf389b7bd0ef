// SPDX-License-Identifier: GPL-2.0

//! Tests of the registry of a device's memory regions, which other drivers open.

use crate::fixture::{
    migration::{check, with_vram},
    mm::{self, Prot},
    pages,
    provider::{drm_refs, made, module_refs, same, with_provider, Provider},
    vram::Vram, //
};
use gpusvm::pagemap::{
    hold,
    provider::DeviceMemory,
    registry::{RegionRef, Regions, Registration},
    Cache,
    PagemapRef, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};

/// The number of existing registries.
static REGISTRIES: Atomic<i64> = Atomic::new(0);

/// A device's registry in a test: region 1 is the active pagemap of a cache.
struct Region {
    cache: Arc<Cache>,
}

impl Region {
    fn of(provider: &Provider) -> Result<KBox<dyn Regions>> {
        REGISTRIES.fetch_add(1, Relaxed);
        let cache = provider.cache.clone();
        Ok(KBox::new(Self { cache }, GFP_KERNEL)?)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        REGISTRIES.fetch_add(-1, Relaxed);
    }
}

impl Regions for Region {
    fn open(&self, region: u32) -> Result<PagemapRef> {
        if region != 1 {
            return Err(ENOENT);
        }
        self.cache.get_if_active().ok_or(ENODEV)
    }
}

fn register(provider: &Provider) -> Result<Registration> {
    Registration::new_devm(provider.parent()?, provider.drm(), Region::of(provider)?)
}

#[kunit_tests(gpusvm_pagemap_registry)]
mod tests {
    use super::*;

    #[test]
    fn a_place_leads_to_the_memory_and_keeps_nothing() -> Result {
        with_provider(|_, provider| {
            let (refs, of_drm) = (module_refs(), drm_refs(provider.drm()));
            let registered = register(&provider)?;
            let region = registered.region(1);
            ensure_eq!((module_refs(), drm_refs(provider.drm())), (refs, of_drm));
            let memory = provider.cached()?;
            ensure!(same(&region.open()?, &memory));
            ensure_eq!(registered.region(0).open().err(), Some(ENOENT));
            ensure!(region == registered.region(1) && region != registered.region(0));
            drop(memory);
            hold::flush();
            ensure_eq!((module_refs(), drm_refs(provider.drm())), (refs, of_drm));

            // The end of the registration drops the driver's registry; the region stays valid, but
            // cannot be opened.
            drop(registered);
            ensure_eq!(REGISTRIES.load(Relaxed), 0);
            ensure_eq!(region.open().err(), Some(ENODEV));
            ensure_eq!(made(), 1);
            Ok(())
        })
    }

    #[test]
    fn a_new_offer_is_another_place() -> Result {
        with_provider(|_, provider| {
            let registered = register(&provider)?;
            let before = registered.region(1);
            drop(registered);
            let registered = register(&provider)?;
            let memory = provider.cached()?;
            ensure!(before != registered.region(1));
            ensure_eq!(before.open().err(), Some(ENODEV));
            ensure!(same(&registered.region(1).open()?, &memory));
            Ok(())
        })
    }

    #[test]
    fn a_registration_ends_with_the_binding() -> Result {
        with_provider(|_, provider| {
            let registered = register(&provider)?;
            let region = registered.region(1);
            ensure_eq!(REGISTRIES.load(Relaxed), 1);
            provider.unbind();
            ensure_eq!(REGISTRIES.load(Relaxed), 0);
            ensure_eq!(region.open().err(), Some(ENODEV));
            drop(registered);
            Ok(())
        })
    }

    #[test]
    fn what_is_no_file_of_a_device_is_refused() -> Result {
        with_provider(|_, _| {
            // The test's thread has no files.
            ensure_eq!(RegionRef::from_fd(0, 1).err(), Some(ENOENT));
            ensure_eq!(RegionRef::from_fd(u32::MAX, 1).err(), Some(ENOENT));
            Ok(())
        })
    }

    #[test]
    fn memory_of_any_driver_is_populated() -> Result {
        with_vram(64, |env, pagemap: &DeviceMemory<Vram>| {
            let span = pages(0, 16);
            mm::map(&span, Prot::Write)?;
            mm::fill(&span)?;
            pagemap.pagemap().populate(&env.mm, span.clone(), 0)?;
            ensure_eq!(pagemap.provider().used(), 16);
            check(&span)
        })
    }
}
