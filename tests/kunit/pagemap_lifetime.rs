// SPDX-License-Identifier: GPL-2.0

//! Tests of the lifetimes of pagemaps, and of the cache and the shrinker of unused ones.

use crate::fixture::{
    provider::{
        destroyed,
        devices,
        drm_refs,
        drop_atomically,
        made,
        module_refs,
        refs_at_destruction,
        same,
        with_provider,
        BlockDestroy,
        Provider, //
        Unloading,
    },
    thread::{sleep_ms, Thread}, //
};
use gpusvm::pagemap::{cache::Lookup, hold};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, //
    },
};
use kernel_ext::mm::shrinker::Shrink;

#[kunit_tests(gpusvm_pagemap_hold)]
mod hold_tests {
    use super::*;

    #[test]
    fn a_pagemap_holds_its_device_and_module() -> Result {
        with_provider(|_, provider| {
            let drm = drm_refs(provider.drm());
            let one = provider.pagemap()?;
            let held = (module_refs(), drm_refs(provider.drm()));
            // Further references do not take further holds.
            let other = one.clone();
            let still = (module_refs(), drm_refs(provider.drm()));
            ensure_eq!(one.drm().as_raw(), provider.drm().as_raw());
            drop(one);
            hold::flush();
            let after_one = (destroyed(), module_refs());
            drop(other);
            hold::flush();
            ensure_eq!(held, (2, drm + 1));
            ensure_eq!(still, held);
            ensure_eq!(after_one, (0, 2));
            ensure_eq!(destroyed(), 1);
            ensure_eq!((module_refs(), drm_refs(provider.drm())), (1, drm));
            // Each further pagemap has a hold of its own.
            drop((provider.pagemap()?, provider.pagemap()?));
            hold::flush();
            ensure_eq!((module_refs(), drm_refs(provider.drm())), (1, drm));
            Ok(())
        })
    }

    #[test]
    fn nothing_is_taken_from_a_module_that_goes() -> Result {
        with_provider(|_, provider| {
            let drm = drm_refs(provider.drm());
            let unloading = Unloading::now();
            let error = provider.pagemap().err();
            hold::flush();
            let refs = (module_refs(), drm_refs(provider.drm()));
            drop(unloading);
            ensure_eq!(error, Some(ENODEV));
            ensure_eq!(refs, (0, drm));
            ensure_eq!((made(), destroyed()), (0, 0));
            Ok(())
        })
    }

    #[test]
    fn the_last_reference_may_go_where_nothing_sleeps() -> Result {
        with_provider(|_, provider| {
            let blocked = BlockDestroy::new();
            drop_atomically(provider.pagemap()?)?;
            // The pagemap is not destroyed in atomic context, and holds the module until it is.
            let refs = (destroyed(), module_refs());
            drop(blocked);
            hold::flush();
            ensure_eq!(refs, (0, 2));
            ensure_eq!(destroyed(), 1);
            ensure_eq!(refs_at_destruction(), 2);
            ensure_eq!(module_refs(), 1);
            Ok(())
        })
    }

    #[test]
    fn a_pagemap_may_be_the_last_to_know_its_device() -> Result {
        with_provider(|_, provider| {
            let pagemap = provider.pagemap()?;
            drop(provider);
            let held = (devices(), module_refs());
            let other = pagemap.clone();
            drop(pagemap);
            drop_atomically(other)?;
            hold::flush();
            ensure_eq!(held, (1, 2));
            ensure_eq!((devices(), module_refs()), (0, 1));
            ensure_eq!(refs_at_destruction(), 2);
            Ok(())
        })
    }

    #[test]
    fn what_is_in_no_cache_is_not_kept() -> Result {
        with_provider(|_, provider| {
            let cached = provider.cached()?;
            let other = provider.pagemap()?;
            drop(other);
            hold::flush();
            ensure_eq!(destroyed(), 1);
            ensure_eq!(provider.shrinker.count(), 0);
            drop(cached);
            Ok(())
        })
    }
}

#[kunit_tests(gpusvm_pagemap_cache)]
mod cache_tests {
    use super::*;

