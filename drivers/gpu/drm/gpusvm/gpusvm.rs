// SPDX-License-Identifier: GPL-2.0

//! GPU shared virtual memory: a GPU uses a process's addresses directly.
//!
//! Pages are mapped for the device when it faults, and unmapped when the CPU changes its mappings.
//! This crate is the core, in three levels. The objects of the first two do not refer to each
//! other; an operation on both, such as removing a range and unmapping its pages under one lock,
//! gets them from its caller:
//!
//! - the *MM level*, [`svm`], [`notifier`] and [`range`](mod@range): an address space, the MMU
//!   interval notifiers that watch it, and the spans that are mirrored;
//! - the *device level*, [`dma_device`], [`pages`] and [`get_pages`]: a device, and its mapping of
//!   the pages of a span;
//! - the *provider level*, [`pagemap`]: the memory of devices, to which pages of ranges can
//!   migrate.
//!
//! A Rust driver implements [`driver::Driver`] and uses a [`driver::Svm`], without unsafe code. For
//! memory of a process at other addresses of the GPU it uses [`userptr`]. The
//! objects of all levels have the layout of the C structures in `drm/drm_gpusvm.h` and
//! `drm/drm_pagemap.h`, see [`layout`].

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

pub mod chunk;
pub mod ctx;
pub mod dma_device;
pub mod driver;
mod find_or_insert;
pub mod flags;
mod garbage;
pub mod get_pages;
pub mod guard;
pub mod layout;
pub mod notifier;
pub mod pagemap;
pub mod pages;
pub mod population;
pub mod range;
pub mod retry;
pub mod scan;
pub mod segment;
pub mod svm;
pub mod userptr;
pub mod view;

pub use ctx::{Access, Ctx};
pub use dma_device::DmaDevice;
pub use driver::{Driver, Invalidation, Range, Svm, WouldBlock};
pub use flags::{PagesFlag, RangeFlag};
pub use guard::{Guard, LockedRange, Stale};
pub use kernel_ext::drm::device::DrmDevice;
pub use retry::{Attempt, Retry};
pub use scan::ScanResult;
pub use segment::Protocol;
pub use svm::Config;
pub use userptr::{LockedUserptr, Userptr, UserptrDriver, Userptrs};
pub use view::{Mapped, View};

module! {
    type: GpuSvmModule,
    name: "gpusvm",
    authors: ["The gpusvm authors"],
    description: "GPU shared virtual memory",
    license: "GPL",
    params: {
        huge_device_pages: u8 {
            default: 0,
            description: "Migrate huge pages to devices without splitting them: not safe on Linux 7.3",
        },
    },
}

struct GpuSvmModule;

impl kernel::Module for GpuSvmModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: This is called once, when the module is loaded.
        unsafe { pagemap::init() }?;
        // SAFETY: The parameter's description says that it is not safe.
        unsafe {
            pagemap::to_device::allow_huge_pages(module_parameters::huge_device_pages.value() != 0)
        };
        Ok(Self)
    }
}

impl Drop for GpuSvmModule {
    fn drop(&mut self) {
        pagemap::exit();
    }
}
