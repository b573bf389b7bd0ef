// SPDX-License-Identifier: GPL-2.0

//! Tests of unbinding a provider whose pagemap is unused, in use, or taken by reclaim.

use crate::fixture::{
    failure,
    provider::{
        destroyed,
        devices,
        drm_refs,
        drop_atomically,
        made,
        module_refs,
        pagemap,
        refs_at_destruction,
        same,
        wait,
        with_provider,
        BlockDestroy,
        Provider, //
    },
    syscall::File,
    thread::{sleep_ms, Thread}, //
};
use gpusvm::pagemap::{cache::Lookup, hold};
use kernel::{
    bindings,
    prelude::*,
    str::CString,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, //
    },
};
use kernel_ext::{
    drm::device::DrmRef,
    mm::shrinker::Shrink, //
};

/// The text for the `scan` file of a shrinker in debugfs: no cgroup, node 0, up to 10 objects.
const SCAN: &[u8] = b"0 0 10\n";

/// Makes the shrinker with this name scan, as reclaim does. Fails with `ENOENT` if it is not
/// registered.
fn reclaim(name: &str) -> Result {
    for id in 0..500 {
        let path = CString::try_from_fmt(fmt!("/sys/kernel/debug/shrinker/{name}-{id}/scan"))?;
        if let Ok(mut file) = File::open(&path, bindings::O_WRONLY) {
            return file.write(SCAN);
        }
    }
    Err(ENOENT)
}

#[kunit_tests(gpusvm_pagemap_unbind)]
mod tests {
    use super::*;

    #[test]
    fn unbinding_destroys_what_is_unused() -> Result {
        with_provider(|_, provider| {
            drop(provider.cached()?);
            hold::flush();
            let drm = DrmRef::new(provider.drm())?;
            let (cache, shrinker) = provider.unbind();
            // The pagemap is destroyed before the unbind ends, as the driver may be unloaded
            // afterwards.
            ensure_eq!(destroyed(), 1);
            ensure_eq!(shrinker.count(), 0);
            ensure!(cache.get_if_active().is_none());
            ensure_eq!(cache.lookup().err(), Some(ENODEV));
            ensure_eq!(cache.get_or_create(|| pagemap(&drm)).err(), Some(ENODEV));
            ensure_eq!(made(), 1);
            Ok(())
        })
    }

    /// Row 6: a pagemap that the shrinker took is being destroyed when the device is unbound.
    #[test]
    fn unbinding_waits_for_what_reclaim_took() -> Result {
        with_provider(|env, provider| {
            drop(provider.cached()?);
            let blocked = BlockDestroy::new();
            ensure_eq!(provider.shrinker.scan(1), 1);
            let helper = Thread::spawn(&env.mm, move || {
                sleep_ms(50);
                drop(blocked);
                Ok(())
            })?;
            // Dropping the provider frees the cache and all else of the device.
            drop(provider);
            let then = destroyed();
            helper.join()?;
            ensure_eq!(then, 1);
            Ok(())
        })
    }

    /// Row 7: the last reference is dropped after the cache and its device are gone.
    #[test]
    fn a_pagemap_in_use_outlives_its_device() -> Result {
        with_provider(|_, provider| {
            let one = provider.cached()?;
            let other = one.clone();
            drop(provider);
            let held = (destroyed(), devices(), module_refs());
            drop(one);
            hold::flush();
            let still = (destroyed(), devices(), module_refs());
            drop_atomically(other)?;
            hold::flush();
            ensure_eq!(held, (0, 1, 2));
            ensure_eq!(still, held);
            ensure_eq!((destroyed(), devices(), module_refs()), (1, 0, 1));
            ensure_eq!(refs_at_destruction(), 2);
            Ok(())
        })
    }

    #[test]
    fn a_pagemap_that_is_made_too_late_is_in_no_cache() -> Result {
        with_provider(|_, provider| {
            let pagemap = provider.pagemap()?;
            let cache = provider.cache.clone();
            let Lookup::Vacant(vacant) = cache.lookup()? else {
                return Err(EEXIST);
            };
            drop(provider);
            ensure_eq!(vacant.fill(&pagemap), Err(ENODEV));
            ensure!(cache.get_if_active().is_none());
            drop(pagemap);
            hold::flush();
            ensure_eq!(destroyed(), 1);
            Ok(())
        })
    }

    #[test]
    fn a_pagemap_unused_since_unplug_goes_with_the_device() -> Result {
        with_provider(|_, provider| {
            let pagemap = provider.cached()?;
            provider.unplug();
            drop(pagemap);
            drop(provider);
            ensure_eq!((made(), destroyed()), (1, 1));
            Ok(())
        })
    }