    #[test]
    fn an_unused_pagemap_is_found_again() -> Result {
        with_provider(|_, provider| {
            let drm = drm_refs(provider.drm());
            let one = provider.cached()?;
            let raw = one.as_raw();
            let used = (module_refs(), drm_refs(provider.drm()));
            drop_atomically(one)?;
            hold::flush();
            // The unused pagemap holds no references, and exists.
            let unused = (module_refs(), drm_refs(provider.drm()));
            ensure_eq!(provider.shrinker.count(), 1);
            ensure!(provider.cache.get_if_active().is_none());
            for _ in 0..3 {
                let again = provider.cached()?;
                ensure_eq!(again.as_raw(), raw);
                ensure_eq!(provider.shrinker.count(), 0);
                ensure_eq!((module_refs(), drm_refs(provider.drm())), used);
                drop(again);
                hold::flush();
                ensure_eq!((module_refs(), drm_refs(provider.drm())), unused);
            }
            ensure_eq!(used, (2, drm + 1));
            ensure_eq!(unused, (1, drm));
            ensure_eq!((made(), destroyed()), (1, 0));
            Ok(())
        })
    }

    #[test]
    fn a_pagemap_in_use_is_shared() -> Result {
        with_provider(|_, provider| {
            ensure!(provider.cache.get_if_active().is_none());
            let one = provider.cached()?;
            let other = provider.cached()?;
            let third = provider.cache.get_if_active().ok_or(ENOENT)?;
            ensure!(same(&one, &other) && same(&one, &third));
            ensure_eq!((made(), module_refs()), (1, 2));
            ensure_eq!(provider.shrinker.count(), 0);
            // Reclaim finds no unused pagemap.
            ensure_eq!(provider.shrinker.scan(10), 0);
            drop((one, other));
            ensure_eq!(provider.shrinker.count(), 0);
            drop(third);
            ensure_eq!(provider.shrinker.count(), 1);
            Ok(())
        })
    }

    #[test]
    fn reclaim_has_what_is_unused() -> Result {
        with_provider(|_, provider| {
            let one = provider.cached()?;
            let raw = one.as_raw();
            drop(one);
            ensure_eq!(provider.shrinker.scan(0), 0);
            ensure_eq!(provider.shrinker.count(), 1);
            ensure_eq!(provider.shrinker.scan(10), 1);
            ensure_eq!(provider.shrinker.count(), 0);
            ensure_eq!(provider.shrinker.scan(10), 0);
            hold::flush();
            ensure_eq!((made(), destroyed()), (1, 1));
            let next = provider.cached()?;
            ensure_eq!(made(), 2);
            // The new pagemap is the cached one.
            ensure!(same(&next, &provider.cached()?));
            ensure!(next.as_raw() != raw || destroyed() == 1);
            Ok(())
        })
    }

    /// Row 5 of the C code's weaknesses, step by step: reclaim takes the unused pagemap out of the
    /// cache; before it is destroyed, a lookup creates another one.
    #[test]
    fn a_late_shrinker_loses_no_pagemap_in_use() -> Result {
        with_provider(|_, provider| {
            drop(provider.cached()?);
            let blocked = BlockDestroy::busy(&provider)?;
            let before = (made(), destroyed());
            ensure_eq!(provider.shrinker.scan(1), 1);
            // The old one is neither destroyed nor found.
            ensure!(provider.cache.get_if_active().is_none());
            let new = provider.cached()?;
            ensure_eq!((made(), destroyed()), (before.0 + 1, before.1));
            drop(blocked);
            hold::flush();
            ensure_eq!(destroyed(), before.1 + 2);
            let active = provider.cache.get_if_active().ok_or(ENOENT)?;
            ensure!(same(&new, &active));
            ensure!(same(&new, &provider.cached()?));
            ensure_eq!(made(), before.0 + 1);
            Ok(())
        })
    }

