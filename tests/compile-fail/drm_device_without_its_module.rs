// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! The same, of the type that is for who knows that the module stays.

use gpusvm::DrmDevice;
use kernel_ext::drm::device::DeviceOnly;

pub fn keep(drm: &DrmDevice) -> DeviceOnly {
    DeviceOnly::new(drm)
}
