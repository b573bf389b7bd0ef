// error: E0277
// SPDX-License-Identifier: GPL-2.0

//! A reference to a DRM device that does not keep the module of its driver.

use gpusvm::DrmDevice;
use kernel::sync::aref::ARef;

pub fn keep(drm: &DrmDevice) -> ARef<DrmDevice> {
    drm.into()
}
