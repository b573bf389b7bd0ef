// SPDX-License-Identifier: GPL-2.0

//! Device-private memory: the pages of a process in the memory of a device.
//!
//! - [`drm_pagemap`]: the refcounted description of a device's memory;
//! - [`hold`]: keeps the device and its driver's module until the last reference to the pagemap is dropped;
//! - [`cache`] and [`shrinker`]: keep unused pagemaps until the system is short of memory;
//! - [`owner`]: groups of devices that reach each other's memory;
//! - [`registry`]: finds a device's memory by an open file of the device;
//! - [`devmem`]: blocks of device memory; `zdd`: the block that a device page belongs to; `detach`: tells a provider
//!   that a block has no folio left;
//! - [`to_device`]: migrates the pages of a process to a device; `fault` and `evict`: migrate them to system memory
//!   when a CPU accesses them, or when the driver needs the memory;
//! - [`dmem`]: charges device memory to the process whose pages are in it;
//! - [`provider`]: the trait that a Rust driver implements, and the types that it gets.

use kernel::prelude::*;

pub mod cache;
mod claims;
mod copies;
mod copy_mapping;
mod detach;
pub mod devmem;
pub mod dmem;
pub mod drm_pagemap;
mod evict;
mod fault;
pub mod hold;
pub mod owner;
pub mod provider;
pub mod registry;
pub mod shrinker;
pub mod to_device;
mod to_ram;
mod zdd;

pub use cache::Cache;
pub use drm_pagemap::{Pagemap, PagemapRef};
pub use owner::{Member, OwnerId, Owners};
pub use provider::DeviceMemoryCache;
pub use shrinker::Shrinker;
pub(crate) use zdd::find_pagemap as of_page;

/// Initializes the locks, work items and queues. Fails with `ENOMEM`.
///
/// # Safety
///
/// Must be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe {
        registry::init();
        hold::init();
        detach::init()?;
        dmem::init().inspect_err(|_| detach::exit())
    }
}

/// Waits until all providers know of all blocks that have been released so far, and until all pagemaps without
/// references are destroyed and their holds released. Sleeps. Must not be called from
/// [`Provider::detached`](provider::Provider::detached), nor from the release of a DRM device.
pub fn flush() {
    detach::flush();
    hold::flush();
}

/// Waits for the work items, and frees the lists. Called once, when the module is unloaded.
pub(crate) fn exit() {
    detach::flush();
    hold::exit();
    detach::exit();
    registry::exit();
    dmem::exit();
}
