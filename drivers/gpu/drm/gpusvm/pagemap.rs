// SPDX-License-Identifier: GPL-2.0

//! Providers: devices whose own memory ranges may live in, as device-private pages.
//!
//! - [`drm_pagemap`]: a device's memory as others see it, refcounted;
//! - [`hold`]: what keeps the device and its driver's module until the last reference is gone;
//! - [`cache`] and [`shrinker`]: pagemaps that nobody uses now, kept until memory is short;
//! - [`owner`]: groups of devices that reach each other's memory;
//! - [`registry`]: how a device's memory is found by an open file of the device;
//! - [`devmem`]: allocations of device memory; `zdd`: which of them a device page is part of;
//! - [`to_device`]: moving a process's pages there; `fault` and `evict`: bringing them back, when a
//!   CPU touches them, and when the memory is needed;
//! - [`dmem`]: charging device memory to the process whose pages live in it;
//! - [`provider`]: what a Rust driver implements for that, and gets.

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

/// Makes the work items ready. Fails with `ENOMEM`.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() -> Result {
    // SAFETY: By this function's requirements.
    unsafe {
        registry::init();
        hold::init();
        detach::init()?;
        dmem::init().inspect_err(|_| detach::exit())
    }
}

/// Waits until providers were told of all allocations that no page is in any more, and pagemaps
/// without references are gone, with what they held. Sleeps; not to be called by a provider that is
/// being told, nor by the end of a device.
pub fn flush() {
    detach::flush();
    hold::flush();
}

/// Waits for the work items. To be called once, when the module is unloaded.
pub(crate) fn exit() {
    detach::flush();
    hold::exit();
    detach::exit();
    registry::exit();
    dmem::exit();
}
