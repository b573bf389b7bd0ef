// SPDX-License-Identifier: GPL-2.0

//! A [`Cache`] with the type of a Rust provider.
//!
//! This adds the type only: the locks and states are those of the cache.

use super::{
    super::{
        cache::Cache,
        shrinker::Shrinker, //
    },
    DeviceMemory,
    Provider, //
};
use core::marker::PhantomData;
use kernel::{
    device::{Bound, Device},
    prelude::*,
    sync::Arc, //
};
use kernel_ext::drm::device::DrmDevice;

/// A cache of one device's memory with a provider of type `P`.
///
/// # Invariants
///
/// Only [`get_or_create`](Self::get_or_create) puts a pagemap into the cache.
pub struct DeviceMemoryCache<P: Provider> {
    cache: Arc<Cache>,
    _provider: PhantomData<fn() -> P>,
}

impl<P: Provider> Clone for DeviceMemoryCache<P> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            _provider: PhantomData,
        }
    }
}

impl<P: Provider> DeviceMemoryCache<P> {
    /// Creates an empty cache, which is closed when `dev` is unbound. Fails as [`Cache::new_devm`] does.
    pub fn new_devm(
        dev: &Device<Bound>,
        drm: &DrmDevice,
        shrinker: &Arc<Shrinker>,
    ) -> Result<Self> {
        // INVARIANT: Only the new object has a reference to the cache.
        Ok(Self {
            cache: Cache::new_devm(dev, drm, shrinker)?,
            _provider: PhantomData,
        })
    }

    /// Returns the memory in the cache; if there is none, `make` creates it. Fails as [`Cache::get_or_create`] does.
    pub fn get_or_create(
        &self,
        make: impl FnOnce() -> Result<DeviceMemory<P>>,
    ) -> Result<DeviceMemory<P>> {
        let pagemap = self
            .cache
            .get_or_create(|| make().map(DeviceMemory::into_pagemap))?;
        // SAFETY: By the type invariants, a `make` of this type created the pagemap.
        Ok(unsafe { DeviceMemory::from_pagemap(pagemap) })
    }

    /// Returns the memory, if it is in use. Never sleeps.
    pub fn get_if_active(&self) -> Option<DeviceMemory<P>> {
        let pagemap = self.cache.get_if_active()?;
        // SAFETY: By the type invariants, a `make` of this type created the pagemap.
        Some(unsafe { DeviceMemory::from_pagemap(pagemap) })
    }
}
