// SPDX-License-Identifier: GPL-2.0

//! Tests of a cache for the memory of a provider, with pages of a process in the memory and
//! without.

use crate::fixture::{
    mm::{self, Prot},
    pages,
    provider::wait,
    vram::{alive, vram, Vram},
    with_device,
    Env, //
};
use core::ops::Range;
use gpusvm::pagemap::{hold, provider::DeviceMemory, DeviceMemoryCache, Shrinker};
use kernel::{prelude::*, sync::Arc};
use kernel_ext::mm::shrinker::Shrink;

const PAGES: usize = 64;

/// A driver's cache of its memory.
struct Cached<'a> {
    env: &'a Env,
    shrinker: Arc<Shrinker>,
    cache: DeviceMemoryCache<Vram>,
}

impl Cached<'_> {
    /// Returns the memory; creates it if there is none.
    fn get(&self) -> Result<DeviceMemory<Vram>> {
        self.cache.get_or_create(|| vram(self.env.device(), PAGES))
    }

    /// Maps and fills pages of the process, and migrates them to the memory.
    fn fill(&self, span: &Range<usize>) -> Result {
        mm::map(span, Prot::Write)?;
        mm::fill(span)?;
        let moved = self.get()?.populate(&self.env.mm, span.clone(), 0)?;
        ensure_eq!(moved.moved, span.len());
        Ok(())
    }

    /// Waits until the memory is unused.
    fn wait_unused(&self) -> Result {
        wait(|| self.cache.get_if_active().is_none())
    }
}

/// Runs a test with a cache, and checks that all memory is freed when the device is unbound.
fn with_cache(test: impl FnOnce(&Cached<'_>) -> Result) -> Result {
    with_device(|env| {
        let (dev, drm) = (env.device().parent()?, env.device().drm());
        let shrinker = Shrinker::new_devm(dev, drm)?;
        let cached = Cached {
            env,
            cache: DeviceMemoryCache::new_devm(dev, drm, &shrinker)?,
            shrinker,
        };
        let result = test(&cached);
        mm::unmap(&pages(0, PAGES))?;
        result?;
        cached.wait_unused()
    })?;
    ensure_eq!(alive(), (0, 0));
    Ok(())
}

fn check(span: &Range<usize>) -> Result {
    for addr in span.clone().step_by(kernel::page::PAGE_SIZE) {
        ensure_eq!(mm::read(addr)?, mm::pattern(addr));
    }
    Ok(())
}

#[kunit_tests(gpusvm_pagemap_cached)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_it_keep_the_memory_in_use() -> Result {
        with_cache(|cached| {
            let span = pages(0, 16);
            cached.fill(&span)?;
            // Only the pages hold references. Reclaim finds nothing to free.
            ensure_eq!(cached.shrinker.count(), 0);
            ensure_eq!(cached.shrinker.scan(10), 0);
            let pagemap = cached.cache.get_if_active().ok_or(ENOENT)?;
            ensure_eq!(pagemap.provider().used(), 16);
            drop(pagemap);
            // The CPU's faults migrate the pages back; the last page drops the last reference.
            check(&span)?;
            cached.wait_unused()?;
            ensure_eq!(cached.shrinker.count(), 1);
            ensure_eq!(alive(), (1, 0));
            Ok(())
        })
    }

    #[test]
    fn memory_is_used_again_as_it_is() -> Result {
        with_cache(|cached| {
            let span = pages(0, 16);
            for _ in 0..3 {
                cached.fill(&span)?;
                let frames = cached.get()?.pagemap().dev_pagemap();
                check(&span)?;
                cached.wait_unused()?;
                let again = cached.get()?;
                ensure_eq!(again.pagemap().dev_pagemap(), frames);
                ensure_eq!(again.provider().used(), 0);
                ensure_eq!(alive(), (1, 0));
            }
            Ok(())
        })
    }

    #[test]
    fn reclaim_frees_unused_memory() -> Result {
        with_cache(|cached| {
            let span = pages(0, 16);
            cached.fill(&span)?;
            check(&span)?;
            cached.wait_unused()?;
            ensure_eq!(cached.shrinker.scan(1), 1);
            hold::flush();
            ensure_eq!(alive(), (0, 0));
            // The next lookup creates the memory again.
            cached.fill(&span)?;
            ensure_eq!(alive(), (1, 1));
            check(&span)
        })
    }

    #[test]
    fn what_is_evicted_leaves_the_memory_unused() -> Result {
        with_cache(|cached| {
            let span = pages(0, 16);
            cached.fill(&span)?;
            let pagemap = cached.get()?;
            for handle in pagemap.provider().handles()? {
                handle.evict()?;
            }
            drop(pagemap);
            cached.wait_unused()?;
            ensure_eq!(cached.shrinker.count(), 1);
            check(&span)
        })
    }
}