    /// Row 5 again; the last reference to the new pagemap is dropped before the old one is
    /// destroyed.
    #[test]
    fn a_late_shrinker_has_only_what_it_took() -> Result {
        with_provider(|_, provider| {
            drop(provider.cached()?);
            let blocked = BlockDestroy::busy(&provider)?;
            ensure_eq!(provider.shrinker.scan(1), 1);
            let new = provider.cached()?;
            let raw = new.as_raw();
            drop(new);
            ensure_eq!(provider.shrinker.count(), 1);
            let before = destroyed();
            drop(blocked);
            hold::flush();
            ensure_eq!(destroyed(), before + 2);
            ensure_eq!(provider.shrinker.count(), 1);
            ensure_eq!(provider.cached()?.as_raw(), raw);
            Ok(())
        })
    }

    #[test]
    fn a_lookup_waits_for_the_one_before() -> Result {
        with_provider(|env, provider| {
            let Lookup::Vacant(vacant) = provider.cache.lookup()? else {
                return Err(EINVAL);
            };
            let found = Arc::new(Atomic::new(false), GFP_KERNEL)?;
            let (cache, is_found) = (provider.cache.clone(), found.clone());
            let other = Thread::spawn(&env.mm, move || {
                let _pagemap = cache.get_or_create(|| Err(EINVAL))?;
                is_found.store(true, Release);
                Ok(())
            })?;
            sleep_ms(20);
            let early = found.load(Acquire);
            let pagemap = provider.pagemap()?;
            vacant.fill(&pagemap)?;
            other.join()?;
            ensure!(!early);
            ensure!(found.load(Acquire));
            Ok(())
        })
    }

    #[test]
    fn only_a_new_pagemap_of_the_device_fits() -> Result {
        with_provider(|_, provider| {
            let stranger = Provider::new(1)?;
            let used = provider.cached()?;
            let cache = provider.another_cache()?;
            for (unfit, raw) in [
                (&used, used.as_raw()),
                (&stranger.pagemap()?, used.as_raw()),
            ] {
                let Lookup::Vacant(vacant) = cache.lookup()? else {
                    return Err(EEXIST);
                };
                ensure_eq!(vacant.fill(unfit), Err(EINVAL));
                ensure!(cache.get_if_active().is_none());
                // The other cache is unchanged.
                ensure_eq!(provider.cached()?.as_raw(), raw);
            }
            // A device may have several caches.
            let other = cache.get_or_create(|| provider.pagemap())?;
            ensure!(!same(&used, &other));
            drop((used, other));
            ensure_eq!(provider.shrinker.count(), 2);
            ensure_eq!(provider.shrinker.scan(1), 1);
            ensure_eq!(provider.shrinker.count(), 1);
            Ok(())
        })
    }

    #[test]
    fn an_error_of_the_maker_leaves_the_cache_empty() -> Result {
        with_provider(|_, provider| {
            ensure_eq!(provider.cache.get_or_create(|| Err(EIO)).err(), Some(EIO));
            ensure!(provider.cache.get_if_active().is_none());
            drop(provider.cached()?);
            Ok(())
        })
    }

    /// Row 8, in the cache: an unused pagemap stays unused while its module is being unloaded.
    #[test]
    fn a_lookup_takes_nothing_from_a_module_that_goes() -> Result {
        with_provider(|_, provider| {
            drop(provider.cached()?);
            hold::flush();
            let drm = drm_refs(provider.drm());
            let unloading = Unloading::now();
            let error = provider.cached().err();
            hold::flush();
            let after = (
                module_refs(),
                drm_refs(provider.drm()),
                provider.shrinker.count(),
            );
            drop(unloading);
            ensure_eq!(error, Some(ENODEV));
            ensure_eq!(after, (0, drm, 1));
            drop(provider.cached()?);
            ensure_eq!((made(), destroyed()), (1, 0));
            Ok(())
        })
    }

    #[test]
    fn nothing_is_found_after_unplug() -> Result {
        with_provider(|_, provider| {
            let pagemap = provider.cached()?;
            provider.unplug();
            ensure_eq!(provider.cached().err(), Some(ENODEV));
            drop(pagemap);
            ensure_eq!(provider.cached().err(), Some(ENODEV));
            drop(provider);
            ensure_eq!((made(), destroyed()), (1, 1));
            Ok(())
        })
    }
}