    #[test]
    fn a_device_may_be_bound_again() -> Result {
        with_provider(|_, provider| {
            let old = provider.cached()?;
            drop(provider);
            let provider = Provider::new(0)?;
            let new = provider.cached()?;
            ensure!(!same(&old, &new));
            drop(old);
            ensure!(same(&new, &provider.cached()?));
            drop(new);
            ensure_eq!(provider.shrinker.count(), 1);
            Ok(())
        })
    }

    #[test]
    fn reclaim_calls_until_unbind() -> Result {
        if cfg!(not(CONFIG_SHRINKER_DEBUG)) {
            crate::check::skip("the kernel has no CONFIG_SHRINKER_DEBUG");
            return Ok(());
        }
        with_provider(|_, provider| {
            let name = "gpusvm-pagemap:gpusvm_kunit.0";
            let used = provider.cached()?;
            reclaim(name)?;
            hold::flush();
            let spared = destroyed();
            drop(used);
            reclaim(name)?;
            hold::flush();
            ensure_eq!((spared, destroyed()), (0, 1));
            let kept = provider.cached()?;
            drop(provider);
            ensure_eq!(reclaim(name), Err(ENOENT));
            drop(kept);
            Ok(())
        })
    }

    #[test]
    fn each_allocation_may_fail() -> Result {
        if cfg!(not(CONFIG_FAILSLAB)) {
            crate::check::skip("the kernel has no CONFIG_FAILSLAB");
            return Ok(());
        }
        with_provider(|_, provider| {
            let drm = drm_refs(provider.drm());
            let failed = failure::each_allocation(
                || provider.pagemap(),
                |made| {
                    let error = made.err();
                    ensure!(error.is_none() || error == Some(ENOMEM));
                    hold::flush();
                    ensure_eq!((module_refs(), drm_refs(provider.drm())), (1, drm));
                    Ok(())
                },
            )?;
            ensure!(failed >= 2);
            drop(provider.cached()?);
            hold::flush();
            let failed = failure::each_allocation(
                || provider.cached(),
                |found| {
                    let error = found.err();
                    ensure!(error.is_none() || error == Some(ENOMEM));
                    hold::flush();
                    // The pagemap is still unused.
                    ensure_eq!(provider.shrinker.count(), 1);
                    ensure_eq!((module_refs(), drm_refs(provider.drm())), (1, drm));
                    Ok(())
                },
            )?;
            ensure!(failed >= 1);
            let failed = failure::each_allocation(
                || provider.another_cache(),
                |cache| {
                    let error = cache.err();
                    ensure!(error.is_none() || error == Some(ENOMEM));
                    Ok(())
                },
            )?;
            ensure!(failed >= 2);
            Ok(())
        })
    }

    /// Rows 5, 6 and 7 with concurrency: two threads look up and drop references, a third one
    /// reclaims, and the device is unbound meanwhile.
    #[test]
    fn lookups_race_reclaim_and_unbinding() -> Result {
        for _ in 0..20 {
            with_provider(|env, provider| {
                let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
                let found = Arc::new(Atomic::new(0i64), GFP_KERNEL)?;
                let mut threads = KVec::new();
                for _ in 0..2 {
                    let drm = DrmRef::new(provider.drm())?;
                    let (cache, found) = (provider.cache.clone(), found.clone());
                    let look = move || loop {
                        let one = match cache.get_or_create(|| pagemap(&drm)) {
                            Err(ENODEV) => return Ok(()),
                            one => one?,
                        };
                        // Until the cache is closed, a pagemap in use is the cached one.
                        match cache.get_if_active() {
                            Some(other) => ensure!(same(&one, &other)),
                            None => ensure_eq!(cache.lookup().err(), Some(ENODEV)),
                        }
                        found.fetch_add(1, Relaxed);
                    };
                    threads.push(Thread::spawn(&env.mm, look)?, GFP_KERNEL)?;
                }
                let (shrinker, stopped) = (provider.shrinker.clone(), stop.clone());
                let shrink = move || {
                    while !stopped.load(Acquire) {
                        shrinker.scan(1);
                    }
                    Ok(())
                };
                let shrinking = Thread::spawn(&env.mm, shrink)?;
                // Wait until reclaim has taken some pagemaps, and the threads have made many
                // lookups.
                wait(|| found.load(Relaxed) > 300 && made() > 3)?;
                drop(provider);
                let mut ended = Ok(());
                for thread in threads {
                    ended = ended.and(thread.join());
                }
                // No references are left. A pagemap that is not destroyed still has a hold on the
                // module, since code of the provider will run.
                let holds = i64::from(module_refs()) - 1;
                let left = made() - destroyed();
                stop.store(true, Release);
                shrinking.join()?;
                ended?;
                ensure!(left <= holds);
                Ok(())
            })?;
        }
        Ok(())
    }
}
