// error: E0133
// SPDX-License-Identifier: GPL-2.0

//! Pages of a device that nothing keeps bound.

use gpusvm::{pages::Pages, DrmDevice};

pub fn make(drm: &DrmDevice) -> Pages {
    Pages::new(drm)
}
