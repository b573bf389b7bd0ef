// error: E0599
// SPDX-License-Identifier: GPL-2.0

//! A registration that, if it is leaked, outlives the module whose code it has.

use gpusvm::{
    pagemap::registry::{Regions, Registration},
    DrmDevice,
};
use kernel::prelude::*;

pub fn register(drm: &DrmDevice, regions: KBox<dyn Regions>) -> Result<Registration> {
    Registration::new(drm, regions)
}
