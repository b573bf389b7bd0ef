// SPDX-License-Identifier: GPL-2.0

//! vxe: a software GPU with the uAPI of xe, for DRM development without the hardware.
//!
//! The driver implements the uAPI of the kernel's xe driver, so programs written for xe run on it:
//!
//! ```text
//!   ioctl            the table of ioctls; the callbacks from C
//!     query bo exec exec_queue_ioctl wait_user_fence vm      the ioctls
//!   driver file      devices and open files
//!   devices configfs the platform devices: made at load, and by users
//!   queues           what a device's work needs, as long as there is any
//!   exec_queue       jobs of a queue, run by the GPU in order
//!   engines sched    engines, and the scheduler that picks the next queue
//!   engine_class     how long queues run
//!   polls            queues that wait for a condition on memory
//!   client           processes, and the limits on their queues and jobs
//!   sync             user fences and their waiters
//!   svm              mirrored ranges: faults and migration
//!   memory           pages of processes in the device's memory
//!   vram region stats objects pat debugfs sysfs
//!   gpu              the hardware: address spaces and an engine; knows no processes
//! ```
//!
//! All code that needs `unsafe` is in `kernel_ext` and [`vxe_sim`].
//!
//! For tests the same object is linked a second time, as the module `vxe2`. Its platform driver and
//! devices carry the module's name, so both modules can be loaded at once.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::{
    prelude::*,
    sync::Arc, //
};
#[cfg(CONFIG_CONFIGFS_FS)]
use vxe_sim::configfs::Subsystem;
use vxe_sim::platform_device;

mod bo;
mod check;
mod client;
#[cfg(CONFIG_CONFIGFS_FS)]
mod configfs;
mod debugfs;
mod devices;
mod driver;
mod engine_class;
mod engines;
mod exec;
mod exec_queue;
mod exec_queue_ioctl;
mod fault;
mod fifo;
mod file;
mod gpu;
mod ioctl;
mod memory;
mod objects;
mod pat;
mod polls;
mod query;
mod queues;
mod region;
mod sched;
mod stats;
mod svm;
mod sync;
mod sysfs;
mod uapi;
mod vm;
mod vram;
mod wait_user_fence;

module! {
    type: VxeModule,
    name: "vxe",
    authors: ["The gpusvm authors"],
    description: "Virtual Xe device",
    license: "GPL",
    params: {
        devices: u8 {
            default: 1,
            description: "Number of devices made at load, up to 8",
        },
        vram_mb: u32 {
            default: 256,
            description: "Memory of each device in MiB, even; 0 for none",
        },
        device_id: u16 {
            default: crate::devices::BATTLEMAGE,
            description: "PCI ID that each device reports",
        },
    },
}

vxe_sim::name_param! {
    DRM_NAME: "drm_name",
    default: "xe",
    description: "Name of the DRM driver, up to 31 letters, digits, - and _"
}

/// The loaded module: its driver and its devices.
#[pin_data]
struct VxeModule {
    // Dropped first: no devices are made through it then.
    #[cfg(CONFIG_CONFIGFS_FS)]
    #[pin]
    _configfs: Subsystem<configfs::Configuration>,
    // Dropped before the driver, so that each device is unbound once.
    _made: KVec<devices::MadeDevice>,
    #[pin]
    driver: kernel::driver::Registration<driver::PlatformDriver>,
    // Dropped last: waits for what is left of devices that are gone.
    devices: Arc<devices::Devices>,
}

impl kernel::InPlaceModule for VxeModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let name = platform_device::module_name(module);
        let settings = || {
            devices::Settings::new(
                module_parameters::vram_mb.value(),
                module_parameters::device_id.value(),
            )
        };
        try_pin_init!(Self {
            devices: devices::Devices::new(name)?,
            driver <- kernel::driver::Registration::new(name, module),
            // The driver is registered by now, so the driver core binds each device at its
            // registration.
            _made: devices.make_all(module_parameters::devices.value(), settings()?)?,
            // Last: a user may make a device as soon as this is registered.
            #[cfg(CONFIG_CONFIGFS_FS)]
            _configfs <- Subsystem::new(name, configfs::Root::new(devices, settings()?)?),
        })
    }
}
