// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of the core.
//!
//! Pure logic is tested in isolation: [`intervals`], [`chunk`], [`flags`], [`layout`], [`segment`],
//! [`blocks`], [`scan`], [`retry`]. The other suites use the core as drivers do, with the memory of
//! a real process and real DRM devices ([`fixture`]): an SVM and its ranges ([`config`],
//! [`dma_device`], [`ranges`], [`removal`], [`notifier`], [`exit`]), the mapping of pages
//! ([`pages`], [`get_pages`], [`devices`], [`iova`], [`evict`]), concurrent changes and failures
//! ([`races`], [`failures`]), userptrs ([`userptr`]), and device memory ([`pagemap_lifetime`], [`pagemap_unbind`],
//! [`pagemap_owner`], [`pagemap_migrate`], [`pagemap_fault`], [`pagemap_evict`], [`pagemap_pages`],
//! [`pagemap_peers`], [`pagemap_dmem`], [`pagemap_mm`], [`pagemap_split`], [`pagemap_failures`],
//! [`pagemap_cached`], [`pagemap_registry`], [`population`]). [`task_work`] tests a wrapper of
//! `rust/` that needs no device.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

#[macro_use]
mod check;

mod blocks;
mod chunk;
mod config;
mod devices;
mod dma_device;
mod evict;
mod exit;
mod failures;
mod fixture;
mod flags;
mod get_pages;
mod intervals;
mod iova;
mod killed;
mod layout;
mod notifier;
mod pagemap_cached;
mod pagemap_dmem;
mod pagemap_evict;
mod pagemap_failures;
mod pagemap_fault;
mod pagemap_lifetime;
mod pagemap_migrate;
mod pagemap_mm;
mod pagemap_owner;
mod pagemap_pages;
mod pagemap_peers;
mod pagemap_registry;
mod pagemap_split;
mod pagemap_unbind;
mod pages;
mod population;
mod races;
mod random;
mod ranges;
mod removal;
mod retry;
mod scan;
mod segment;
mod task_work;
mod userptr;

module! {
    type: GpuSvmTests,
    name: "gpusvm_kunit",
    authors: ["The gpusvm authors"],
    description: "KUnit suites of gpusvm",
    license: "GPL",
    // For `mm_alloc()`.
    imports_ns: ["EXPORTED_FOR_KUNIT_TESTING"],
}

struct GpuSvmTests;

impl kernel::Module for GpuSvmTests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
