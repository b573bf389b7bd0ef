// SPDX-License-Identifier: GPL-2.0

//! The ground that the software GPU of vxe stands on: memory, buses, and glue to DRM.
//!
//! All unsafe code of the driver is here, so that the driver itself has none. Three groups:
//!
//! - memory as hardware would reach it: [`dma_memory`], the system's, by addresses of the DMA API;
//!   [`device_ram`], the device's own; [`fabric`] and [`port`], other devices'; [`bus`], all three
//!   together, as one device sees them; [`faux`], a device to map memory for;
//! - what `kernel::drm` lacks for such a driver: [`ioctl`], [`gem`], [`debugfs`], [`print`],
//!   [`platform_driver`], [`platform_device`];
//! - the structures of the uAPI, in [`bindings`], and facts about the machine, [`sysinfo`].
//!
//! It is a module of its own because vxe and vxe2, which are one object linked twice, share one fabric.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

pub mod bindings;
pub mod bus;
pub mod debugfs;
pub mod device_ram;
pub mod dma_memory;
pub mod fabric;
pub mod faux;
pub mod gem;
mod gem_mmap;
pub mod ioctl;
pub mod platform_device;
pub mod platform_driver;
pub mod port;
pub mod print;
pub mod sysinfo;
mod xe_drm;

module! {
    type: SimModule,
    name: "vxe_sim",
    authors: ["The gpusvm authors"],
    description: "What the virtual Xe devices share",
    license: "GPL",
}

struct SimModule;

impl kernel::Module for SimModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: This is where the module is loaded.
        unsafe {
            fabric::init();
            port::init();
        }
        Ok(Self)
    }
}

impl Drop for SimModule {
    fn drop(&mut self) {
        port::exit();
    }
}
