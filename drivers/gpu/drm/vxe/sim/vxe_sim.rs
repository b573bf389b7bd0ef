// SPDX-License-Identifier: GPL-2.0

//! The simulated hardware that the software GPU of vxe runs on, and glue to DRM.
//!
//! All unsafe code of the driver is here, so that the driver itself has none. Three groups:
//!
//! - memory as hardware accesses it: [`dma_memory`], system memory at DMA addresses;
//!   [`device_ram`], the device's own; [`fabric`] and [`port`], that of other devices; [`bus`], all
//!   three together, as one device accesses them; [`faux`], a device to map memory for;
//! - support that the kernel crate lacks for such a driver: [`ioctl`], [`gem`], [`fdinfo`],
//!   [`drm_name`], [`debugfs`], [`sysfs`], [`print`], [`platform_driver`], [`platform_device`];
//! - the structures of the uAPI, in [`bindings`], and facts about the machine, [`sysinfo`].
//!
//! It is a module of its own because vxe and vxe2, one object linked twice, share one fabric.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

pub mod bindings;
pub mod bus;
#[cfg(CONFIG_CONFIGFS_FS)]
pub mod configfs;
pub mod debugfs;
pub mod device_ram;
pub mod dma_memory;
pub mod drm_name;
pub mod fabric;
pub mod faux;
pub mod fdinfo;
pub mod gem;
pub mod gem_import;
pub mod gem_list;
mod gem_mmap;
pub mod ioctl;
pub mod platform_device;
pub mod platform_driver;
pub mod port;
pub mod print;
pub mod sysfs;
pub mod sysinfo;
pub mod system_pages;
mod xe_drm;

module! {
    type: SimModule,
    name: "vxe_sim",
    authors: ["The gpusvm authors"],
    description: "Simulated hardware of the virtual Xe devices",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

struct SimModule;

impl kernel::Module for SimModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Called once, at module load.
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
