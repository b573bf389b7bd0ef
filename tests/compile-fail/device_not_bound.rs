// error: E0308
// SPDX-License-Identifier: GPL-2.0

//! Ranges are mapped for a device that may not be bound.

use gpusvm::{DmaDevice, DrmDevice};
use kernel::{device::Device, prelude::*, sync::Arc};

pub fn make(dev: &Device, drm: &DrmDevice) -> Result<Arc<DmaDevice>> {
    DmaDevice::new_devm(dev, drm)
}
