// SPDX-License-Identifier: GPL-2.0

//! vxe: a virtual Xe device in software, for those who work on DRM and have no such GPU.
//!
//! It speaks the uAPI of the kernel's xe driver, so that programs written for that run on it:
//!
//! ```text
//!   ioctl          the table of ioctls; the callbacks from C
//!     query bo exec exec_queue_ioctl wait_user_fence vm      what they do
//!   driver file    devices and open files
//!   exec_queue     jobs in order, each run by the GPU
//!   engines sched  whose turn it is to run
//!   client         processes, and what each may have under way
//!   sync           user fences and who waits for them
//!   svm            mirrored ranges: faults, and where their memory moves
//!   memory         pages of processes in the device's memory
//!   vram region stats objects debugfs
//!   gpu            the hardware: address spaces, an engine, and no notion of processes
//! ```
//!
//! What needs `unsafe` is in `kernel_ext` and [`vxe_sim`].
//!
//! The same object is linked a second time as the module `vxe2`, for tests: its platform driver and
//! devices are called as the module is, and both may be loaded.

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

/// How many devices there may be.
const MAX_DEVICES: u8 = 8;

/// The most memory that a device may have, in MiB.
const MAX_VRAM_MB: u32 = 1 << 16;

/// The module, while it is loaded: its driver, and the devices that it drives.
#[pin_data]
struct VxeModule {
    // Dropped before the driver, so that a device is unbound once.
    _boards: KVec<platform_device::Registration<driver::Board>>,
    #[pin]
    driver: kernel::driver::Registration<driver::PlatformDriver>,
}

impl kernel::InPlaceModule for VxeModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            driver <- kernel::driver::Registration::new(platform_device::module_name(module), module),
            // The driver is there, so that each device is bound when it is made.
            _boards: boards(
                platform_device::module_name(module),
                module_parameters::devices.value(),
                module_parameters::vram_mb.value(),
            )?,
        })
    }
}

/// As many devices for the driver called `name`, each with `vram_mb` MiB of memory.
fn boards(
    name: &CStr,
    count: u8,
    vram_mb: u32,
) -> Result<KVec<platform_device::Registration<driver::Board>>> {
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
        // RAM stands for it. Nobody could have all of it, and who tries takes everybody's.
        pr_err!(
            "{count} devices with {vram_mb} MiB of memory each: the machine has only {} MiB\n",
            ram >> 20
        );
        return Err(ENOMEM);
    }
    let mut boards = KVec::new();
    for index in 0..count {
        boards.push(
            driver::Board::register(name, index.into(), vram)?,
            GFP_KERNEL,
        )?;
    }
    Ok(boards)
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(vxe_module)]
mod tests {
    use super::*;

    /// More memory than the machine has is refused before anything is made; so is what is no number of
    /// large pages.
    #[test]
    fn memory_is_the_machines() {
        let all = u64::from(MAX_DEVICES) * (u64::from(MAX_VRAM_MB) << 20);
        let refused = |count, vram_mb| boards(c"vxe-none", count, vram_mb).err();
        if all > sysinfo::total_ram() {
            assert_eq!(refused(MAX_DEVICES, MAX_VRAM_MB), Some(ENOMEM));
        }
        assert_eq!(refused(1, MAX_VRAM_MB + 2), Some(EINVAL));
        assert_eq!(refused(1, 3), Some(EINVAL));
        assert_eq!(refused(MAX_DEVICES + 1, 2), Some(EINVAL));
        assert_eq!(refused(0, 2), Some(EINVAL));
    }
}
