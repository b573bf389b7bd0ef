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
//!   sync           user fences and who waits for them
//!   region stats debugfs
//!   gpu            the hardware: address spaces, an engine, and no notion of processes
//! ```
//!
//! It is policy: what needs `unsafe` is in `kernel_ext`, but for the callbacks of ioctls and the
//! GPU's access to memory.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs)]

use kernel::prelude::*;

mod bo;
mod check;
mod debugfs;
mod driver;
mod exec;
mod exec_queue;
mod exec_queue_ioctl;
mod fault;
mod file;
#[expect(unsafe_code, reason = "the GPU's access to memory")]
mod gpu;
#[expect(unsafe_code, reason = "callbacks from C")]
mod ioctl;
mod query;
mod region;
mod stats;
mod svm;
mod sync;
mod uapi;
mod vm;
mod wait_user_fence;

module! {
    type: VxeModule,
    name: "vxe",
    authors: ["The gpusvm authors"],
    description: "Virtual Xe device",
    license: "GPL",
}

/// How many devices there are.
const DEVICES: usize = 1;

/// The module, while it is loaded: its devices.
struct VxeModule {
    _gpus: KVec<driver::Gpu>,
}

impl kernel::Module for VxeModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut gpus = KVec::new();
        for index in 0..DEVICES {
            gpus.push(driver::Gpu::new(index)?, GFP_KERNEL)?;
        }
        Ok(Self { _gpus: gpus })
    }
}
