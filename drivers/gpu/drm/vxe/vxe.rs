// SPDX-License-Identifier: GPL-2.0

//! vxe: a software GPU with the uAPI of xe, for DRM development without the hardware.
//!
//! The driver implements the uAPI of the kernel's xe driver, so programs written for xe run on it:
//!
//! ```text
//!   ioctl            the table of ioctls; the callbacks from C
//!     query bo exec exec_queue_ioctl wait_user_fence vm      the ioctls
//!   driver file      devices and open files
//!   exec_queue       jobs of a queue, run by the GPU in order
//!   engines sched    engines, and the scheduler that picks the next queue
//!   polls            queues that wait for a condition on memory
//!   client           processes, and the limits on their queues and jobs
//!   sync             user fences and their waiters
//!   svm              mirrored ranges: faults and migration
//!   memory           pages of processes in the device's memory
//!   vram region stats objects debugfs
//!   gpu              the hardware: address spaces and an engine; knows no processes
//! ```
//!
//! All code that needs `unsafe` is in `kernel_ext` and [`vxe_sim`].
//!
//! For tests the same object is linked a second time, as the module `vxe2`. Its platform driver and
//! devices carry the module's name, so both modules can be loaded at once.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;
use vxe_sim::{
    platform_device,
    sysinfo, //
};

mod bo;
mod check;
mod client;
mod debugfs;
mod driver;
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
mod polls;
mod query;
mod region;
mod sched;
mod stats;
mod svm;
mod sync;
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
            description: "Number of devices, 1 to 8",
        },
        vram_mb: u32 {
            default: 256,
            description: "Memory of each device in MiB, even; 0 for none",
        },
    },
}

/// The most devices of one module.
const MAX_DEVICES: u8 = 8;

/// The most memory of a device, in MiB.
const MAX_VRAM_MB: u32 = 1 << 16;

/// The loaded module: its driver and its devices.
#[pin_data]
struct VxeModule {
    // Dropped before the driver, so that each device is unbound once.
    _devices: KVec<platform_device::Registration<driver::PlatformData>>,
    #[pin]
    driver: kernel::driver::Registration<driver::PlatformDriver>,
}

impl kernel::InPlaceModule for VxeModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            driver <- kernel::driver::Registration::new(platform_device::module_name(module), module),
            // The driver is registered by now, so the driver core binds each device at its
            // registration.
            _devices: register_devices(
                platform_device::module_name(module),
                module_parameters::devices.value(),
                module_parameters::vram_mb.value(),
            )?,
        })
    }
}

/// Registers `count` platform devices for the driver called `name`, each with `vram_mb` MiB of
/// memory.
///
/// Fails with `EINVAL` for a bad number of devices or size, `ENOMEM` if the machine has less RAM
/// than the devices together.
fn register_devices(
    name: &CStr,
    count: u8,
    vram_mb: u32,
) -> Result<KVec<platform_device::Registration<driver::PlatformData>>> {
    if !(1..=MAX_DEVICES).contains(&count) {
        pr_err!("there can be 1 to {MAX_DEVICES} devices, not {count}\n");
        return Err(EINVAL);
    }
    if vram_mb > MAX_VRAM_MB || vram_mb % 2 != 0 {
        pr_err!(
            "a device can have up to {MAX_VRAM_MB} MiB of memory, in large pages, not {vram_mb}\n"
        );
        return Err(EINVAL);
    }
    let vram = u64::from(vram_mb) << 20;
    let (all, ram) = (vram * u64::from(count), sysinfo::total_ram());
    if all > ram {
        // RAM backs the devices' memory. A program that fills it would take all memory of the
        // machine.
        pr_err!(
            "{count} devices with {vram_mb} MiB of memory each: the machine has only {} MiB\n",
            ram >> 20
        );
        return Err(ENOMEM);
    }
    let mut devices = KVec::new();
    for index in 0..count {
        devices.push(
            driver::PlatformData::register(name, index.into(), vram)?,
            GFP_KERNEL,
        )?;
    }
    Ok(devices)
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_module)]
mod tests {
    use super::*;

    /// More memory than the machine has is refused before any device is registered; so is a size
    /// that is not a multiple of the large page.
    #[test]
    fn memory_is_the_machines() {
        let all = u64::from(MAX_DEVICES) * (u64::from(MAX_VRAM_MB) << 20);
        let refused = |count, vram_mb| register_devices(c"vxe-none", count, vram_mb).err();
        if all > sysinfo::total_ram() {
            assert_eq!(refused(MAX_DEVICES, MAX_VRAM_MB), Some(ENOMEM));
        }
        assert_eq!(refused(1, MAX_VRAM_MB + 2), Some(EINVAL));
        assert_eq!(refused(1, 3), Some(EINVAL));
        assert_eq!(refused(MAX_DEVICES + 1, 2), Some(EINVAL));
        assert_eq!(refused(0, 2), Some(EINVAL));
    }
}
